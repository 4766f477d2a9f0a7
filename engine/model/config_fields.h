// Reading config.json and checking what both formats must hold. The first wrong field stops nothing at once: reads give
// their fallback from then on, and status() tells what was wrong, so that a parser is a list of fields.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/families.h"
#include "engine/model/model_config.h"
#include "kernels/base/status.h"

namespace restkv {

// What a config may ask for. Wide enough for every published model of these families, narrow enough that no product of
// sizes overflows.
inline constexpr int64_t kMaxLayers = 1024;
inline constexpr int64_t kMaxHidden = 1 << 17;
inline constexpr int64_t kMaxHeads = 1024;
inline constexpr int64_t kMaxHeadDim = 256;
inline constexpr int64_t kMaxFfn = 1 << 20;
inline constexpr int64_t kMaxVocab = 1 << 23;  // what the sampler's work space has room for
inline constexpr int64_t kMaxContext = 1 << 30;
inline constexpr double kMaxTheta = 1e15;

// "key is VALUE; ALLOWED"
Status bad_field(std::string_view key, const std::string& value, const std::string& allowed);
std::string number_text(double value);

// The fields of one JSON object; `where` is what stands before its keys in messages ("rope_scaling.").
class JsonFields {
 public:
  JsonFields(const nlohmann::json& object, std::string where, Status* status)
      : object_(&object), where_(std::move(where)), status_(status) {}

  bool has(std::string_view key) const { return find(key) != nullptr; }  // there and not null
  bool is_null(std::string_view key) const;                              // there and null
  const nlohmann::json* find(std::string_view key) const;
  // Without a fallback the field is required. null counts as absent.
  int64_t integer(std::string_view key, std::optional<int64_t> fallback, int64_t min, int64_t max);
  double number(std::string_view key, std::optional<double> fallback, double min, double max);
  std::optional<double> optional_number(std::string_view key, double min, double max);
  bool boolean(std::string_view key, bool fallback);
  std::string text(std::string_view key, std::string_view fallback);
  std::vector<int64_t> integer_list(std::string_view key, int64_t min,
                                    int64_t max);          // a number or a list of them
  std::optional<JsonFields> object(std::string_view key);  // nullopt: absent

  void fail(Status status) const {
    if (status_->ok()) *status_ = std::move(status);
  }
  bool ok() const { return status_->ok(); }
  std::string path(std::string_view key) const { return where_ + std::string(key); }

 private:
  void wrong(std::string_view key, const nlohmann::json& found, const std::string& allowed) const;

  const nlohmann::json* object_;
  std::string where_;
  Status* status_;
};

// Names of the sizes in the format at hand, for messages.
struct SizeKeys {
  std::string heads, kv_heads, hidden, head_dim;
};
// Head counts and head_dim, once all sizes are set; head_dim 0: hidden / heads.
Status finish_heads(const SizeKeys& keys, ModelConfig* config);
// What the family alone decides.
void apply_family(const Family& family, ModelConfig* config);

}  // namespace restkv

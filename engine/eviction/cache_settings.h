// The `cache` object: what a user may set about a sequence's cache, its bounds, and the settings that come out of it.
//   CacheRequest (fields as given: request over profile over YAML) --resolve--> CacheSettings (a preset fills the rest)
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/score_reduce.h"
#include "kernels/base/status.h"

namespace restkv {

enum class PolicyKind : uint8_t {
  kFull,
  kRestkv,
  kSnapkv,
  kStreamingllm,
  kH2o,
  kTova,
  kPyramidkv,
  kAdakv,
  kLacache,
  kRandom,
};
inline constexpr size_t kNumPolicies = 10;
enum class Preset : uint8_t { kDefault, kPaper };
enum class Allocation : uint8_t { kUniform, kCalibrated, kPyramid, kAda };
enum class DecodeMode : uint8_t { kEvict, kGrow };
enum class Indicator : uint8_t { kQuery, kAfter };
enum class PoolMode : uint8_t { kNone, kAvg, kMax, kForward, kHalfForward, kAdaptive };

// What a sequence records of its cuts (trace.h).
enum class TraceMode : uint8_t { kOff, kOn, kBins };

// Text fed once behind the prompt, only to obtain queries (restkv.md section 5).
struct ProbeSpec {
  enum class Kind : uint8_t { kNone, kFacts, kSummary, kText, kTokens };
  Kind kind = Kind::kNone;
  std::string text;             // kText
  std::vector<int32_t> tokens;  // kTokens; of the others once somebody with a tokenizer has filled them in
};
inline constexpr int32_t kMaxProbeTokens = 256;
// "facts", "summary", "none", or a text of the user's own.
ProbeSpec probe_named(std::string_view name);
// The text of kFacts, kSummary or kText; empty for the others.
std::string_view probe_text(const ProbeSpec& probe);

// Every field as interfaces.md names it; what is not given is empty.
struct CacheRequest {
  std::optional<std::string> profile;  // named settings of the server; whoever has them resolves it
  std::optional<std::string> policy, preset, allocation, decode, group, indicator, reduce, pool;
  std::optional<int64_t> budget, compress_at, window, sinks, stride, kernel, pin, pin_head, pin_tail, scale;
  std::optional<double> fraction, tau, alpha;
  std::optional<bool> normalize, output_projection;
  std::optional<TraceMode> trace;
  std::optional<ProbeSpec> probe;
};
// Fields of `top` over those of `base`.
CacheRequest overlay(const CacheRequest& base, const CacheRequest& top);

// Ceilings of the operator.
struct CacheLimits {
  int64_t max_budget = int64_t{1} << 20;
  int64_t max_model_len = int64_t{1} << 20;
  bool allow_grow = true;
  bool allow_trace = true;
  bool has_calibration = false;  // the model has an allocation file
};

struct CacheSettings {
  PolicyKind policy = PolicyKind::kRestkv;
  Preset preset = Preset::kDefault;
  int32_t budget = 4096;           // C; with fraction its upper bound
  std::optional<double> fraction;  // C = clamp(ceil(fraction * prompt), smallest legal, budget)
  Allocation allocation = Allocation::kUniform;
  DecodeMode decode = DecodeMode::kEvict;
  std::optional<int32_t>
      compress_at;      // prompt tokens that are compressed; the rest goes through the decode path
  int32_t window = 32;  // W
  int32_t sinks = 4;
  std::optional<int32_t> stride;  // empty: default_stride(C)
  GroupReduce group = GroupReduce::kRss;
  Indicator indicator = Indicator::kQuery;
  QueryReduce reduce = QueryReduce::kRms;
  PoolMode pool = PoolMode::kHalfForward;
  std::optional<int32_t> kernel;  // empty: by pool and C
  float tau = 1.0f;
  bool normalize = false;
  ProbeSpec probe;               // what a prompt gets of it: probe_for_prompt
  bool is_probe_default = true;  // not asked for: only where compress_at has an effect
  std::optional<int32_t> pin;    // rows a head that pooling brought in; empty: C/4 where C >= 256 and pooled
  int32_t pin_head = 0, pin_tail = 0;  // rows of the prompt's beginning and end
  int32_t scale = 2000;
  float alpha = 0.3f;
  bool output_projection = true;
  TraceMode trace = TraceMode::kOff;

  static CacheSettings full() {
    CacheSettings settings;
    settings.policy = PolicyKind::kFull;
    return settings;
  }
};

// Errors: INVALID_ARGUMENT with param "cache.<field>", the bounds, and for a budget the smallest legal one.
Result<CacheSettings> resolve_cache_settings(const CacheRequest& request, const CacheLimits& limits);

// max(1, min(64, C/16)), for h2o at most W.
int32_t default_stride(PolicyKind policy, int32_t window, int32_t budget);
// The stride of a sequence with budget C.
int32_t stride_of(const CacheSettings& settings, int32_t budget);
// Rows of pooled order to pin at budget C.
int32_t pin_rows(const CacheSettings& settings, int32_t budget);
// The smallest C with protected + stride <= C (decode: grow: protected + 1).
int32_t smallest_budget(const CacheSettings& settings);
// Tokens of a prompt that go through prefill: compress_at, where it is less than the prompt.
int64_t prefill_tokens(const CacheSettings& settings, int64_t prompt_len);
// The probe behind a prompt of that length.
ProbeSpec probe_for_prompt(const CacheSettings& settings, int64_t prompt_len);
// C of a prompt: the budget, or the fraction of the prompt.
int32_t budget_for_prompt(const CacheSettings& settings, int64_t prompt_len);

std::string_view policy_name(PolicyKind policy);

}  // namespace restkv

// One text under several cache settings at once, without an engine thread: one prefill serves all of them (one for each
// probe), then they decode as one batch, first over given tokens (teacher forcing), then over their own greedy ones. What
// evaluation runs on.
//   prompt (one prefill group) | forced tokens, the same for all | up to max_tokens tokens each
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "engine/token_stream.h"

namespace restkv {

struct GroupText {
  std::vector<int32_t> prompt;
  std::vector<int32_t> forced;
  int32_t max_tokens = 0;  // drawn after the forced ones, end tokens or not
};

struct GroupOutcome {
  std::vector<int32_t> tokens;  // [max_tokens]
  CacheCounters cache;          // at the end
};

// Logits of all settings once `num_forced` >= 1 forced tokens are in the cache: row i at logits + i * vocab, as the model gave
// them; on the host, for the call. With it tokens are fed one by one.
using GroupObserver = std::function<void(int32_t num_forced, const float* logits)>;

class GroupRunner {
 public:
  // Room for `max_settings` settings of texts of up to `options.max_model_len` tokens.
  static Result<std::unique_ptr<GroupRunner>> make(std::shared_ptr<const Model> model, EngineOptions options,
                                                   int32_t max_settings);
  virtual ~GroupRunner() = default;

  // Errors: bad token ids, what does not fit, a device failure.
  virtual Result<std::vector<GroupOutcome>> run(const GroupText& text,
                                                std::span<const CacheSettings> settings,
                                                const GroupObserver& observer) = 0;
  // Bytes of pages that a text of these lengths reserves.
  virtual int64_t page_bytes(const CacheSettings& settings, int64_t prompt_len, int64_t max_tokens) const = 0;
};

}  // namespace restkv

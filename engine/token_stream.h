// The bounded queue between the engine thread and one client's thread. The engine never waits: there is room
// for every record a request can produce, reserved when it is submitted. A client that stops reading is the server's
// business (it cancels).
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

#include "kernels/base/sampling.h"
#include "kernels/base/status.h"

namespace restkv {

enum class FinishReason : uint8_t { kNone, kStop, kLength, kCancelled, kError };

// What became of a sequence's cache; usage.cache of an answer.
struct CacheCounters {
  int32_t kept = 0;  // mean kv_len over all heads, rounded up
  int32_t kept_max = 0;
  int64_t evicted = 0;   // rows over all layers and heads; those that left a window are not counted
  int64_t events = 0;    // cuts of one layer
  int64_t bytes = 0;     // pages (entries, ring, sums) and tables
  int64_t nan_rows = 0;  // scores that were NaN or infinite where rows went: such rows stay
};

// Counters of one choice, as of one record.
struct SequenceCounters {
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;  // of the prompt, from the prefix cache
  int32_t completion_tokens = 0;
  float queue_ms = 0, prefill_ms = 0, decode_ms = 0;
  CacheCounters cache;
};

struct TokenRecord {
  enum class Kind : uint8_t { kPromptToken, kToken, kFinish };
  Kind kind = Kind::kToken;
  FinishReason finish = FinishReason::kNone;  // kFinish only
  int32_t choice = 0;
  int32_t token = -1;    // kPromptToken, kToken; kFinish by a stop token: that token, else -1
  float logprob = 0.0f;  // with num_logprobs / prompt_logprobs >= 0; the first prompt token has none (NaN)
  int32_t rank = 0;
  std::vector<TokenLogprob> top;
  Status error;               // kFinish with kError
  SequenceCounters counters;  // kToken, kFinish: as of this record
};

class TokenStream {
 public:
  // `wake` runs on the engine thread, at most once between two take() calls, when there is something to take; also once
  // after the last record was taken, so what it touches must live as long as the handle.
  explicit TokenStream(std::function<void()> wake) : wake_(std::move(wake)) {}

  void reserve(size_t records);   // in submit
  void push(TokenRecord record);  // engine thread; visible to take() at once
  void poke();                    // engine thread: the next flush wakes the reader though nothing was pushed
  void flush();                   // engine thread, once a step: wakes the reader if something was pushed
  // Client thread: moves all pending records into `out` (cleared first). False: none.
  bool take(std::vector<TokenRecord>& out);

 private:
  std::mutex mutex_;
  std::vector<TokenRecord> records_;
  bool wake_due_ = false;  // pushed or poked since the last flush
  bool woken_ = false;     // wake was called, take was not
  std::function<void()> wake_;
};

}  // namespace restkv

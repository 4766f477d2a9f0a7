// What a client asks of the engine: one prompt as token ids, n choices. Immutable once submitted, but for the
// cancel flag.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "engine/eviction/cache_settings.h"
#include "engine/token_stream.h"
#include "kernels/base/sampling.h"

namespace restkv {

using Clock = std::chrono::steady_clock;
inline double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// Who is admitted first (scheduler.h).
enum class SchedulingPolicy : uint8_t { kShortest, kFifo, kPriority };

struct Request {
  std::string id;                  // the server's id ("cmpl-..."), for logs and DELETE /v1/requests
  std::string owner;               // name of the API key; empty without keys
  std::vector<int32_t> prompt;     // [T] token ids, each in [0, V)
  int32_t max_tokens = 16;         // generated tokens per choice, >= 0 (0: only prompt log probabilities)
  int32_t min_tokens = 0;          // end tokens are banned before
  int32_t num_choices = 1;         // n
  int32_t first_choice = 0;        // index of choice 0 in the whole answer, which may have several prompts
  int32_t priority = 0;            // under the scheduling policy of that name: lower ones first
  std::string cache_salt;          // prompts of one owner and salt share the prefix cache
  int32_t max_owner_requests = 0;  // requests of this owner in flight; 0: the engine's option
  SamplingParams sampling;
  CacheSettings cache = CacheSettings::full();  // resolved (resolve_cache_settings)
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  std::vector<std::vector<int32_t>> bad_words;  // token sequences that must not appear
  // Log probabilities of the prompt: -1 none, else how many best ones beside each prompt token's own.
  int32_t prompt_logprobs = -1;
  bool reports_progress = false;        // the stream's reader is woken after each unit of the prompt, too
  std::chrono::nanoseconds timeout{0};  // running time from arrival; 0: none
  Clock::time_point arrival{};
};

struct RequestHandle;

// Requests whose flags were set since the engine last looked; filled by clients' threads.
class CancelList {
 public:
  void push(const RequestHandle* handle) {
    const std::lock_guard lock(mutex_);
    handles_.push_back(handle);
    has_any_.store(true, std::memory_order_release);
  }
  // False, and cheap: none.
  bool take(std::vector<const RequestHandle*>& out) {
    out.clear();
    if (!has_any_.load(std::memory_order_acquire)) return false;
    const std::lock_guard lock(mutex_);
    out.swap(handles_);
    has_any_.store(false, std::memory_order_relaxed);
    return !out.empty();
  }

 private:
  std::atomic<bool> has_any_{false};
  std::mutex mutex_;
  std::vector<const RequestHandle*> handles_;
};

// Where a request stands, for whoever asks; written by the engine.
enum class RequestPhase : uint8_t { kQueued, kPrefill, kDecode, kFinished };

// The shared state of one submitted request: the client's thread holds one end, the engine the other.
struct RequestHandle {
  RequestHandle(Request request, std::function<void()> wake)
      : request(std::move(request)), stream(std::move(wake)) {}
  Request request;
  TokenStream stream;
  std::shared_ptr<CancelList> cancels;  // the engine's, set by submit
  std::atomic<bool> cancelled{false};   // whole request: client gone, timeout
  std::atomic<uint32_t> cancelled_choices{
      0};  // bit i: choice i is finished for its reader (stop string); n <= 16
  std::atomic<RequestPhase> phase{RequestPhase::kQueued};  // of the choice that is furthest
  std::atomic<int32_t> num_generated{0};                   // tokens of all choices
  // With reports_progress: prompt tokens that are done (prompts in units run layer by layer: their share), those of the prefix
  // cache among them, and the time since admission.
  std::atomic<int32_t> num_prefilled{0}, num_cached{0};
  std::atomic<int64_t> prefill_us{0};

  void cancel() {
    if (!cancelled.exchange(true, std::memory_order_relaxed) && cancels) cancels->push(this);
  }
  void cancel_choice(int32_t choice) {
    cancelled_choices.fetch_or(1u << choice, std::memory_order_relaxed);
    if (cancels) cancels->push(this);
  }
};

}  // namespace restkv

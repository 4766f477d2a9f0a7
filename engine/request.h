// What a client asks of the engine: one prompt as token ids, n choices. Immutable once submitted, but for the
// cancel flag.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/eviction/cache_settings.h"
#include "engine/token_stream.h"
#include "kernels/base/sampling.h"

namespace restkv {

using Clock = std::chrono::steady_clock;

struct Request {
  std::string id;               // the server's id ("cmpl-..."), for logs and DELETE /v1/requests
  std::string owner;            // name of the API key; empty without keys
  std::vector<int32_t> prompt;  // [T] token ids, each in [0, V)
  int32_t max_tokens = 16;      // generated tokens per choice, >= 0 (0: only prompt log probabilities)
  int32_t min_tokens = 0;       // end tokens are banned before
  int32_t num_choices = 1;      // n
  SamplingParams sampling;
  CacheSettings cache = CacheSettings::full();  // resolved (resolve_cache_settings)
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  std::vector<std::vector<int32_t>> bad_words;  // token sequences that must not appear
  // Log probabilities of the prompt: -1 none, else how many best ones beside each prompt token's own.
  int32_t prompt_logprobs = -1;
  std::chrono::nanoseconds timeout{0};  // running time from arrival; 0: none
  Clock::time_point arrival{};
};

// The shared state of one submitted request: the client's thread holds one end, the engine the other.
struct RequestHandle {
  RequestHandle(Request request, std::function<void()> wake)
      : request(std::move(request)), stream(std::move(wake)) {}
  Request request;
  TokenStream stream;
  std::atomic<bool> cancelled{false};  // whole request: client gone, timeout
  std::atomic<uint32_t> cancelled_choices{
      0};  // bit i: choice i is finished for its reader (stop string); n <= 16

  void cancel() { cancelled.store(true, std::memory_order_relaxed); }
  void cancel_choice(int32_t choice) { cancelled_choices.fetch_or(1u << choice, std::memory_order_relaxed); }
};

}  // namespace restkv

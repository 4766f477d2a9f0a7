// Cache settings drawn at random, for tests that ask whole engines for whatever is legal.
#pragma once

#include <cstdint>
#include <random>

#include "engine/eviction/cache_settings.h"

namespace restkv::testing {

// Most draws are legal; resolve_cache_settings decides. Budgets of 20 up to `max_budget`.
inline CacheRequest random_cache_request(std::mt19937& random, int64_t max_budget) {
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  const char* policies[] = {"restkv",    "snapkv", "streamingllm", "h2o",    "tova",
                            "pyramidkv", "adakv",  "lacache",      "random", "full"};
  CacheRequest cache;
  cache.policy = policies[below(10)];
  cache.budget = 20 + below(max_budget - 19);
  cache.window = 1 + below(24);
  cache.sinks = below(6);
  if (below(3) == 0) cache.decode = "grow";
  if (below(2) == 0) cache.stride = 1 + below(cache.decode ? 300 : 16);
  if (below(4) == 0) cache.pin = below(8);
  if (below(4) == 0) cache.pin_head = below(8);
  if (below(4) == 0) cache.pin_tail = below(8);
  if (below(4) == 0) cache.fraction = 0.3;
  if (below(4) == 0) cache.allocation = below(2) == 0 ? "ada" : "pyramid";
  cache.probe = ProbeSpec{};  // the default one is a text, and here is no tokenizer
  if (below(4) == 0) cache.compress_at = 1 + below(60);
  if (below(4) == 0)
    cache.probe = ProbeSpec{.kind = ProbeSpec::Kind::kTokens, .text = {}, .tokens = {4, 8, 15}};
  return cache;
}

}  // namespace restkv::testing

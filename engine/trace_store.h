// Traces of answers that are done, for those who ask later. Bounded in number, bytes and age; the oldest goes first. Any
// thread: the engine puts one in when a traced sequence ends, the server reads immutable snapshots.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "engine/eviction/trace.h"

namespace restkv {

class TraceStore {
 public:
  using Clock = std::chrono::steady_clock;
  struct Limits {
    size_t max_traces = 256;
    size_t max_bytes = size_t{256} << 20;
    std::chrono::seconds max_age{900};
  };
  explicit TraceStore(const Limits& limits) : limits_(limits) {}

  // `choice` counts through all prompts of the request.
  void put(std::string id, std::string owner, int32_t choice, std::shared_ptr<const CacheTrace> trace,
           Clock::time_point now);
  // Null: there is none of that owner.
  std::shared_ptr<const CacheTrace> find(const std::string& id, const std::string& owner, int32_t choice,
                                         Clock::time_point now);
  size_t num_bytes() const;

 private:
  struct Entry {
    std::string id, owner;
    int32_t choice;
    std::shared_ptr<const CacheTrace> trace;
    Clock::time_point since;
  };
  void drop_old(Clock::time_point now);  // mutex_ held

  const Limits limits_;
  mutable std::mutex mutex_;
  std::deque<Entry> entries_;  // oldest first
  size_t num_bytes_ = 0;
};

}  // namespace restkv

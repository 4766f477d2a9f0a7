// Traces of answers that are done, for those who ask later, and the memory of all traces: those being written take theirs from the
// same bound, and the oldest that are done make room for them. Bounded in number, bytes and age. Any thread: the engine puts one
// in when a traced sequence ends, the server reads immutable snapshots.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "engine/eviction/trace.h"

namespace restkv {

class TraceStore final : public TraceRoom {
 public:
  using Clock = std::chrono::steady_clock;
  struct Limits {
    size_t max_traces = 256;
    size_t max_bytes = size_t{256} << 20;  // with what is being written
    std::chrono::seconds max_age{900};
  };
  explicit TraceStore(const Limits& limits) : limits_(limits) {}

  // `choice` counts through all prompts of the request.
  void put(std::string id, std::string owner, int32_t choice, std::shared_ptr<const CacheTrace> trace,
           Clock::time_point now);
  // Null: there is none of that owner.
  std::shared_ptr<const CacheTrace> find(const std::string& id, const std::string& owner, int32_t choice,
                                         Clock::time_point now);
  size_t num_bytes() const;  // of those that are done
  size_t num_taken() const;  // by those being written

  bool take(size_t bytes) override;
  void give_back(size_t bytes) override;

 private:
  struct Entry {
    std::string id, owner;
    int32_t choice;
    std::shared_ptr<const CacheTrace> trace;
    Clock::time_point since;
  };
  // mutex_ held:
  void drop_oldest();
  void drop_old(Clock::time_point now);

  const Limits limits_;
  mutable std::mutex mutex_;
  std::deque<Entry> entries_;  // oldest first
  size_t num_bytes_ = 0, num_taken_ = 0;
};

}  // namespace restkv

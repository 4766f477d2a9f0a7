// A short list, searched from the newest: there are at most a few hundred.
#include "engine/trace_store.h"

#include <algorithm>

namespace restkv {

void TraceStore::put(std::string id, std::string owner, int32_t choice,
                     std::shared_ptr<const CacheTrace> trace, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  num_bytes_ += trace->num_bytes();
  entries_.push_back({std::move(id), std::move(owner), choice, std::move(trace), now});
  drop_old(now);
}

std::shared_ptr<const CacheTrace> TraceStore::find(const std::string& id, const std::string& owner,
                                                   int32_t choice, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  drop_old(now);
  const auto found = std::find_if(entries_.rbegin(), entries_.rend(), [&](const Entry& entry) {
    return entry.choice == choice && entry.id == id && entry.owner == owner;
  });
  return found == entries_.rend() ? nullptr : found->trace;
}

size_t TraceStore::num_bytes() const {
  const std::lock_guard lock(mutex_);
  return num_bytes_;
}

size_t TraceStore::num_taken() const {
  const std::lock_guard lock(mutex_);
  return num_taken_;
}

bool TraceStore::take(size_t bytes) {
  const std::lock_guard lock(mutex_);
  if (bytes > limits_.max_bytes - num_taken_) return false;
  num_taken_ += bytes;
  while (num_bytes_ + num_taken_ > limits_.max_bytes) drop_oldest();
  return true;
}

void TraceStore::give_back(size_t bytes) {
  const std::lock_guard lock(mutex_);
  num_taken_ -= bytes;
}

void TraceStore::drop_oldest() {
  num_bytes_ -= entries_.front().trace->num_bytes();
  entries_.pop_front();
}

void TraceStore::drop_old(Clock::time_point now) {
  while (!entries_.empty() &&
         (entries_.size() > limits_.max_traces || num_bytes_ + num_taken_ > limits_.max_bytes ||
          now - entries_.front().since > limits_.max_age)) {
    drop_oldest();
  }
}

}  // namespace restkv

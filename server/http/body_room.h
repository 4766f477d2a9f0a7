// The memory of request bodies that all connections share, from their first byte in to the last use. What a small body takes is not
// counted: large ones keep nobody else from asking.
#pragma once

#include <atomic>
#include <cstddef>
#include <utility>

namespace restkv {

class BodyRoom {
 public:
  explicit BodyRoom(size_t limit) : limit_(limit) {}

  // Any thread. False: so many are not left.
  bool take(size_t bytes) {
    size_t used = used_.load(std::memory_order_relaxed);
    do {
      if (bytes > limit_ - used) return false;
    } while (!used_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
    return true;
  }
  void give_back(size_t bytes) { used_.fetch_sub(bytes, std::memory_order_relaxed); }
  size_t used() const { return used_.load(std::memory_order_relaxed); }

 private:
  const size_t limit_;
  std::atomic<size_t> used_{0};  // at most limit_
};

// What one connection has of it.
class BodyShare {
 public:
  explicit BodyShare(BodyRoom& room) : room_(room) {}
  ~BodyShare() { release(); }
  BodyShare(const BodyShare&) = delete;

  // Bytes from now on. False: there is no room for more than it has.
  bool resize(size_t bytes) {
    if (bytes > bytes_ && !room_.take(bytes - bytes_)) return false;
    if (bytes < bytes_) room_.give_back(bytes_ - bytes);
    bytes_ = bytes;
    return true;
  }
  void release() { room_.give_back(std::exchange(bytes_, 0)); }

 private:
  BodyRoom& room_;
  size_t bytes_ = 0;
};

}  // namespace restkv

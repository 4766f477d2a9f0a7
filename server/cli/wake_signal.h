// Between the engine's wake and a thread of a verb that waits. Held by every request that wakes it: the engine wakes once more
// after the last record was taken.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>

namespace restkv {

class WakeSignal {
 public:
  void notify() {
    const std::lock_guard lock(mutex_);
    is_ready_ = true;
    changed_.notify_one();
  }
  // Until the next wake, or a tenth of a second: a signal handler cannot notify, so its flag is looked at so often.
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::milliseconds(100), [&] { return is_ready_; });
    is_ready_ = false;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_ready_ = false;
};

}  // namespace restkv

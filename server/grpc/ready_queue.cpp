// One thread: wait, pump, tick.
#include "server/grpc/ready_queue.h"

namespace restkv {
namespace {

constexpr std::chrono::milliseconds kTick{500};

}  // namespace

ReadyQueue::ReadyQueue() : thread_([this] { run(); }) {}

void ReadyQueue::wake(std::weak_ptr<Pumped> call) {
  bool was_empty = false;
  {
    const std::lock_guard lock(mutex_);
    was_empty = ready_.empty();
    ready_.push_back(std::move(call));
  }
  if (was_empty) is_ready_.notify_one();
}

void ReadyQueue::add(const std::shared_ptr<Pumped>& call) {
  const std::lock_guard lock(mutex_);
  calls_.insert(call);
  ++num_calls_;
}

void ReadyQueue::remove(const std::shared_ptr<Pumped>& call) {
  const std::lock_guard lock(mutex_);
  num_calls_ -= static_cast<int64_t>(calls_.erase(call));
}

void ReadyQueue::stop() {
  {
    const std::lock_guard lock(mutex_);
    is_stopping_ = true;
  }
  is_ready_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void ReadyQueue::run() {
  std::vector<std::weak_ptr<Pumped>> taken;
  std::vector<std::shared_ptr<Pumped>> looked_at;
  Clock::time_point next_tick = Clock::now() + kTick;
  std::unique_lock lock(mutex_);
  while (!is_stopping_) {
    is_ready_.wait_until(lock, next_tick, [this] { return is_stopping_ || !ready_.empty(); });
    taken.swap(ready_);
    const Clock::time_point now = Clock::now();
    const bool is_tick = now >= next_tick;
    if (is_tick) looked_at.assign(calls_.begin(), calls_.end());
    lock.unlock();
    for (const std::weak_ptr<Pumped>& weak : taken) {
      if (const std::shared_ptr<Pumped> call = weak.lock()) call->pump();
    }
    taken.clear();
    for (const std::shared_ptr<Pumped>& call : looked_at) call->check_time(now);
    looked_at.clear();
    if (is_tick) next_tick = now + kTick;
    lock.lock();
  }
}

}  // namespace restkv

#include "emulator/device_queue.h"

#include <utility>

namespace restkv::emulator {

void DeviceQueue::add(std::function<void()> work) {
  work_.push_back(std::move(work));
  go_on();
}

void DeviceQueue::go_on() {
  switch (timing_) {
    case Timing::kAtOnce: return run_until(num_added());
    case Timing::kLate: return;
    case Timing::kMixed: break;
  }
  switch (pace_) {
    case Pace::kNothing: return;
    case Pace::kSome: return run_until(num_done_ + static_cast<int64_t>(random_() % (work_.size() + 1)));
    case Pace::kAll: return run_until(num_added());
  }
}

void DeviceQueue::wait_until(int64_t count) {
  run_until(count);
  // It stays as quick until the host has waited again: hazards show while one of the two is far ahead.
  if (timing_ == Timing::kMixed) pace_ = static_cast<Pace>(random_() % 3);
  go_on();
}

void DeviceQueue::run_until(int64_t count) {
  while (num_done_ < count) {
    const std::function<void()> next = std::move(work_.front());
    work_.pop_front();
    ++num_done_;  // also where it throws: it will not be done again
    next();
  }
}

}  // namespace restkv::emulator

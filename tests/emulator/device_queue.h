// What the emulated device has been given and has not done yet, in order; Timing (emulator.h) says when it does it. The thread
// that asks for something does the work: nothing runs beside the host, but the host cannot tell how far the device has come.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <random>

#include "emulator/emulator.h"

namespace restkv::emulator {

class DeviceQueue {
 public:
  static constexpr int kMarks = 2;

  DeviceQueue(Timing timing, uint64_t seed) : timing_(timing), random_(seed) {}
  // Whether work may be left for later.
  bool is_lazy() const { return timing_ != Timing::kAtOnce; }

  void add(std::function<void()> work);
  void mark(int slot) { marks_[slot] = num_added(); }
  // Does what stands before the mark, which may be none; perhaps more.
  void wait_for(int slot) { wait_until(marks_[slot]); }
  void wait() { wait_until(num_added()); }

 private:
  enum class Pace : uint8_t { kNothing, kSome, kAll };

  int64_t num_added() const { return num_done_ + static_cast<int64_t>(work_.size()); }
  void wait_until(int64_t count);
  void run_until(int64_t count);
  // As much as the device does while the host goes on.
  void go_on();

  const Timing timing_;
  std::mt19937_64 random_;
  Pace pace_ = Pace::kNothing;
  std::deque<std::function<void()>> work_;
  int64_t num_done_ = 0;
  int64_t marks_[kMarks] = {};  // how much stands before
};

}  // namespace restkv::emulator

// When a wait for a device has taken too long: not while it goes on with its work, however much of that there is (a prompt of a
// hundred thousand rows in one step takes a minute on a small card), but when it has finished nothing of it for so long.
#pragma once

#include <chrono>
#include <cstdint>

namespace restkv::cuda {

class Patience {
 public:
  using Time = std::chrono::steady_clock::time_point;

  Patience(Time begin, int64_t num_done, std::chrono::steady_clock::duration limit)
      : limit_(limit), since_(begin), num_done_(num_done) {}
  // `num_done`: of marks in its work, how many the device has come past.
  bool is_over(Time now, int64_t num_done) {
    if (num_done != num_done_) since_ = now;
    num_done_ = num_done;
    return now - since_ > limit_;
  }

 private:
  std::chrono::steady_clock::duration limit_;
  Time since_;
  int64_t num_done_;
};

}  // namespace restkv::cuda

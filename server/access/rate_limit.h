// Token buckets of one API key: requests and tokens a minute. A bucket holds one minute's worth and fills steadily. Tokens of
// the answer are charged when they are known, so a bucket can go below zero; the next request waits until it is paid.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>

namespace restkv {

class RateLimit {
 public:
  using Clock = std::chrono::steady_clock;

  // Per minute; 0: no limit. What was used so far stays used.
  void set_limits(int64_t requests, int64_t tokens);
  // Takes one request and its prompt's tokens. Else: whole seconds (>= 1) after which it would fit.
  int64_t try_take(int64_t prompt_tokens, Clock::time_point now);
  // What was taken for requests that were refused in the end.
  void give_back(int64_t requests, int64_t tokens, Clock::time_point now);
  void charge_tokens(int64_t tokens, Clock::time_point now);

 private:
  struct Bucket {
    double limit = 0;  // a minute
    double level = 0;
    void set_limit(double limit_now);
    void fill(double seconds);
    double wait_seconds(double amount) const;  // until `amount`, or a full bucket, is there
  };
  void fill(Clock::time_point now);

  std::mutex mutex_;
  Bucket requests_, tokens_;
  Clock::time_point filled_{};
};

}  // namespace restkv

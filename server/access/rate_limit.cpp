// Levels in double: a minute's worth is far below 2^53.
#include "server/access/rate_limit.h"

#include <algorithm>
#include <cmath>

namespace restkv {

void RateLimit::Bucket::set_limit(double limit_now) {
  level = limit == 0 ? limit_now : std::min(limit_now, level + limit_now - limit);
  limit = limit_now;
}

void RateLimit::Bucket::fill(double seconds) { level = std::min(limit, level + limit * seconds / 60); }

double RateLimit::Bucket::wait_seconds(double amount) const {
  if (limit == 0) return 0;
  const double missing = std::min(amount, limit) - level;  // more than a full bucket is never asked for
  return missing <= 0 ? 0 : missing * 60 / limit;
}

void RateLimit::fill(Clock::time_point now) {
  if (filled_ == Clock::time_point{}) filled_ = now;
  const double seconds = std::max(0.0, std::chrono::duration<double>(now - filled_).count());
  requests_.fill(seconds);
  tokens_.fill(seconds);
  filled_ = std::max(filled_, now);
}

void RateLimit::set_limits(int64_t requests, int64_t tokens) {
  const std::lock_guard lock(mutex_);
  requests_.set_limit(static_cast<double>(requests));
  tokens_.set_limit(static_cast<double>(tokens));
}

int64_t RateLimit::try_take(int64_t prompt_tokens, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  fill(now);
  const double wait =
      std::max(requests_.wait_seconds(1), tokens_.wait_seconds(static_cast<double>(prompt_tokens)));
  if (wait > 0) return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(wait)));
  requests_.level -= 1;
  tokens_.level -= static_cast<double>(prompt_tokens);
  return 0;
}

void RateLimit::give_back(int64_t requests, int64_t tokens, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  fill(now);
  requests_.level = std::min(requests_.limit, requests_.level + static_cast<double>(requests));
  tokens_.level = std::min(tokens_.limit, tokens_.level + static_cast<double>(tokens));
}

void RateLimit::charge_tokens(int64_t tokens, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  fill(now);
  tokens_.level -= static_cast<double>(tokens);
}

}  // namespace restkv

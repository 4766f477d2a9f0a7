// Token buckets over a made clock.
#include "server/access/rate_limit.h"

#include <gtest/gtest.h>

namespace restkv {
namespace {

using namespace std::chrono_literals;

class RateLimitTest : public testing::Test {
 protected:
  RateLimit rate_;
  RateLimit::Clock::time_point now_ = RateLimit::Clock::time_point(1h);
};

TEST_F(RateLimitTest, NoLimits) {
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(rate_.try_take(1'000'000, now_), 0);
  rate_.charge_tokens(1'000'000'000, now_);
  EXPECT_EQ(rate_.try_take(1, now_), 0);
}

TEST_F(RateLimitTest, RequestsAMinute) {
  rate_.set_limits(6, 0);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(rate_.try_take(1, now_), 0);
  EXPECT_EQ(rate_.try_take(1, now_), 10);
  EXPECT_EQ(rate_.try_take(1, now_ + 9500ms), 1);
  EXPECT_EQ(rate_.try_take(1, now_ + 10s), 0);
  EXPECT_EQ(rate_.try_take(1, now_ + 10s), 10);
  for (int i = 0; i < 6; ++i)
    EXPECT_EQ(rate_.try_take(1, now_ + 1h), 0) << "at most one minute's worth is kept";
  EXPECT_GT(rate_.try_take(1, now_ + 1h), 0);
}

TEST_F(RateLimitTest, TokensOfAnswersAreChargedLater) {
  rate_.set_limits(0, 600);
  EXPECT_EQ(rate_.try_take(100, now_), 0);
  rate_.charge_tokens(800, now_);  // 300 below zero
  EXPECT_EQ(rate_.try_take(100, now_), 40);
  EXPECT_EQ(rate_.try_take(100, now_ + 39s), 1);
  EXPECT_EQ(rate_.try_take(100, now_ + 40s), 0);
}

TEST_F(RateLimitTest, APromptAboveTheLimitNeedsAFullBucket) {
  rate_.set_limits(0, 600);
  EXPECT_EQ(rate_.try_take(6000, now_), 0);
  EXPECT_EQ(rate_.try_take(6000, now_), 600);
  EXPECT_EQ(rate_.try_take(6000, now_ + 600s), 0);
}

TEST_F(RateLimitTest, WhatWasRefusedIsGivenBack) {
  rate_.set_limits(2, 600);
  EXPECT_EQ(rate_.try_take(400, now_), 0);
  rate_.give_back(1, 400, now_);
  rate_.give_back(1, 400, now_);  // never above a full bucket
  EXPECT_EQ(rate_.try_take(300, now_), 0);
  EXPECT_EQ(rate_.try_take(300, now_), 0);
  EXPECT_GT(rate_.try_take(1, now_), 0);
  rate_.set_limits(0, 0);
  rate_.give_back(1, 400, now_);
  EXPECT_EQ(rate_.try_take(1'000'000, now_), 0);
}

TEST_F(RateLimitTest, NewLimitsForgetNoUse) {
  rate_.set_limits(10, 0);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(rate_.try_take(1, now_), 0);
  rate_.set_limits(12, 0);
  EXPECT_EQ(rate_.try_take(1, now_), 0);
  EXPECT_EQ(rate_.try_take(1, now_), 0);
  EXPECT_GT(rate_.try_take(1, now_), 0);
  rate_.set_limits(0, 0);
  EXPECT_EQ(rate_.try_take(1, now_), 0);
}

}  // namespace
}  // namespace restkv

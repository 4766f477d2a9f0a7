// The pool runs every chunk once, in regions that follow each other at once or after its workers fell asleep.
#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>
#include <ctime>
#include <numeric>
#include <thread>
#include <vector>

namespace restkv::cpu {
namespace {

TEST(ThreadPool, EveryChunkRunsOnce) {
  for (const int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (int64_t count = 0; count < 200; ++count) {
      std::vector<int> runs(static_cast<size_t>(count),
                            0);  // no atomics: a chunk run twice is a race for tsan too
      pool.parallel_for(count, [&](int64_t chunk, int thread) {
        ASSERT_GE(thread, 0);
        ASSERT_LT(thread, threads);
        ++runs[static_cast<size_t>(chunk)];
      });
      EXPECT_EQ(std::accumulate(runs.begin(), runs.end(), 0), count);
      for (const int n : runs) ASSERT_EQ(n, 1);
    }
  }
}

TEST(ThreadPool, WhatARegionWroteIsSeenByTheNext) {
  ThreadPool pool(3);
  std::vector<int64_t> values(64, 0), shifted(64, 0);
  for (int64_t round = 1; round <= 5000; ++round) {
    pool.parallel_for(64, [&](int64_t chunk, int) {
      const auto i = static_cast<size_t>(chunk);
      shifted[i] = values[(i + 17) % 64] + 1;
    });
    pool.parallel_for(64, [&](int64_t chunk, int) {
      const auto i = static_cast<size_t>(chunk);
      values[i] = shifted[(i + 47) % 64];
    });
  }
  for (const int64_t value : values) EXPECT_EQ(value, 5000);
}

TEST(ThreadPool, WakesAfterSleep) {
  ThreadPool pool(2);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::vector<int> runs(16, 0);
    pool.parallel_for(16, [&](int64_t chunk, int) { runs[static_cast<size_t>(chunk)] = 1; });
    EXPECT_EQ(std::accumulate(runs.begin(), runs.end(), 0), 16);
  }
}

TEST(ThreadPool, SleepersCostNothing) {
  ThreadPool pool(4);
  pool.parallel_for(8, [](int64_t, int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const std::clock_t before = std::clock();  // CPU time of the process
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LT(static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC, 0.1);
}

TEST(ThreadPool, UsableCores) {
  EXPECT_GE(usable_cores(), 1);
  EXPECT_LE(usable_cores(), static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace
}  // namespace restkv::cpu

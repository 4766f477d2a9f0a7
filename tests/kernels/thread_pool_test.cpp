// The pool runs every chunk once, in regions that follow each other at once or after its workers fell asleep.
#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <string>
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

TEST(ThreadPool, UsableCoresFollowTheQuotasOfControlGroups) {
  if (usable_cores("/none") < 2) GTEST_SKIP() << "one core: there is nothing less";
  namespace fs = std::filesystem;
  const fs::path root = fs::path(testing::TempDir()) / ("quota" + std::to_string(::getpid()));
  const auto write = [&](const std::string& path, const std::string& text) {
    fs::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text;
  };
  const int all = usable_cores("/none");
  // v2: the own group, then one above it, as systemd's CPUQuota= makes them
  write("proc/self/cgroup", "0::/system.slice/restkv.service\n");
  write("sys/fs/cgroup/system.slice/restkv.service/cpu.max", "max 100000\n");
  EXPECT_EQ(usable_cores(root), all);
  write("sys/fs/cgroup/system.slice/restkv.service/cpu.max", "100000 100000\n");
  EXPECT_EQ(usable_cores(root), 1);
  write("sys/fs/cgroup/system.slice/restkv.service/cpu.max", "10000 100000\n");
  EXPECT_EQ(usable_cores(root), 1) << "less than one is one";
  write("sys/fs/cgroup/system.slice/restkv.service/cpu.max", "6400000 100000\n");
  EXPECT_EQ(usable_cores(root), std::min(all, 64));
  write("sys/fs/cgroup/system.slice/cpu.max", "120000 100000\n");
  EXPECT_EQ(usable_cores(root), 1);
  // a container that sees the host's path: the root is its own group
  fs::remove_all(root);
  write("proc/self/cgroup", "0::/kubepods/pod1/c1\n");
  write("sys/fs/cgroup/cpu.max", "50000 100000\n");
  EXPECT_EQ(usable_cores(root), 1);
  // v1
  fs::remove_all(root);
  write("proc/self/cgroup", "4:memory:/a\n3:cpu,cpuacct:/docker/b\n0::/\n");
  write("sys/fs/cgroup/cpu/docker/b/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu/docker/b/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(usable_cores(root), all);
  write("sys/fs/cgroup/cpu/docker/b/cpu.cfs_quota_us", "100000\n");
  EXPECT_EQ(usable_cores(root), 1);
  fs::remove_all(root);
}

}  // namespace
}  // namespace restkv::cpu

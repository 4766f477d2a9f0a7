// What is left of a machine's or a container's memory, over files as the kernel writes them.
#include "engine/host_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace restkv {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

// A folder that stands for "/".
class HostMemory : public ::testing::Test {
 protected:
  HostMemory() {
    root_ = std::filesystem::path(::testing::TempDir()) / ("restkv_memory." + std::to_string(getpid()));
    std::filesystem::remove_all(root_);
    write("proc/meminfo",
          "MemTotal:       65536000 kB\nMemFree: 1 kB\nMemAvailable:   32768 kB\nHugePages_Total: 0\n");
  }
  ~HostMemory() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  void group(const std::string& folder, const std::string& limit, int64_t usage, int64_t inactive,
             int64_t active) {
    const std::string place = "sys/fs/cgroup/" + folder;
    write(place + "memory.max", limit + "\n");
    write(place + "memory.current", std::to_string(usage) + "\n");
    write(place + "memory.stat", "anon 5\nfile 77\ninactive_file " + std::to_string(inactive) +
                                     "\nactive_file " + std::to_string(active) + "\nworkingset_refault 1\n");
  }
  int64_t available() const { return available_host_memory(root_.string() + "/"); }

 private:
  std::filesystem::path root_;
};

TEST_F(HostMemory, IsWhatTheMachineHasWithoutALimit) {
  EXPECT_EQ(available(), 32 * kMiB);
  group("", "max", 3 * kMiB, 0, 0);
  EXPECT_EQ(available(), 32 * kMiB);
  group("", std::to_string(100 * kMiB), 3 * kMiB, 0, 0);
  EXPECT_EQ(available(), 32 * kMiB);
}

TEST_F(HostMemory, FilesThatAGroupHasReadAreNotUsed) {
  group("", std::to_string(20 * kMiB), 19 * kMiB, 10 * kMiB, 5 * kMiB);
  EXPECT_EQ(available(), 16 * kMiB);
  group("", std::to_string(20 * kMiB), 21 * kMiB, 0, 0);
  EXPECT_EQ(available(), 0);
}

TEST_F(HostMemory, EveryGroupAroundTheProcessCounts) {
  write("proc/self/cgroup", "0::/system.slice/restkv.service\n");
  group("system.slice/restkv.service/", "max", kMiB, 0, 0);
  EXPECT_EQ(available(), 32 * kMiB);
  group("system.slice/", std::to_string(12 * kMiB), 2 * kMiB, 0, 0);
  EXPECT_EQ(available(), 10 * kMiB);
  group("system.slice/restkv.service/", std::to_string(8 * kMiB), 4 * kMiB, kMiB, 0);
  EXPECT_EQ(available(), 5 * kMiB);
  write("proc/self/cgroup", "0::/../not/seen/from/here\n");
  EXPECT_EQ(available(), 32 * kMiB);
}

TEST_F(HostMemory, TheFirstVersionOfGroups) {
  write("proc/self/cgroup", "12:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n");
  const auto group_of = [&](const std::string& folder, int64_t limit, int64_t usage) {
    const std::string place = "sys/fs/cgroup/memory/" + folder;
    write(place + "memory.limit_in_bytes", std::to_string(limit));
    write(place + "memory.usage_in_bytes", std::to_string(usage));
    write(place + "memory.stat", "inactive_file 1\ntotal_inactive_file " + std::to_string(kMiB) +
                                     "\ntotal_active_file " + std::to_string(kMiB) + "\n");
  };
  // A container sees its own group where they are mounted, not at its path.
  group_of("", 16 * kMiB, 10 * kMiB);
  EXPECT_EQ(available(), 8 * kMiB);
  group_of("docker/abc/", 9 * kMiB, 6 * kMiB);
  EXPECT_EQ(available(), 5 * kMiB);
}

}  // namespace
}  // namespace restkv

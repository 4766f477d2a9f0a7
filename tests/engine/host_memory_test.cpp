// What the memory plan counts as available: the least of RAM, control groups and address space, from files made here.
#include "engine/host_memory.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace restkv {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMiB = 1 << 20;

class HostMemory : public testing::Test {
 protected:
  HostMemory() : root_(fs::path(testing::TempDir()) / ("memory" + std::to_string(::getpid()))) {
    write("proc/meminfo",
          "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n");
  }
  ~HostMemory() override { fs::remove_all(root_); }
  void write(const std::string& path, const std::string& text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  // A group of v2: "max" or bytes.
  void write_group(const std::string& path, const std::string& limit, int64_t usage, int64_t files = 0) {
    const std::string folder = "sys/fs/cgroup" + path + "/";
    write(folder + "memory.max", limit + "\n");
    write(folder + "memory.current", std::to_string(usage) + "\n");
    write(folder + "memory.stat", "anon 1\nfile 5\nactive_file " + std::to_string(files / 4) +
                                      "\ninactive_file " + std::to_string(files - files / 4) + "\nslab 7\n");
  }
  int64_t available() const { return available_host_memory(root_.string()) / kMiB; }

  const fs::path root_;
};

TEST_F(HostMemory, OfTheMachine) { EXPECT_EQ(available(), 8192); }

TEST_F(HostMemory, OfAContainer) {
  write("proc/self/cgroup", "0::/\n");
  write_group("", "4294967296", 1024 * kMiB);
  EXPECT_EQ(available(), 3072);
  write_group("", "max", 1024 * kMiB);
  EXPECT_EQ(available(), 8192);
  write_group("", "1073741824", 1500 * kMiB);
  EXPECT_EQ(available(), 0) << "more than the limit in use";
}

TEST_F(HostMemory, OfAServiceAndTheGroupsAboveIt) {
  write("proc/self/cgroup", "0::/system.slice/restkv.service\n");
  write_group("/system.slice/restkv.service", "2147483648", 48 * kMiB);
  write_group("/system.slice", "max", 500 * kMiB);
  EXPECT_EQ(available(), 2000);
  write_group("/system.slice", "1073741824", 500 * kMiB);
  EXPECT_EQ(available(), 524);
  write("sys/fs/cgroup/system.slice/restkv.service/memory.high", "104857600\n");
  EXPECT_EQ(available(), 52);
}

// A download fills the group with pages of files; they go when the cache needs the room.
TEST_F(HostMemory, PagesOfFilesCanBeDropped) {
  write("proc/self/cgroup", "0::/kubepods/pod1/c1\n");
  write_group("", "4294967296", 4000 * kMiB, 3600 * kMiB);
  EXPECT_EQ(available(), 4096 - 400);
}

TEST_F(HostMemory, OfTheFirstVersion) {
  write("proc/self/cgroup", "3:cpu,cpuacct:/x\n4:memory:/docker/b\n0::/\n");
  const std::string folder = "sys/fs/cgroup/memory/docker/b/";
  write(folder + "memory.usage_in_bytes", std::to_string(900 * kMiB));
  write(folder + "memory.limit_in_bytes", "9223372036854771712");
  EXPECT_EQ(available(), 8192);
  write(folder + "memory.limit_in_bytes", "1073741824");
  write(folder + "memory.stat",
        "cache 1\nactive_file 1\ntotal_active_file 104857600\ntotal_inactive_file 314572800\n");
  EXPECT_EQ(available(), 1024 - 500);
}

TEST_F(HostMemory, AddressSpace) {
  // So large a limit that nothing of this program, nor of a sanitizer's shadow, is in its way.
  constexpr int64_t kLimit = int64_t{1} << 47;
  write("proc/self/statm",
        std::to_string((kLimit - 5000 * kMiB) / ::sysconf(_SC_PAGESIZE)) + " 5 5 1 0 5 0\n");
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_AS, &before), 0);
  if (before.rlim_max < static_cast<rlim_t>(kLimit)) GTEST_SKIP() << "the address space is limited already";
  rlimit limit = before;
  limit.rlim_cur = static_cast<rlim_t>(kLimit);
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &limit), 0);
  const int64_t found = available();
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &before), 0);
  EXPECT_EQ(found, 5000);
}

}  // namespace
}  // namespace restkv

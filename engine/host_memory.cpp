// Reads /proc and the control groups; a container's limit counts, not the host's RAM.
#include "engine/host_memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>

#include "kernels/base/control_group.h"

namespace restkv {
namespace {

struct GroupFiles {
  const char *limit, *usage;
  const char* file_pages[2];  // keys of memory.stat, of this group and those below
};

constexpr GroupFiles kFiles[] = {
    {"memory.max", "memory.current", {"active_file", "inactive_file"}},
    {"memory.high",
     "memory.current",
     {"active_file", "inactive_file"}},  // above it the kernel slows a group down
    {"memory.limit_in_bytes", "memory.usage_in_bytes", {"total_active_file", "total_inactive_file"}},
};

int64_t whole(double value) {  // v1's "no limit" is near 2^63
  return value >= 9e18 ? std::numeric_limits<int64_t>::max() : static_cast<int64_t>(value);
}

// A model that was downloaded or read a moment ago fills a group's memory with pages of files, which the kernel drops when
// somebody needs the room; MemAvailable counts the same pages as available.
int64_t droppable(const std::string& folder, const GroupFiles& files) {
  std::ifstream stat(folder + "/memory.stat");
  std::string key;
  double value = 0, sum = 0;
  while (stat >> key >> value) {
    for (const char* name : files.file_pages)
      if (key == name) sum += value;
  }
  return whole(sum);
}

std::optional<int64_t> left_in_group(const std::string& folder, const GroupFiles& files) {
  const std::optional<double> limit = control_group_number(folder + "/" + files.limit),
                              usage = control_group_number(folder + "/" + files.usage);
  if (!limit || !usage) return std::nullopt;
  const int64_t used = std::max<int64_t>(0, whole(*usage) - droppable(folder, files));
  return std::max<int64_t>(0, whole(*limit) - used);
}

// The address space that ulimit -v leaves.
std::optional<int64_t> left_of_address_space(const std::string& root) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return std::nullopt;
  const double pages = control_group_number(root + "/proc/self/statm").value_or(0);
  return std::max<int64_t>(0, whole(static_cast<double>(limit.rlim_cur)) -
                                  whole(pages) * static_cast<int64_t>(::sysconf(_SC_PAGESIZE)));
}

}  // namespace

int64_t available_host_memory(const std::string& root) {
  int64_t available = std::numeric_limits<int64_t>::max();
  std::ifstream meminfo(root + "/proc/meminfo");
  std::string key, unit;
  int64_t kib = 0;
  while (meminfo >> key >> kib) {
    if (key == "MemAvailable:") available = kib * 1024;
    std::getline(meminfo, unit);
  }
  for (const std::string& folder : control_group_folders("memory", root)) {
    for (const GroupFiles& files : kFiles) {
      if (const auto left = left_in_group(folder, files)) available = std::min(available, *left);
    }
  }
  if (const auto left = left_of_address_space(root)) available = std::min(available, *left);
  return available;
}

}  // namespace restkv

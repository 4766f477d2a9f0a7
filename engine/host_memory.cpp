// Reads /proc/meminfo and the cgroup files; a container's limit counts, not the host's RAM.
#include "engine/host_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

namespace restkv {
namespace {

std::optional<int64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (file >> value) return value;  // "max" is no number: no limit
  return std::nullopt;
}

std::optional<int64_t> left_in_group(const std::string& limit_path, const std::string& usage_path) {
  const std::optional<int64_t> limit = read_number(limit_path), usage = read_number(usage_path);
  if (!limit || !usage) return std::nullopt;
  return std::max<int64_t>(0, *limit - *usage);
}

}  // namespace

int64_t available_host_memory() {
  int64_t available = std::numeric_limits<int64_t>::max();
  std::ifstream meminfo("/proc/meminfo");
  std::string key, unit;
  int64_t kib = 0;
  while (meminfo >> key >> kib) {
    if (key == "MemAvailable:") available = kib * 1024;
    std::getline(meminfo, unit);
  }
  for (const auto& left : {left_in_group("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
                           left_in_group("/sys/fs/cgroup/memory/memory.limit_in_bytes",
                                         "/sys/fs/cgroup/memory/memory.usage_in_bytes")})
    if (left) available = std::min(available, *left);
  return available;
}

}  // namespace restkv

// Reads /proc/meminfo and the cgroup files; a container's limit, or a service's, counts, not the host's RAM.
#include "engine/host_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

namespace restkv {
namespace {

// The files of a group's folder, by version.
struct GroupFiles {
  std::string folder;  // where the groups are mounted
  std::string limit, usage;
  std::string inactive_file, active_file;  // keys of memory.stat, sub-groups included
};

std::optional<int64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (file >> value) return value;  // "max" is no number: no limit
  return std::nullopt;
}

// Page cache of the group, in bytes: the kernel gives it up before it refuses memory.
int64_t page_cache(const std::string& stat_path, const GroupFiles& files) {
  std::ifstream stat(stat_path);
  std::string key;
  int64_t value = 0, bytes = 0;
  while (stat >> key >> value)
    if (key == files.inactive_file || key == files.active_file) bytes += value;
  return bytes;
}

std::optional<int64_t> left_in_group(const std::string& folder, const GroupFiles& files) {
  const std::optional<int64_t> limit = read_number(folder + files.limit);
  const std::optional<int64_t> usage = read_number(folder + files.usage);
  if (!limit || !usage) return std::nullopt;
  const int64_t held = std::max<int64_t>(0, *usage - page_cache(folder + "memory.stat", files));
  return std::max<int64_t>(0, *limit - held);
}

// The least that the group at `path` and those around it leave, up to the one that is mounted: a container sees its own group
// there, a service one far below.
int64_t left_in_groups(std::string path, const GroupFiles& files) {
  int64_t least = std::numeric_limits<int64_t>::max();
  for (;;) {
    while (path.ends_with('/')) path.pop_back();
    if (const auto left = left_in_group(files.folder + path + "/", files)) least = std::min(least, *left);
    if (path.empty()) return least;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

// Paths of this process's groups that limit memory: "0::/path" (v2), "4:memory:/path" (v1).
struct GroupPaths {
  std::string v2, v1;
};
GroupPaths group_paths(const std::string& cgroup_path) {
  GroupPaths paths;
  std::ifstream file(cgroup_path);
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string path = line.substr(second + 1);
    std::istringstream controllers(line.substr(first + 1, second - first - 1));
    if (controllers.str().empty()) paths.v2 = path;
    for (std::string name; std::getline(controllers, name, ',');)
      if (name == "memory") paths.v1 = path;
  }
  return paths;
}

}  // namespace

int64_t available_host_memory(const std::string& root) {
  int64_t available = std::numeric_limits<int64_t>::max();
  std::ifstream meminfo(root + "proc/meminfo");
  std::string key, unit;
  int64_t kib = 0;
  while (meminfo >> key >> kib) {
    if (key == "MemAvailable:") available = kib * 1024;
    std::getline(meminfo, unit);
  }
  const GroupPaths paths = group_paths(root + "proc/self/cgroup");
  const GroupFiles v2 = {root + "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file",
                         "active_file"};
  const GroupFiles v1 = {root + "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                         "total_inactive_file", "total_active_file"};
  return std::min({available, left_in_groups(paths.v2, v2), left_in_groups(paths.v1, v1)});
}

}  // namespace restkv

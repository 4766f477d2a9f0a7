// /proc/self/cgroup has a line a hierarchy, "ID:CONTROLLERS:PATH"; that of v2 names no controllers.
#include "kernels/base/control_group.h"

#include <fstream>

namespace restkv {
namespace {

bool has_name(std::string_view names, std::string_view wanted) {
  while (!names.empty()) {
    const size_t comma = names.find(',');
    if (names.substr(0, comma) == wanted) return true;
    names.remove_prefix(comma == std::string_view::npos ? names.size() : comma + 1);
  }
  return false;
}

// From `path` up: a container may see the path that its group has on the host, of which there is but the end here, the root.
void add_folders(std::vector<std::string>& folders, const std::string& mount, std::string path) {
  for (;;) {
    while (path.ends_with('/')) path.pop_back();
    folders.push_back(mount + path);
    if (path.empty()) return;
    const size_t slash = path.rfind('/');
    path.resize(slash == std::string::npos ? 0 : slash);
  }
}

}  // namespace

std::vector<std::string> control_group_folders(std::string_view controller, const std::string& root) {
  const std::string mount = root + "/sys/fs/cgroup";
  std::string v1_path, v2_path;
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string_view names = std::string_view(line).substr(first + 1, second - first - 1);
    if (names.empty()) v2_path = line.substr(second + 1);
    if (has_name(names, controller)) v1_path = line.substr(second + 1);
  }
  std::vector<std::string> folders;
  add_folders(folders, mount, v2_path);
  add_folders(folders, mount + "/" + std::string(controller), v1_path);
  return folders;
}

std::optional<double> control_group_number(const std::string& path) {
  std::ifstream file(path);
  double value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

}  // namespace restkv

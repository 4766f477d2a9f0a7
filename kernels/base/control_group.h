// The control groups of this process: what a container or systemd lets it have of the machine. A limit may stand in its own
// group or in any above it.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace restkv {

// The folders of this process's groups for `controller` ("memory", "cpu"), v2 and v1, each from its own group up to the root
// that is visible here. In a container that root is the container's own group. `root`: for tests, instead of "/".
std::vector<std::string> control_group_folders(std::string_view controller, const std::string& root = "/");

// The first number of a group's file; nothing: no file, or "max".
std::optional<double> control_group_number(const std::string& path);

}  // namespace restkv

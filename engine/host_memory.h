// How much memory this process may still use.
#pragma once

#include <cstdint>
#include <string>

namespace restkv {

// Bytes that RAM (MemAvailable), the control groups (v2, v1; files that they hold in memory can be dropped and count as free) and
// the limit of the address space (ulimit -v) leave, whichever is less. `root`: for tests, instead of "/".
int64_t available_host_memory(const std::string& root = "/");

}  // namespace restkv

// How much memory this process may still use.
#pragma once

#include <cstdint>
#include <string>

namespace restkv {

// Bytes that RAM (MemAvailable) or the control groups of this process (v2, v1) leave, whichever is less. What a group holds of
// files in the page cache counts as left, as MemAvailable counts it: a model that was just read is there, and the plan counts
// its weights once more. `root`: where proc and sys lie.
int64_t available_host_memory(const std::string& root = "/");

}  // namespace restkv

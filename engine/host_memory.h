// How much memory this process may still use.
#pragma once

#include <cstdint>

namespace restkv {

// Bytes that RAM (MemAvailable) or the control group (v2, v1) leaves, whichever is less.
int64_t available_host_memory();

}  // namespace restkv

// What the scheduler (emulator.cpp) and the products of a warpgroup (warpgroup.cpp) know of each other.
#pragma once

#include <string>

#include "emulator/device.h"

namespace restkv::emulator {

inline constexpr uint32_t kWarpgroup = 128;

// One function of a warpgroup: the last of its threads to arrive runs `perform` for all of them.
using PerformForWarpgroup = void (*)(void* const* threads, const Place& place);
void warpgroup_collective(const char* kind, void* operands, PerformForWarpgroup perform, const Place& place);

// A block begins: nothing is on its way.
void reset_warpgroups(uint32_t num_threads);
// A copy of this thread has landed in shared memory; wgmma may not know of it before fence_proxy_async().
void note_landed_copy(const void* shared, uint32_t bytes);
// What this thread has left undone at its end; empty: nothing.
std::string unfinished_wgmma();

}  // namespace restkv::emulator

// A device as the tests of ops want it: with_host_memory() computes on the given backend, yet takes and gives memory of the
// host. Each op copies the tensors and pages it is given to the device, runs there, and copies back what it may have written;
// so one table of tests fills a column for the CPU, the emulated card and a real one.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace restkv {

// `keeps_memory`: the ops share one piece of the device's memory, which a card takes long to give; else each has one of its own
// size, and a sanitizer sees what lies beyond.
std::unique_ptr<Backend> with_host_memory(std::unique_ptr<Backend> device, bool keeps_memory = false);

}  // namespace restkv

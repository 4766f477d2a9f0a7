// A device as the tests of ops want it: with_host_memory() computes on the given backend, yet takes and gives memory of the
// host. Each op copies the tensors and pages it is given to the device, runs there, and copies back what it may have written;
// so one table of tests fills a column for the CPU, the emulated card and a real one.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace restkv {

std::unique_ptr<Backend> with_host_memory(std::unique_ptr<Backend> device);

}  // namespace restkv

// NVIDIA cards as runtimes. The only file pair that names CUDA's runtime library beside launch.h; it is linked statically
// and looks for the driver when it is first asked, so a program with it runs where there is no driver.
#pragma once

#include <memory>

#include "kernels/base/status.h"
#include "kernels/cuda/runtime.h"

namespace restkv::cuda {

// How many cards this process may use. Error: why there is none (no driver, a driver older than CUDA 13, no card).
Result<int> count_cards();

// Card `index`. Error: no such card, older than sm_80, or it refuses a context.
Result<std::unique_ptr<Runtime>> open_card(int index);

}  // namespace restkv::cuda

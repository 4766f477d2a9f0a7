// The backend on an NVIDIA card. CUDA's runtime library is linked statically and looks for the driver when it is first asked,
// so a program with it runs where there is no driver; a build without CUDA has card_absent.cpp in place of card.cpp.
#pragma once

#include <memory>

#include "kernels/base/status.h"
#include "kernels/cuda/cuda_backend.h"

namespace restkv::cuda {

// How many cards this process may use. Error: why there is none (no driver, a driver older than CUDA 13, no card).
Result<int> count_cards();

// The backend of card `index`. Error: no such card, older than sm_80, or it refuses a context.
Result<std::unique_ptr<Backend>> open_card(int index, const BackendOptions& options);

}  // namespace restkv::cuda

// The launchers, one for each op of backend.h, each in the .cu of its name; they enqueue and return. CudaBackend has checked
// nothing beyond what Backend's public op() checks.
#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/context.h"

namespace restkv::cuda {

void zero(Context& context, const Tensor& tensor);
void add(Context& context, const AddArgs& args);

}  // namespace restkv::cuda

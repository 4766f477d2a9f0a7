// The rest of observe for kIndicatorAfter: runs behind the statistics of observe.cu.
#pragma once

#include "kernels/cuda/eviction/observe_view.h"

namespace restkv::cuda {

// items: device copy of the views of args.items. most: rows of the longest head.
void observe_after(Context& context, const ObserveArgs& args, const ObserveView* items, int32_t most);

}  // namespace restkv::cuda

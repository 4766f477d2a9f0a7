// The drift's part of observe: mean index of the rows that each query attends to most.
#pragma once

#include <span>

#include "kernels/cuda/eviction/observe_view.h"

namespace restkv::cuda {

// host_items and items: the same views, here and on the device. most: rows of the longest head.
void observe_drift(Context& context, const ObserveArgs& args, std::span<const ObserveView> host_items,
                   const ObserveView* items, int32_t most);

}  // namespace restkv::cuda

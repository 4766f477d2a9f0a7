// The drift's part of observe: mean index of the rows that each query attends to most.
#pragma once

#include "kernels/cpu/eviction/tile_kernels.h"
#include "kernels/eviction.h"

namespace restkv::cpu {

// item.out.mean_index of one query of a head: of its drift_rows rows with the largest logits; of equal ones the newer.
void mean_top_index(const ObserveArgs& args, const TileKernels& kernels, const ObserveItem& item,
                    int32_t head, int64_t query);

}  // namespace restkv::cpu

// The eviction ops on the CPU (kernels/eviction.h says what they compute). Work is cut into units of (item, head, block of
// queries or rows); no sum crosses a unit except in a fixed order, so results are bitwise the same for any number of
// threads and any neighbours in the batch.
#pragma once

#include "kernels/cpu/eviction/gram_kernels.h"
#include "kernels/cpu/eviction/tile_kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/eviction.h"

namespace restkv::cpu {

void store_queries(const StoreQueriesArgs& args, ThreadPool& pool);
// `dequantize`: that of the KernelTable.
using Dequantize = void (*)(DType dtype, const void* src, float* dst, int64_t cols);
void factor_projection(const FactorProjectionArgs& args, Dequantize dequantize, const GramKernels& kernels,
                       ThreadPool& pool);
void observe(const ObserveArgs& args, const TileKernels& kernels, ThreadPool& pool);
void score(const ScoreArgs& args, const TileKernels& kernels, ThreadPool& pool);
void smooth(const SmoothArgs& args, ThreadPool& pool);
void select(const SelectArgs& args, ThreadPool& pool);
void compact(const CompactArgs& args, ThreadPool& pool);

}  // namespace restkv::cpu

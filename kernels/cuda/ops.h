// The launchers, one for each op of backend.h, each in the .cu of its name; they enqueue and return. CudaBackend has checked
// nothing beyond what Backend's public op() checks.
#pragma once

#include <algorithm>

#include "kernels/backend.h"
#include "kernels/cuda/context.h"

namespace restkv::cuda {

void zero(Context& context, const Tensor& tensor);
void gather(Context& context, const GatherArgs& args);
void rmsnorm(Context& context, const RmsNormArgs& args);
void add(Context& context, const AddArgs& args);
void matmul(Context& context, const MatmulArgs& args);
void rope_table(Context& context, const RopeTableArgs& args);
void rope_and_store(Context& context, const RopeAndStoreArgs& args);
void prefill_attention(Context& context, const PrefillAttentionArgs& args);
void decode_attention(Context& context, const DecodeAttentionArgs& args);
void glu(Context& context, const GluArgs& args);
void softcap(Context& context, const SoftcapArgs& args);
void store_pages(Context& context, const StorePagesArgs& args);
void sample(Context& context, const SampleArgs& args);
void store_queries(Context& context, const StoreQueriesArgs& args);
void factor_projection(Context& context, const FactorProjectionArgs& args);
void observe(Context& context, const ObserveArgs& args);
void score(Context& context, const ScoreArgs& args);
void smooth(Context& context, const SmoothArgs& args);
void select(Context& context, const SelectArgs& args);
void compact(Context& context, const CompactArgs& args);

// Shared memory that a block of the attention kernels takes at least, on such a device.
int32_t prefill_shared_bytes(DType cache, int32_t head_dim, const DeviceLimits& limits);
int32_t decode_shared_bytes(DType cache, int32_t head_dim);
inline int32_t attention_shared_bytes(DType cache, int32_t head_dim, const DeviceLimits& limits) {
  return std::max(prefill_shared_bytes(cache, head_dim, limits), decode_shared_bytes(cache, head_dim));
}

}  // namespace restkv::cuda

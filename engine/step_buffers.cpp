// Shapes of the start-up allocations.
#include "engine/step_buffers.h"

#include <algorithm>

#include "engine/evictor.h"

namespace restkv {

CacheShape cache_shape(const ModelConfig& config, DType dtype) {
  return {config.num_layers, config.num_kv_heads, config.group_size(), config.head_dim, dtype};
}

int64_t scratch_row_bytes(const ModelConfig& config, DType activation_type, DType cache_dtype) {
  return bytes_of(activation_type, config.hidden_size) +
         2 * bytes_of(cache_dtype, config.num_kv_heads * config.head_dim);
}

int64_t logit_rows(const EngineOptions& options) { return std::max(options.max_num_seqs, 16); }

StepBuffers StepBuffers::make(Arena& arena, const ModelConfig& config, const EngineOptions& options,
                              DType activation_type, int64_t max_model_len) {
  const int64_t rows = options.max_num_batched_tokens;
  const int64_t kv_cols = config.num_kv_heads * config.head_dim;
  StepBuffers buffers;
  buffers.residual = arena.tensor(activation_type, rows, config.hidden_size);
  buffers.k = arena.tensor(options.cache_dtype, rows, kv_cols);
  buffers.v = arena.tensor(options.cache_dtype, rows, kv_cols);
  for (Tensor& tail : buffers.tails)
    tail =
        arena.tensor(activation_type, std::min<int64_t>(Evictor::kMaxWindow, max_model_len) + kMaxProbeTokens,
                     config.num_heads * config.head_dim);
  for (Tensor& sums : buffers.sums) sums = arena.tensor(DType::kF32, config.num_kv_heads, max_model_len);
  buffers.cuts = arena.tensor(DType::kU8, 1, Evictor::workspace_bytes(config, max_model_len));
  buffers.drawn = arena.tensor(DType::kI32, 1, logit_rows(options));
  return buffers;
}

}  // namespace restkv

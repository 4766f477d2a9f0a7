// The sizes of everything the executor allocates at start, each said once: the plan counts with the code that allocates.
#pragma once

#include <cstdint>

#include "engine/cache/kv_cache.h"
#include "engine/engine.h"
#include "engine/model/model_config.h"
#include "kernels/base/arena.h"

namespace restkv {

// Scratch is handed out in blocks of so many rows.
inline constexpr int64_t kScratchBlockRows = 256;
inline int64_t scratch_blocks(int64_t rows) { return (rows + kScratchBlockRows - 1) / kScratchBlockRows; }

CacheShape cache_shape(const ModelConfig& config, DType dtype);
// Residual, K and V of one prompt row.
int64_t scratch_row_bytes(const ModelConfig& config, DType cache_dtype);
// Rows of logits that are computed at once: one for each running sequence.
int64_t logit_rows(const EngineOptions& options);

// The buffers of a step beside the transformer's own. R = max_num_batched_tokens.
struct StepBuffers {
  Tensor residual;  // [R, M]
  Tensor k, v;      // [R, K*D] of a step's prompts, in the cache's type
  Tensor tail;      // [W, H*D] last queries of the long prompt in work
  Tensor sums;      // [K, max_model_len] h2o's sums of the prompt in work
  Tensor cuts;      // [1, bytes] u8 workspace of the evictor

  static StepBuffers make(Arena& arena, const ModelConfig& config, const EngineOptions& options,
                          int64_t max_model_len);
};

}  // namespace restkv

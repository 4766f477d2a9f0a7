// The sizes of everything the executor allocates at start, each said once: the plan counts with the code that allocates.
#pragma once

#include <array>
#include <cstdint>

#include "engine/cache/kv_cache.h"
#include "engine/engine.h"
#include "engine/model/model_config.h"
#include "engine/scratch_arena.h"
#include "kernels/base/arena.h"

namespace restkv {

CacheShape cache_shape(const ModelConfig& config, DType dtype);
// Residual, K and V of one prompt row.
int64_t scratch_row_bytes(const ModelConfig& config, DType activation_type, DType cache_dtype);
// Rows of logits that are computed at once: one for each running sequence.
int64_t logit_rows(const EngineOptions& options);

// The buffers of a step beside the transformer's own. R = max_num_batched_tokens.
struct StepBuffers {
  Tensor residual;  // [R, M]
  Tensor k, v;      // [R, K*D] of a step's prompt rows, in the cache's type
  std::array<Tensor, kMaxPrefills>
      tails;  // [W + probe, H*D] last queries, by the slot of a long prompt in work
  std::array<Tensor, kMaxPrefills + 1> sums;  // [K, max_model_len] h2o's sums; the last one is the steps'
  Tensor cuts;                                // [1, bytes] u8 workspace of the evictor
  Tensor drawn;  // [1, logit_rows] i32 tokens that the last step drew, for the embedding of the next

  static StepBuffers make(Arena& arena, const ModelConfig& config, const EngineOptions& options,
                          DType activation_type, int64_t max_model_len);
};

}  // namespace restkv

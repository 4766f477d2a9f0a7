// What every attention op and every eviction op of a layer must agree on.
#pragma once

#include <cstdint>

namespace restkv {

struct AttentionShape {
  int32_t num_heads = 0;     // H
  int32_t num_kv_heads = 0;  // K
  int32_t head_dim = 0;      // D
  float scale = 0.0f;        // of q.k
  float softcap = 0.0f;      // logits = cap * tanh(logits / cap); 0: none
  int32_t window = 0;        // query at p sees positions > p - window; 0: all
};

}  // namespace restkv

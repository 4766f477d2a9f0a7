// R_g of the output projection: ||W_g x|| = ||R_g x|| for every x, W_g [M, D] the columns of query head g, R_g [D, D] the
// triangle of its QR, in f64 (restkv.md section 3). 1/32 of the work of W_g for an 8B model.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/base/tensor.h"

namespace restkv {

// Writes R_g transposed, head below head: out [H*D, D] f32, out[g*D + d][e] = R_g[e][d]. weight [M, H*D] of any type.
void project_output_heads(const ConstTensor& weight, int64_t num_heads, int64_t head_dim, float* out);

// The same for query head g alone: out [D, D]. Work to cut a layer into for threads.
void project_output_head(const ConstTensor& weight, int64_t head, int64_t head_dim, float* out);

}  // namespace restkv

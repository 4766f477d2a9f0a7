// The f64 inner loops of factor_projection for one processor level. Lanes run over the columns of a result: each number is one
// chain in rising order of the rows, whatever the lanes.
#pragma once

#include <cstdint>

namespace restkv::cpu {

// A panel of W [rows, n] lies as strips of columns, [padded / kStrip][rows][kStrip] f64, zeros in the columns from n on.
inline constexpr int64_t kStrip = 16;

struct GramKernels {
  // One row of a panel: x [padded], to `panel` and on, strip_stride from strip to strip.
  void (*widen_row)(const float* x, int64_t padded, double* panel, int64_t strip_stride) = nullptr;
  // g [padded, padded] += panel^T panel, in the blocks of kStrip columns that reach the diagonal or lie above it. The rows of a
  // panel are summed first: over many panels that loses less. Products of two f32 are exact in f64, so that fused and
  // separate additions give the same bits.
  void (*add_gram)(const double* panel, int64_t rows, int64_t padded, double* g) = nullptr;
  // r[k][j] -= sum over i < k of r[i][k] r[i][j], for j >= k of r [padded, padded]; some r[k][j < k] become anything.
  void (*subtract_rows)(double* r, int64_t k, int64_t padded) = nullptr;
};

// The ones of the processor level that Highway has chosen (cpu_backend.cpp, make_table).
void set_gram_kernels(GramKernels& table);

}  // namespace restkv::cpu

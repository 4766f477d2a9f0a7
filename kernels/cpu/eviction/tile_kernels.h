// The inner loops of observe and score over a tile of rows, for one processor level.
// Lanes run over queries or over head dims, never over the rows of a sum: each output is one chain of multiply-adds in
// rising order, so its bits do not depend on the tile, the thread or the neighbours.
#pragma once

#include <cstdint>

namespace restkv::cpu {

struct TileKernels {
  // c[i][j] (+)= sum_k a[i * a_row + k * a_col] * b[k * b_stride + j]; i < m, j < n, k < depth.
  void (*product)(const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t b_stride, int64_t m,
                  int64_t n, int64_t depth, float* c, int64_t c_stride, bool accumulate) = nullptr;
  // The same, dense columns, for b [n, n] that is zero above its diagonal (R_g transposed).
  void (*triangle_product)(const float* a, int64_t a_row, const float* b, int64_t b_stride, int64_t m,
                           int64_t n, float* c, int64_t c_stride) = nullptr;
  // c[i][t] = sum_e (p[e * p_stride + t] - u[i * u_stride + e])^2; t < n, a multiple of 16.
  void (*distance)(const float* p, int64_t p_stride, const float* u, int64_t u_stride, int64_t m, int64_t n,
                   int64_t depth, float* c, int64_t c_stride) = nullptr;
  // out[i] = <rows[i], q> of `dim` floats.
  void (*dot_rows)(const float* rows, int64_t stride, int64_t m, const float* q, int64_t dim,
                   float* out) = nullptr;
  // Largest of each of 16 columns of x [m, 16] that is above best[t] as it comes in, first row of equal ones: best and its
  // row; best_row stays where none is. NaN is never larger.
  void (*column_max)(const float* x, int64_t m, float* best, float* best_row) = nullptr;
  // sum[t] += x[0][t] + ... in this order, 16 columns.
  void (*column_sums)(const float* x, int64_t m, float* sum) = nullptr;
  // y[i] = y[i] * factor + factor * x[i].
  void (*join_scaled)(const float* x, int64_t n, float factor, float* y) = nullptr;
  // x[i][t] = exp(x[i][t] - shift[t]); n a multiple of 16, x dense. NaN stays, exp(-inf) is 0.
  void (*exp_columns)(float* x, int64_t m, int64_t n, const float* shift) = nullptr;
  // x = cap * tanh(x / cap).
  void (*softcap)(float* x, int64_t n, float cap) = nullptr;
  // a[i] = a[i] / (1 - a[i]) * sqrt(d[i]); n a multiple of 16, as in the sums.
  void (*indicator)(float* a, const float* d, int64_t n) = nullptr;
  float (*sum)(const float* x, int64_t n) = nullptr;
  float (*sum_of_squares)(const float* x, int64_t n) = nullptr;
};

// The ones of the processor level that Highway has chosen (cpu_backend.cpp, make_table).
void set_tile_kernels(TileKernels& table);

}  // namespace restkv::cpu

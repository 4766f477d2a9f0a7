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
  // Largest of each of 16 columns of x [m, stride] that is above best[t] as it comes in, first row of equal ones: best and
  // its row; best_row stays where none is. NaN is never larger.
  void (*column_max)(const float* x, int64_t stride, int64_t m, float* best, float* best_row) = nullptr;
  // sum[t] += x[0][t] + ... in this order, 16 dense columns.
  void (*column_sums)(const float* x, int64_t m, float* sum) = nullptr;
  // y[d][t] = y[d][t] * factor[t] + share[t] * x[d][t]; 16 dense columns.
  void (*join_columns)(const float* x, int64_t depth, const float* factor, const float* share,
                       float* y) = nullptr;
  // 16 dense columns: output = (top + others) / (1 + rest) - mean[d]; output_rest = others / rest - mean[d], -mean[d] where
  // rest is not above 0. The outputs may be top and others.
  void (*split_outputs)(const float* top, const float* others, const float* rest, const float* mean,
                        int64_t depth, float* output, float* output_rest) = nullptr;
  // sum[i] += x[0][i] + ... in this order; x [m, n] dense.
  void (*add_rows)(const float* x, int64_t m, int64_t n, float* sum) = nullptr;
  // x[j][i] -= mean[i]; x [m, n] dense.
  void (*centre_rows)(const float* mean, int64_t m, int64_t n, float* x) = nullptr;
  // out[i][t] = exp(x[r][t] - shift[t]) with r = rows[i], i where rows is null; n a multiple of 16, out dense; it may be x.
  // NaN stays, exp(-inf) is 0.
  void (*exp_columns)(const float* x, int64_t x_stride, const int64_t* rows, int64_t m, int64_t n,
                      const float* shift, float* out) = nullptr;
  // x = cap * tanh(x / cap).
  void (*softcap)(float* x, int64_t n, float cap) = nullptr;
  // a[i] = a[i] / (1 - a[i]) * sqrt(d[i]); n a multiple of 16, as in the sums.
  void (*indicator)(float* a, const float* d, int64_t n) = nullptr;
  // out[i] = the sum, or the sum of squares, of row i of x [m, n], dense; n a multiple of 16.
  void (*row_sums)(const float* x, int64_t m, int64_t n, float* out) = nullptr;
  void (*row_sums_of_squares)(const float* x, int64_t m, int64_t n, float* out) = nullptr;
};

// The ones of the processor level that Highway has chosen (cpu_backend.cpp, make_table).
void set_tile_kernels(TileKernels& table);

}  // namespace restkv::cpu

// Small dense products, distances and exponentials of the eviction ops. Blocks of 8 vectors (8 chains) keep the
// multiply-add units busy; a block only chooses which chains run side by side.
#include "kernels/cpu/eviction/tile_kernels.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/eviction/tile_kernels.cpp"
#include "kernels/cpu/targets.h"

#include "kernels/cpu/vector_math.h"

HWY_BEFORE_NAMESPACE();
namespace restkv::cpu::HWY_NAMESPACE {

// Rows [0, ROWS) of c, columns [0, COLS * kLanes).
template <int ROWS, int COLS>
HWY_INLINE void product_block(const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t b_stride,
                              int64_t depth, float* c, int64_t c_stride, bool accumulate) {
  V acc[ROWS][COLS];
  for (int i = 0; i < ROWS; ++i) {
    for (int j = 0; j < COLS; ++j) acc[i][j] = accumulate ? load(c + i * c_stride + j * kLanes) : zero();
  }
  for (int64_t k = 0; k < depth; ++k) {
    V bv[COLS];
    for (int j = 0; j < COLS; ++j) bv[j] = load(b + k * b_stride + j * kLanes);
    for (int i = 0; i < ROWS; ++i) {
      const V av = set1(a[i * a_row + k * a_col]);
      for (int j = 0; j < COLS; ++j) acc[i][j] = mul_add(av, bv[j], acc[i][j]);
    }
  }
  for (int i = 0; i < ROWS; ++i) {
    for (int j = 0; j < COLS; ++j) store(acc[i][j], c + i * c_stride + j * kLanes);
  }
}

template <int COLS>
HWY_INLINE void product_columns(const float* a, int64_t a_row, int64_t a_col, const float* b,
                                int64_t b_stride, int64_t m, int64_t depth, float* c, int64_t c_stride,
                                bool accumulate) {
  constexpr int kRows = 8 / COLS;  // 8 chains
  int64_t i = 0;
  for (; i + kRows <= m; i += kRows) {
    product_block<kRows, COLS>(a + i * a_row, a_row, a_col, b, b_stride, depth, c + i * c_stride, c_stride,
                               accumulate);
  }
  for (; i < m; ++i) {
    product_block<1, COLS>(a + i * a_row, a_row, a_col, b, b_stride, depth, c + i * c_stride, c_stride,
                           accumulate);
  }
}

void product(const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t b_stride, int64_t m,
             int64_t n, int64_t depth, float* c, int64_t c_stride, bool accumulate) {
  int64_t j = 0;
  for (; j + 2 * kLanes <= n; j += 2 * kLanes) {
    product_columns<2>(a, a_row, a_col, b + j, b_stride, m, depth, c + j, c_stride, accumulate);
  }
  for (; j + kLanes <= n; j += kLanes) {
    product_columns<1>(a, a_row, a_col, b + j, b_stride, m, depth, c + j, c_stride, accumulate);
  }
  if (j == n) return;
  for (int64_t i = 0; i < m; ++i) {  // the last n - j < kLanes columns
    V acc = accumulate ? load_first(c + i * c_stride + j, n - j) : zero();
    for (int64_t k = 0; k < depth; ++k) {
      acc = mul_add(set1(a[i * a_row + k * a_col]), load_first(b + k * b_stride + j, n - j), acc);
    }
    store_first(acc, c + i * c_stride + j, n - j);
  }
}

// c = a b for lower triangular b: a block of columns from j on needs the rows k >= j only.
void triangle_product(const float* a, int64_t a_row, const float* b, int64_t b_stride, int64_t m, int64_t n,
                      float* c, int64_t c_stride) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    product_columns<1>(a + j, a_row, 1, b + j * b_stride + j, b_stride, m, n - j, c + j, c_stride, false);
  }
  if (j < n)
    product(a + j, a_row, 1, b + j * b_stride + j, b_stride, m, n - j, n - j, c + j, c_stride, false);
}

template <int ROWS>
HWY_INLINE void distance_block(const float* p, int64_t p_stride, const float* u, int64_t u_stride,
                               int64_t depth, float* c, int64_t c_stride) {
  V acc[ROWS];
  for (V& v : acc) v = zero();
  for (int64_t e = 0; e < depth; ++e) {
    const V pv = load(p + e * p_stride);
    for (int i = 0; i < ROWS; ++i) {
      const V difference = pv - set1(u[i * u_stride + e]);
      acc[i] = mul_add(difference, difference, acc[i]);
    }
  }
  for (int i = 0; i < ROWS; ++i) store(acc[i], c + i * c_stride);
}

void distance(const float* p, int64_t p_stride, const float* u, int64_t u_stride, int64_t m, int64_t n,
              int64_t depth, float* c, int64_t c_stride) {
  constexpr int kBlock = 8;
  for (int64_t t = 0; t < n; t += kLanes) {
    int64_t i = 0;
    for (; i + kBlock <= m; i += kBlock) {
      distance_block<kBlock>(p + t, p_stride, u + i * u_stride, u_stride, depth, c + i * c_stride + t,
                             c_stride);
    }
    for (; i < m; ++i) {
      distance_block<1>(p + t, p_stride, u + i * u_stride, u_stride, depth, c + i * c_stride + t, c_stride);
    }
  }
}

void dot_rows(const float* rows, int64_t stride, int64_t m, const float* q, int64_t dim, float* out) {
  for (int64_t i = 0; i < m; ++i) {
    const float* row = rows + i * stride;
    V acc = zero();
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) acc = mul_add(load(row + d), load(q + d), acc);
    if (d < dim) acc = mul_add(load_first(row + d, dim - d), load_first(q + d, dim - d), acc);
    out[i] = sum(acc);
  }
}

void column_max(const float* x, int64_t m, float* best, float* best_row) {
  for (int64_t t = 0; t < 16; t += kLanes) {
    V top = load(best + t), row = load(best_row + t);
    for (int64_t j = 0; j < m; ++j) {
      const V v = load(x + j * 16 + t);
      row = select_less(top, v, set1(static_cast<float>(j)), row);
      top = select_less(top, v, v, top);
    }
    store(top, best + t);
    store(row, best_row + t);
  }
}

void column_sums(const float* x, int64_t m, float* sum) {
  for (int64_t t = 0; t < 16; t += kLanes) {
    V acc = load(sum + t);
    for (int64_t j = 0; j < m; ++j) acc = acc + load(x + j * 16 + t);
    store(acc, sum + t);
  }
}

void join_scaled(const float* x, int64_t n, float factor, float* y) {
  const V f = set1(factor);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(mul_add(load(y + i), f, f * load(x + i)), y + i);
  if (i < n) store_first(mul_add(load_first(y + i, n - i), f, f * load_first(x + i, n - i)), y + i, n - i);
}

void exp_columns(float* x, int64_t m, int64_t n, const float* shift) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t t = 0; t < n; t += kLanes) store(exp(load(x + i * n + t) - load(shift + t)), x + i * n + t);
  }
}

void softcap(float* x, int64_t n, float cap) {
  int64_t i = 0;
  const V scale = set1(cap);
  for (; i + kLanes <= n; i += kLanes) store(scale * tanh(load(x + i) / scale), x + i);
  if (i < n) store_first(scale * tanh(load_first(x + i, n - i) / scale), x + i, n - i);
}

HWY_INLINE V square_root(V x) {
#if RESTKV_VECTORS
  return hn::Sqrt(x);
#else
  return V{std::sqrt(x[0]), std::sqrt(x[1]), std::sqrt(x[2]), std::sqrt(x[3])};
#endif
}

void indicator(float* a, const float* d, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const V weight = load(a + i);
    store(weight / (set1(1.0f) - weight) * square_root(load(d + i)), a + i);
  }
}

float sum_of(const float* x, int64_t n) {
  V acc = zero();
  for (int64_t i = 0; i < n; i += kLanes) acc = acc + load(x + i);
  return sum(acc);
}

float sum_of_squares(const float* x, int64_t n) {
  V acc = zero();
  for (int64_t i = 0; i < n; i += kLanes) acc = mul_add(load(x + i), load(x + i), acc);
  return sum(acc);
}

void fill_tile_kernels(TileKernels& table) {
  table = {.product = product,
           .triangle_product = triangle_product,
           .distance = distance,
           .dot_rows = dot_rows,
           .column_max = column_max,
           .column_sums = column_sums,
           .join_scaled = join_scaled,
           .exp_columns = exp_columns,
           .softcap = softcap,
           .indicator = indicator,
           .sum = sum_of,
           .sum_of_squares = sum_of_squares};
}

}  // namespace restkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace restkv::cpu {

HWY_EXPORT(fill_tile_kernels);

void set_tile_kernels(TileKernels& table) { HWY_DYNAMIC_DISPATCH(fill_tile_kernels)(table); }

}  // namespace restkv::cpu
#endif

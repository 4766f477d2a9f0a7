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

// Rows [0, ROWS) of c, columns [0, COLS * kLanes). kDense: a_row is 1, so that the rows' operands lie side by side and need
// one address.
template <int ROWS, int COLS, bool kDense>
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
      const V av = set1(a[(kDense ? i : i * a_row) + k * a_col]);
      for (int j = 0; j < COLS; ++j) acc[i][j] = mul_add(av, bv[j], acc[i][j]);
    }
  }
  for (int i = 0; i < ROWS; ++i) {
    for (int j = 0; j < COLS; ++j) store(acc[i][j], c + i * c_stride + j * kLanes);
  }
}

template <int COLS, bool kDense>
HWY_INLINE void product_columns(const float* a, int64_t a_row, int64_t a_col, const float* b,
                                int64_t b_stride, int64_t m, int64_t depth, float* c, int64_t c_stride,
                                bool accumulate) {
  constexpr int kRows = 8 / COLS;  // 8 chains
  int64_t i = 0;
  const auto block = [&]<int ROWS>() HWY_ATTR __attribute__((always_inline)) {
    if (i + ROWS > m) return false;
    product_block<ROWS, COLS, kDense>(a + i * a_row, a_row, a_col, b, b_stride, depth, c + i * c_stride,
                                      c_stride, accumulate);
    i += ROWS;
    return true;
  };
  while (block.template operator()<kRows>()) {
  }
  // What is left has fewer chains; as few rows as there can be are alone.
  if constexpr (kRows > 4) block.template operator()<4>();
  block.template operator()<2>();
  block.template operator()<1>();
}

template <bool kDense>
HWY_INLINE void product_any(const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t b_stride,
                            int64_t m, int64_t n, int64_t depth, float* c, int64_t c_stride,
                            bool accumulate) {
  int64_t j = 0;
  for (; j + 2 * kLanes <= n; j += 2 * kLanes) {
    product_columns<2, kDense>(a, a_row, a_col, b + j, b_stride, m, depth, c + j, c_stride, accumulate);
  }
  for (; j + kLanes <= n; j += kLanes) {
    product_columns<1, kDense>(a, a_row, a_col, b + j, b_stride, m, depth, c + j, c_stride, accumulate);
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

void product(const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t b_stride, int64_t m,
             int64_t n, int64_t depth, float* c, int64_t c_stride, bool accumulate) {
  if (a_row == 1) {
    product_any<true>(a, 1, a_col, b, b_stride, m, n, depth, c, c_stride, accumulate);
  } else {
    product_any<false>(a, a_row, a_col, b, b_stride, m, n, depth, c, c_stride, accumulate);
  }
}

// c = a b for lower triangular b: a block of columns from j on needs the rows k >= j only.
void triangle_product(const float* a, int64_t a_row, const float* b, int64_t b_stride, int64_t m, int64_t n,
                      float* c, int64_t c_stride) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    product_columns<1, false>(a + j, a_row, 1, b + j * b_stride + j, b_stride, m, n - j, c + j, c_stride,
                              false);
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
  for (int64_t t = 0; t < n; t += kLanes) {
    int64_t i = 0;
    const auto block = [&]<int ROWS>() HWY_ATTR {
      if (i + ROWS > m) return false;
      distance_block<ROWS>(p + t, p_stride, u + i * u_stride, u_stride, depth, c + i * c_stride + t,
                           c_stride);
      i += ROWS;
      return true;
    };
    while (block.template operator()<8>()) {
    }
    block.template operator()<4>();
    block.template operator()<2>();
    block.template operator()<1>();
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

void column_max(const float* x, int64_t stride, int64_t m, float* best, float* best_row) {
  for (int64_t t = 0; t < 16; t += kLanes) {
    V top = load(best + t), row = load(best_row + t);
    for (int64_t j = 0; j < m; ++j) {
      const V v = load(x + j * stride + t);
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

void join_columns(const float* x, int64_t depth, const float* factor, const float* share, float* y) {
  for (int64_t t = 0; t < 16; t += kLanes) {
    const V f = load(factor + t), s = load(share + t);
    for (int64_t d = 0; d < depth; ++d)
      store(mul_add(load(y + d * 16 + t), f, s * load(x + d * 16 + t)), y + d * 16 + t);
  }
}

void split_outputs(const float* top, const float* others, const float* rest, const float* mean, int64_t depth,
                   float* output, float* output_rest) {
  for (int64_t t = 0; t < 16; t += kLanes) {
    const V mass = load(rest + t), all = set1(1.0f) + mass;
    for (int64_t d = 0; d < depth; ++d) {
      const V a = load(others + d * 16 + t), m = set1(mean[d]);
      store((load(top + d * 16 + t) + a) / all - m, output + d * 16 + t);
      store(select_less(zero(), mass, a / mass, zero()) - m, output_rest + d * 16 + t);
    }
  }
}

void add_rows(const float* x, int64_t m, int64_t n, float* sum) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    V acc = load(sum + i);
    for (int64_t j = 0; j < m; ++j) acc = acc + load(x + j * n + i);
    store(acc, sum + i);
  }
  for (; i < n; ++i) {
    for (int64_t j = 0; j < m; ++j) sum[i] += x[j * n + i];
  }
}

void centre_rows(const float* mean, int64_t m, int64_t n, float* x) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const V c = load(mean + i);
    for (int64_t j = 0; j < m; ++j) store(load(x + j * n + i) - c, x + j * n + i);
  }
  for (; i < n; ++i) {
    for (int64_t j = 0; j < m; ++j) x[j * n + i] -= mean[i];
  }
}

void exp_columns(const float* x, int64_t x_stride, const int64_t* rows, int64_t m, int64_t n,
                 const float* shift, float* out) {
  for (int64_t i = 0; i < m; ++i) {
    const float* row = x + (rows ? rows[i] : i) * x_stride;
    for (int64_t t = 0; t < n; t += kLanes) store(exp(load(row + t) - load(shift + t)), out + i * n + t);
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

// out[i] = the sum of row i of x [m, n], each term made by add(sum so far, x).
template <class Add>
HWY_INLINE void sum_rows(const float* x, int64_t m, int64_t n, const Add& add, float* out) {
  int64_t i = 0;
  for (; i + 4 <= m; i += 4) {
    V acc[4] = {zero(), zero(), zero(), zero()};
    for (int64_t t = 0; t < n; t += kLanes) {
      for (int r = 0; r < 4; ++r) acc[r] = add(acc[r], load(x + (i + r) * n + t));
    }
    sum4(acc[0], acc[1], acc[2], acc[3], out + i);
  }
  for (; i < m; ++i) {
    V acc = zero();
    for (int64_t t = 0; t < n; t += kLanes) acc = add(acc, load(x + i * n + t));
    out[i] = sum(acc);
  }
}

void row_sums(const float* x, int64_t m, int64_t n, float* out) {
  sum_rows(
      x, m, n, [](V acc, V v) HWY_ATTR { return acc + v; }, out);
}

void row_sums_of_squares(const float* x, int64_t m, int64_t n, float* out) {
  sum_rows(
      x, m, n, [](V acc, V v) HWY_ATTR { return mul_add(v, v, acc); }, out);
}

void fill_tile_kernels(TileKernels& table) {
  table = {.product = product,
           .triangle_product = triangle_product,
           .distance = distance,
           .dot_rows = dot_rows,
           .column_max = column_max,
           .column_sums = column_sums,
           .join_columns = join_columns,
           .split_outputs = split_outputs,
           .add_rows = add_rows,
           .centre_rows = centre_rows,
           .exp_columns = exp_columns,
           .softcap = softcap,
           .indicator = indicator,
           .row_sums = row_sums,
           .row_sums_of_squares = row_sums_of_squares};
}

}  // namespace restkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace restkv::cpu {

HWY_EXPORT(fill_tile_kernels);

void set_tile_kernels(TileKernels& table) { HWY_DYNAMIC_DISPATCH(fill_tile_kernels)(table); }

}  // namespace restkv::cpu
#endif

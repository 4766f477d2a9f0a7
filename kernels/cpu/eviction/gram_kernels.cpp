// Blocks of kRows x 2 vectors of sums stay in registers over the rows of a panel; panels are small enough for the caches.
#include "kernels/cpu/eviction/gram_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/eviction/gram_kernels.cpp"
#include "kernels/cpu/targets.h"

#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace restkv::cpu::HWY_NAMESPACE {

// VD holds kDoubles doubles, half as many as V holds floats.
inline constexpr int kDoubles = kLanes / 2;
static_assert(kStrip % (2 * kDoubles) == 0);
inline constexpr int kRows = kDoubles == 8 ? 8 : 4;  // 16 sums in 32 registers, else 8 in 16

#if RESTKV_VECTORS
using DD = hn::ScalableTag<double>;
using VD = hn::Vec<DD>;

HWY_INLINE VD load_doubles(const double* p) { return hn::LoadU(DD(), p); }
HWY_INLINE void store_doubles(VD v, double* p) { hn::StoreU(v, DD(), p); }
HWY_INLINE VD set_doubles(double x) { return hn::Set(DD(), x); }
HWY_INLINE VD multiply_add(VD a, VD b, VD c) { return hn::MulAdd(a, b, c); }
HWY_INLINE VD multiply_subtract(VD a, VD b, VD c) { return hn::NegMulAdd(a, b, c); }  // c - a*b
HWY_INLINE VD widen(const float* p) { return hn::PromoteTo(DD(), hn::LoadU(hn::Rebind<float, DD>(), p)); }
#else
using VD = double __attribute__((vector_size(16)));

HWY_INLINE VD load_doubles(const double* p) {
  VD v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
HWY_INLINE void store_doubles(VD v, double* p) { std::memcpy(p, &v, sizeof(v)); }
HWY_INLINE VD set_doubles(double x) { return VD{x, x}; }
HWY_INLINE VD multiply_add(VD a, VD b, VD c) { return a * b + c; }
HWY_INLINE VD multiply_subtract(VD a, VD b, VD c) { return c - a * b; }
HWY_INLINE VD widen(const float* p) { return VD{static_cast<double>(p[0]), static_cast<double>(p[1])}; }
#endif

void widen_row(const float* x, int64_t padded, double* panel, int64_t strip_stride) {
  for (int64_t j = 0; j < padded; j += kStrip) {
    for (int64_t i = 0; i < kStrip; i += kDoubles)
      store_doubles(widen(x + j + i), panel + j / kStrip * strip_stride + i);
  }
}

// c [kRows, 2 * kDoubles] += a^T b; a, b: columns of strips.
HWY_INLINE void gram_block(const double* a, const double* b, int64_t rows, double* c, int64_t c_stride) {
  VD acc[kRows][2];
  for (int i = 0; i < kRows; ++i) acc[i][0] = acc[i][1] = set_doubles(0.0);
  for (int64_t r = 0; r < rows; ++r) {
    const VD b0 = load_doubles(b + r * kStrip), b1 = load_doubles(b + r * kStrip + kDoubles);
    for (int i = 0; i < kRows; ++i) {
      const VD av = set_doubles(a[r * kStrip + i]);
      acc[i][0] = multiply_add(av, b0, acc[i][0]);
      acc[i][1] = multiply_add(av, b1, acc[i][1]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    double* to = c + i * c_stride;
    store_doubles(load_doubles(to) + acc[i][0], to);
    store_doubles(load_doubles(to + kDoubles) + acc[i][1], to + kDoubles);
  }
}

void add_gram(const double* panel, int64_t rows, int64_t padded, double* g) {
  for (int64_t strip = 0; strip < padded; strip += kStrip) {
    const double* b = panel + strip * rows;
    for (int64_t j = 0; j < kStrip; j += 2 * kDoubles) {
      for (int64_t i = 0; i < strip + kStrip; i += kRows) {
        gram_block(panel + i / kStrip * kStrip * rows + i % kStrip, b + j, rows, g + i * padded + strip + j,
                   padded);
      }
    }
  }
}

// Columns [j, j + N * kDoubles) of row k.
template <int N>
HWY_INLINE void subtract_block(double* r, int64_t k, int64_t j, int64_t padded) {
  double* row = r + k * padded + j;
  VD acc[N];
  for (int n = 0; n < N; ++n) acc[n] = load_doubles(row + n * kDoubles);
  for (int64_t i = 0; i < k; ++i) {
    const double* above = r + i * padded;
    const VD factor = set_doubles(above[k]);
    for (int n = 0; n < N; ++n)
      acc[n] = multiply_subtract(factor, load_doubles(above + j + n * kDoubles), acc[n]);
  }
  for (int n = 0; n < N; ++n) store_doubles(acc[n], row + n * kDoubles);
}

void subtract_rows(double* r, int64_t k, int64_t padded) {
  int64_t j = k / kStrip * kStrip;
  for (; j + 8 * kDoubles <= padded; j += 8 * kDoubles) subtract_block<8>(r, k, j, padded);
  for (; j < padded; j += 2 * kDoubles) subtract_block<2>(r, k, j, padded);
}

void fill_gram_kernels(GramKernels& table) {
  table = {.widen_row = widen_row, .add_gram = add_gram, .subtract_rows = subtract_rows};
}

}  // namespace restkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace restkv::cpu {

HWY_EXPORT(fill_gram_kernels);

void set_gram_kernels(GramKernels& table) { HWY_DYNAMIC_DISPATCH(fill_gram_kernels)(table); }

}  // namespace restkv::cpu
#endif

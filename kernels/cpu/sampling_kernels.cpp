// The two passes over a row of logits that sampling needs: the largest value, and the sum of exponentials.
#include <limits>

#include "kernels/cpu/kernel_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sampling_kernels.cpp"
#include "kernels/cpu/targets.h"

#include "kernels/cpu/vector_math.h"

HWY_BEFORE_NAMESPACE();
namespace restkv::cpu::HWY_NAMESPACE {

float max_of(const float* x, int64_t n) {
  V best = set1(-std::numeric_limits<float>::infinity());
  V products = zero();  // NaN once an element is NaN or infinite
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const V v = load(x + i);
    best = max(v, best);
    products = mul_add(v, zero(), products);
  }
  float result = max_lane(best);
  bool has_nan = false;
  if (const float s = sum(products); s != s) {  // tell infinities from NaN
    for (int64_t j = 0; j < i; ++j) has_nan = has_nan || x[j] != x[j];
  }
  for (; i < n; ++i) {
    has_nan = has_nan || x[i] != x[i];
    result = x[i] > result ? x[i] : result;
  }
  return has_nan ? std::numeric_limits<float>::quiet_NaN() : result;
}

double exp_sum(const float* x, int64_t n, float max, float temperature, float* out) {
  constexpr int64_t kBlock = 4096;  // sums of f32 lanes this short keep their digits
  const V base = set1(max), t = set1(temperature);
  double total = 0.0;
  for (int64_t block = 0; block < n; block += kBlock) {
    const int64_t end = block + kBlock < n ? block + kBlock : n;
    V acc = zero();
    int64_t i = block;
    for (; i + kLanes <= end; i += kLanes) {
      const V p = exp((load(x + i) - base) / t);
      if (out != nullptr) store(p, out + i);
      acc = acc + p;
    }
    total += static_cast<double>(sum(acc));
    if (i < end) {
      alignas(64) float p[kLanes];
      store(exp((load_first(x + i, end - i) - base) / t), p);
      for (int64_t j = i; j < end; ++j) {
        if (out != nullptr) out[j] = p[j - i];
        total += static_cast<double>(p[j - i]);
      }
    }
  }
  return total;
}

void fill_sampling(KernelTable& table) {
  table.max = max_of;
  table.exp_sum = exp_sum;
}

}  // namespace restkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace restkv::cpu {

HWY_EXPORT(fill_sampling);
void set_sampling_kernels(KernelTable& table) { HWY_DYNAMIC_DISPATCH(fill_sampling)(table); }

}  // namespace restkv::cpu
#endif

// Row-wise ops, all bound by memory: RMSNorm, residual add, gated activations, soft cap, rotation, type conversion.
//   RMSNorm: out = x / sqrt(mean(x^2) + eps) * (offset + weight); lane i sums the squares of columns i, i + kLanes, ...
#include <cmath>

#include "kernels/base/float16.h"
#include "kernels/cpu/kernel_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cpp"
#include "kernels/cpu/targets.h"

#include "kernels/cpu/vector_math.h"
#include "kernels/cpu/weight_blocks.h"

HWY_BEFORE_NAMESPACE();
namespace restkv::cpu::HWY_NAMESPACE {

// out[i] = f(a[i], b[i]); the last partial vector is padded with zeros.
template <class F>
HWY_INLINE void map2(const float* a, const float* b, float* out, int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(f(load(a + i), load(b + i)), out + i);
  if (i < n) store_first(f(load_first(a + i, n - i), load_first(b + i, n - i)), out + i, n - i);
}

HWY_INLINE float sum_of_squares(const float* x, int64_t n) {
  V acc = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const V v = load(x + i);
    acc = mul_add(v, v, acc);
  }
  if (i < n) {
    const V v = load_first(x + i, n - i);
    acc = mul_add(v, v, acc);
  }
  return sum(acc);
}

void rmsnorm(const RmsNormArgs& args, int64_t row_begin, int64_t row_end, const Workspace& workspace) {
  const int64_t cols = args.weight.cols;
  const float* weight = static_cast<const float*>(args.weight.data);
  if (args.weight.dtype != DType::kF32) {
    float* copy = reinterpret_cast<float*>(workspace.data);
    decode_weights(args.weight.dtype, args.weight.data, copy, cols);
    weight = copy;
  }
  const V offset = set1(args.offset);
  for (int64_t t = row_begin; t < row_end; ++t) {
    const float* x = args.x.f32(t);
    if (args.residual) {
      float* residual = args.residual.f32(t);
      map2(residual, x, residual, args.x.cols, [](V a, V b) HWY_ATTR { return a + b; });
      x = residual;
    }
    for (int64_t g = 0; g < args.x.cols; g += cols) {
      const float mean = sum_of_squares(x + g, cols) / static_cast<float>(cols);
      const V scale = set1(1.0f / std::sqrt(mean + args.eps));
      map2(x + g, weight, args.out.f32(t) + g, cols,
           [&](V a, V w) HWY_ATTR { return a * scale * (offset + w); });
    }
  }
}

void add(const AddArgs& args, int64_t row_begin, int64_t row_end) {
  for (int64_t t = row_begin; t < row_end; ++t) {
    float* residual = args.residual.f32(t);
    map2(residual, args.x.f32(t), residual, args.x.cols, [](V a, V b) HWY_ATTR { return a + b; });
  }
}

void glu(const GluArgs& args, int64_t row_begin, int64_t row_end) {
  for (int64_t t = row_begin; t < row_end; ++t) {
    const float* gate = args.gate.f32(t);
    const float* up = args.up.f32(t);
    float* out = args.out.f32(t);
    if (args.activation == Activation::kSilu) {
      map2(gate, up, out, args.gate.cols, [](V g, V u) HWY_ATTR { return silu(g) * u; });
    } else {
      map2(gate, up, out, args.gate.cols, [](V g, V u) HWY_ATTR { return gelu_tanh(g) * u; });
    }
  }
}

void softcap(const SoftcapArgs& args, int64_t row_begin, int64_t row_end) {
  const V cap = set1(args.cap);
  for (int64_t t = row_begin; t < row_end; ++t) {
    float* x = args.x.f32(t);
    map2(x, x, x, args.x.cols, [&](V v, V) HWY_ATTR { return cap * tanh(v / cap); });
  }
}

void scale(float* x, int64_t n, float factor) {
  const V f = set1(factor);
  map2(x, x, x, n, [&](V v, V) HWY_ATTR { return v * f; });
}

// (a, b) -> (a cos - b sin, b cos + a sin) for pairs (i, i + D/2), or (2i, 2i + 1) where interleaved. Products and sums
// are rounded one by one, as the published code does.
void rotate(float* x, int64_t num_heads, int64_t head_dim, const float* rope, bool interleaved) {
  const int64_t half = head_dim / 2;
  const float* cosines = rope;
  const float* sines = rope + half;
  for (int64_t h = 0; h < num_heads; ++h, x += head_dim) {
    if (interleaved) {
      for (int64_t i = 0; i < half; ++i) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosines[i] - b * sines[i];
        x[2 * i + 1] = b * cosines[i] + a * sines[i];
      }
      continue;
    }
    int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
      const V a = load(x + i), b = load(x + half + i), c = load(cosines + i), s = load(sines + i);
      store(a * c - b * s, x + i);
      store(b * c + a * s, x + half + i);
    }
    for (; i < half; ++i) {
      const float a = x[i], b = x[half + i];
      x[i] = a * cosines[i] - b * sines[i];
      x[half + i] = b * cosines[i] + a * sines[i];
    }
  }
}

void convert(const float* src, DType dtype, void* dst, int64_t n) {
  if (dtype == DType::kF32) {
    std::memcpy(dst, src, static_cast<size_t>(n) * 4);
    return;
  }
  CHECK(dtype == DType::kF16) << dtype_info(dtype).name;
  auto* out = static_cast<uint16_t*>(dst);
  int64_t i = 0;
#if RESTKV_VECTORS && (HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3)
  const hn::Rebind<hwy::float16_t, DF> halves;
  for (; i + kLanes <= n; i += kLanes) {
    hn::StoreU(hn::DemoteTo(halves, load(src + i)), halves, reinterpret_cast<hwy::float16_t*>(out) + i);
  }
#endif
  for (; i < n; ++i) out[i] = f32_to_f16(src[i]);
}

void fill_elementwise(KernelTable& table) {
  table.rmsnorm = rmsnorm;
  table.add = add;
  table.glu = glu;
  table.softcap = softcap;
  table.scale = scale;
  table.rotate = rotate;
  table.convert = convert;
}

}  // namespace restkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace restkv::cpu {

HWY_EXPORT(fill_elementwise);
void set_elementwise_kernels(KernelTable& table) { HWY_DYNAMIC_DISPATCH(fill_elementwise)(table); }

}  // namespace restkv::cpu
#endif

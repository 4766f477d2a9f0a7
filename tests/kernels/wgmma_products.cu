// Compiled by nvcc, and by the host compiler as wgmma_products_emulated.cpp. A block is one warpgroup; q and v come by cp.async,
// k by plain stores.
#include "tests/kernels/wgmma_products.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>

#include "kernels/base/float16.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/swizzled_tiles.h"

namespace restkv::cuda {
namespace {

template <class T>
struct ProductsParams {
  const T* q;  // [64, D]
  const T* k;  // [keys, D]
  const T* w;  // [64, keys]
  const T* v;  // [keys, D]
  float* s;    // [64, keys]
  float* out;  // [64, D]
};

template <class T, int32_t kDim>
struct ProductsShared {
  using Queries = SwizzledTile<T, kDim, 64>;
  using Entries = SwizzledTile<T, kDim, kDim <= 128 ? 128 : 64>;
  T queries[Queries::kElements];
  T keys[Entries::kElements];
  T values[Entries::kElements];
};

template <class T, int32_t kDim>
__device__ __forceinline__ void multiply(const ProductsParams<T>& p) {
  using Queries = typename ProductsShared<T, kDim>::Queries;
  using Entries = typename ProductsShared<T, kDim>::Entries;
  constexpr int32_t kKeys = Entries::kRows, kPieces = kDim / 8;
  auto& shared = *shared_memory<ProductsShared<T, kDim>>();
  const auto thread = static_cast<int32_t>(threadIdx.x);
  for (int32_t i = thread; i < kKeys * kPieces; i += 128) {
    const int32_t row = i / kPieces, column = i % kPieces * 8;
    if (row < 64) {
      cp_async16(shared.queries + Queries::at(row, column), p.q + row * kDim + column);
    }
    store_vector(shared.keys + Entries::at(row, column), load_vector<uint4>(p.k + row * kDim + column));
    cp_async16(shared.values + Entries::at(row, column), p.v + row * kDim + column);
  }
  cp_async_commit();
  cp_async_wait<0>();
  fence_proxy_async();
  sync_threads();

  const int32_t row = thread / 32 * 16 + thread % 32 / 4, c = thread % 4 * 2;
  float s[kKeys / 8][4], out[kDim / 8][4] = {};
  uint32_t weights[kKeys / 16][4];
#pragma unroll
  for (int32_t k = 0; k < kKeys / 16; ++k) {
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      weights[k][i] = load_vector<uint32_t>(p.w + (row + i % 2 * 8) * kKeys + k * 16 + c + i / 2 * 8);
    }
  }
  wgmma_fence(out, weights);
  multiply_keys<Queries, Entries>(s, shared.queries, shared.keys);
  wgmma_commit();
  multiply_values<Entries>(out, weights, shared.values);
  wgmma_commit();
  wgmma_wait<1>(s);
#pragma unroll
  for (int32_t n = 0; n < kKeys / 8; ++n) {
#pragma unroll
    for (int32_t e = 0; e < 4; ++e) p.s[(row + e / 2 * 8) * kKeys + n * 8 + c + e % 2] = s[n][e];
  }
  wgmma_wait<0>(out);
#pragma unroll
  for (int32_t n = 0; n < kDim / 8; ++n) {
#pragma unroll
    for (int32_t e = 0; e < 4; ++e) p.out[(row + e / 2 * 8) * kDim + n * 8 + c + e % 2] = out[n][e];
  }
}

template <class T, int32_t kDim>
__global__ void __launch_bounds__(128) products_kernel(const __grid_constant__ ProductsParams<T> p) {
  wait_for_previous();
  if constexpr (kHasWgmma) {
    multiply<T, kDim>(p);
  } else {
    stop_kernel();
  }
}

#if defined(__CUDACC__)
bool has_wgmma() {
  int device = 0, major = 0, minor = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return major == 9 && minor == 0;
}
struct Free {
  void operator()(void* memory) const { cudaFree(memory); }
};
void* allocate(size_t bytes) {
  void* memory = nullptr;
  CUDA_CHECK(cudaMalloc(&memory, bytes));
  return memory;
}
void copy(void* to, const void* from, size_t bytes) {
  CUDA_CHECK(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));  // behind the launches before it
}
#else
bool has_wgmma() { return emulator::options().has_wgmma; }
struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
void* allocate(size_t bytes) { return std::aligned_alloc(256, (bytes + 255) / 256 * 256); }
void copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
#endif

template <class T>
using Memory = std::unique_ptr<T, Free>;

template <class T>
Memory<T> on_device(const std::vector<float>& values) {
  std::vector<T> rounded(values.size());
  for (size_t i = 0; i < values.size(); ++i)
    rounded[i] = {std::is_same_v<T, bf16> ? f32_to_bf16(values[i]) : f32_to_f16(values[i])};
  Memory<T> memory(static_cast<T*>(allocate(values.size() * sizeof(T))));
  copy(memory.get(), rounded.data(), values.size() * sizeof(T));
  return memory;
}

}  // namespace

bool run_wgmma_products(WgmmaProducts& products) {
  if (!has_wgmma()) return false;
  const auto keys = static_cast<size_t>(products.num_keys()), dim = static_cast<size_t>(products.dim);
  dispatch_half(products.dtype, [&]<class T>() {
    const Memory<T> q = on_device<T>(products.q), k = on_device<T>(products.k), w = on_device<T>(products.w),
                    v = on_device<T>(products.v);
    const Memory<float> s(static_cast<float*>(allocate(64 * keys * sizeof(float)))),
        out(static_cast<float*>(allocate(64 * dim * sizeof(float))));
    dispatch_head_dim(products.dim, [&]<int32_t kDim>() {
      launch(products_kernel<T, kDim>, {}, 128, sizeof(ProductsShared<T, kDim>), nullptr,
             ProductsParams<T>{q.get(), k.get(), w.get(), v.get(), s.get(), out.get()});
    });
    products.s.resize(64 * keys);
    products.out.resize(64 * dim);
    copy(products.s.data(), s.get(), products.s.size() * sizeof(float));
    copy(products.out.data(), out.get(), products.out.size() * sizeof(float));
  });
  return true;
}

}  // namespace restkv::cuda

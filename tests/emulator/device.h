// device.h of kernels/cuda for the host compiler: the same functions, run by the emulator. Names and meaning stand there.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "emulator/emulator.h"
#if defined(RESTKV_COUNT_ACCESSES)
#include "emulator/access_counters.h"
#endif
#include "kernels/base/float16.h"
#include "kernels/cuda/device_types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict

namespace restkv::emulator {

struct Index3 {
  uint32_t x = 0, y = 0, z = 0;
};
using Place = std::source_location;
constinit inline thread_local Index3 threadIdx, blockIdx, blockDim, gridDim;

std::byte* shared_base();
void barrier(uint32_t id, uint32_t threads, bool waits,
             const Place& place);  // id 0: all threads of the block
void copy_async(void* shared, const void* global, uint32_t bytes, uint32_t valid, const Place& place);
void copy_commit();
void copy_wait(uint32_t groups_left);
[[noreturn]] void fail(const std::string& what, const Place& place);
// `p` [bytes] lies in the block's shared memory and is aligned to `align`.
void check_shared(const void* p, uint32_t bytes, uint32_t align, const Place& place);

// One function of a warp: every lane of `mask` hands in the address of its operands; the last one to arrive runs
// `perform(lanes)` for all of them, lanes[i] null outside of the mask. `kind` and place must agree.
using Perform = void (*)(void* const* lanes);
void collective(const char* kind, uint32_t mask, void* operands, Perform perform, const Place& place);

struct ShuffleLane {
  uint64_t value;
  uint32_t source;
  uint64_t result;
};
void perform_shuffle(void* const* lanes);
struct BallotLane {
  bool vote;
  uint32_t result;
};
void perform_ballot(void* const* lanes);
struct LdMatrixLane {
  const void* row;
  uint32_t r[4];
  uint32_t count;
  bool transposed;
};
void perform_ldmatrix(void* const* lanes);
struct MmaLane {
  float* d;
  float a[8];  // pairs a0 a1 a2 a3 as floats
  float b[4];
};
void perform_mma(void* const* lanes);
void perform_nothing(void* const* lanes);

template <class V>
void check_aligned(const void* p, const Place& place) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(V) != 0)
    fail("a vector access of " + std::to_string(sizeof(V)) + " bytes is misaligned", place);
}

}  // namespace restkv::emulator

namespace restkv::cuda {

using emulator::threadIdx, emulator::blockIdx, emulator::blockDim, emulator::gridDim;

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline float to_f32(float x) { return x; }
inline float to_f32(bf16 x) { return bf16_to_f32(x.bits); }
inline float to_f32(f16 x) { return f16_to_f32(x.bits); }
inline float bits_to_f32(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t f32_to_bits(float x) { return std::bit_cast<uint32_t>(x); }
template <class T>
inline T from_f32(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return {f32_to_bf16(x)};
  } else if constexpr (std::is_same_v<T, f16>) {
    return {f32_to_f16(x)};
  } else {
    static_assert(std::is_same_v<T, float>);
    return x;
  }
}
template <class T>
inline uint32_t pack2(float low, float high) {
  return static_cast<uint32_t>(from_f32<T>(low).bits) | static_cast<uint32_t>(from_f32<T>(high).bits) << 16;
}
template <class T>
inline float2 unpack2(uint32_t pair) {
  return {to_f32(T{static_cast<uint16_t>(pair)}), to_f32(T{static_cast<uint16_t>(pair >> 16)})};
}

template <class V>
inline V load_vector(const void* p, const emulator::Place& place = emulator::Place::current()) {
  emulator::check_aligned<V>(p, place);
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
inline uint4 load_streamed(const void* p, const emulator::Place& place = emulator::Place::current()) {
  return load_vector<uint4>(p, place);
}
template <class V>
inline void store_vector(void* p, V v, const emulator::Place& place = emulator::Place::current()) {
  emulator::check_aligned<V>(p, place);
  std::memcpy(p, &v, sizeof(V));
}

inline uint32_t leading_zeros(uint32_t v) { return static_cast<uint32_t>(std::countl_zero(v)); }
inline uint32_t count_bits(uint32_t v) { return static_cast<uint32_t>(std::popcount(v)); }
inline float exp2_approx(float x) { return std::exp2(x); }
inline float log2_approx(float x) { return std::log2(x); }
inline float divide_approx(float a, float b) { return a / b; }
inline float rsqrt_exact(float x) { return 1.0f / std::sqrt(x); }
inline float fma_rn(float a, float b, float c) { return std::fma(a, b, c); }
using std::fabs, std::fmax, std::fmin, std::log, std::exp;
using std::max, std::min;
inline float fmaxf(float a, float b) { return std::fmax(a, b); }
inline float fminf(float a, float b) { return std::fmin(a, b); }
inline float expf(float x) { return std::exp(x); }
inline float logf(float x) { return std::log(x); }
inline float tanhf(float x) { return std::tanh(x); }
inline float sqrtf(float x) { return std::sqrt(x); }
inline float cosf(float x) { return std::cos(x); }
inline float sinf(float x) { return std::sin(x); }

template <class T>
inline T* shared_memory() {
  return reinterpret_cast<T*>(emulator::shared_base());
}

inline void sync_threads(const emulator::Place& place = emulator::Place::current()) {
  emulator::barrier(0, blockDim.x, true, place);
}
inline void barrier_sync(uint32_t id, uint32_t threads,
                         const emulator::Place& place = emulator::Place::current()) {
  emulator::barrier(id, threads, true, place);
}
inline void barrier_arrive(uint32_t id, uint32_t threads,
                           const emulator::Place& place = emulator::Place::current()) {
  emulator::barrier(id, threads, false, place);
}
inline void sync_warp(uint32_t mask = kFullWarp, const emulator::Place& place = emulator::Place::current()) {
  emulator::collective("sync_warp", mask, nullptr, emulator::perform_nothing, place);
}

inline void wait_for_previous() {}  // a kernel starts when the one before it has ended
inline void prefetch_line(const void*) {}

inline uint32_t lane_idx() { return threadIdx.x & 31u; }
inline uint32_t warp_idx() { return threadIdx.x >> 5; }

template <class T>
inline T shuffle_from(const char* kind, T v, uint32_t source, uint32_t mask, const emulator::Place& place) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  emulator::ShuffleLane lane{0, source, 0};
  std::memcpy(&lane.value, &v, sizeof(T));
  emulator::collective(kind, mask, &lane, emulator::perform_shuffle, place);
  std::memcpy(&v, &lane.result, sizeof(T));
  return v;
}
template <class T>
inline T shuffle(T v, uint32_t lane, uint32_t mask = kFullWarp,
                 const emulator::Place& place = emulator::Place::current()) {
  return shuffle_from("shuffle", v, lane & 31u, mask, place);
}
template <class T>
inline T shuffle_xor(T v, uint32_t bits, uint32_t mask = kFullWarp,
                     const emulator::Place& place = emulator::Place::current()) {
  return shuffle_from("shuffle_xor", v, (lane_idx() ^ bits) & 31u, mask, place);
}
template <class T>
inline T shuffle_up(T v, uint32_t n, uint32_t mask = kFullWarp,
                    const emulator::Place& place = emulator::Place::current()) {
  return shuffle_from("shuffle_up", v, lane_idx() >= n ? lane_idx() - n : lane_idx(), mask, place);
}
template <class T>
inline T shuffle_down(T v, uint32_t n, uint32_t mask = kFullWarp,
                      const emulator::Place& place = emulator::Place::current()) {
  return shuffle_from("shuffle_down", v, lane_idx() + n < 32 ? lane_idx() + n : lane_idx(), mask, place);
}
inline uint32_t ballot(bool p, uint32_t mask = kFullWarp,
                       const emulator::Place& place = emulator::Place::current()) {
  emulator::BallotLane lane{p, 0};
  emulator::collective("ballot", mask, &lane, emulator::perform_ballot, place);
  return lane.result;
}
inline bool any(bool p, uint32_t mask = kFullWarp,
                const emulator::Place& place = emulator::Place::current()) {
  return ballot(p, mask, place) != 0;
}
inline bool all(bool p, uint32_t mask = kFullWarp,
                const emulator::Place& place = emulator::Place::current()) {
  return ballot(!p, mask, place) == 0;
}

// One thread of the operating system runs all fibers and none is interrupted: plain accesses are atomic.
template <class T>
inline T atomic_add(T* p, std::type_identity_t<T> v) {
  const T old = *p;
  if constexpr (std::is_integral_v<T>) {
    using U = std::make_unsigned_t<T>;
    *p = static_cast<T>(static_cast<U>(old) + static_cast<U>(v));  // wraps
  } else {
    *p = old + v;
  }
  return old;
}
template <class T>
inline T atomic_max(T* p, std::type_identity_t<T> v) {
  const T old = *p;
  *p = std::max(old, v);
  return old;
}
template <class T>
inline T atomic_min(T* p, std::type_identity_t<T> v) {
  const T old = *p;
  *p = std::min(old, v);
  return old;
}
inline uint32_t atomic_or(uint32_t* p, uint32_t v) {
  const uint32_t old = *p;
  *p = old | v;
  return old;
}
template <class T>
inline T atomic_exchange(T* p, std::type_identity_t<T> v) {
  const T old = *p;
  *p = v;
  return old;
}
template <class T>
inline T atomic_cas(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  const T old = *p;
  if (old == expected) *p = v;
  return old;
}
inline void thread_fence() {}

inline void cp_async16(void* shared, const void* global, uint32_t valid = 16,
                       const emulator::Place& place = emulator::Place::current()) {
#if defined(RESTKV_COUNT_ACCESSES)
  emulator::count_access(shared, 16, emulator::here());
  if (valid > 0) emulator::count_access(global, valid, emulator::here());
#endif
  emulator::copy_async(shared, global, 16, valid, place);
}
inline void cp_async4(void* shared, const void* global, uint32_t valid = 4,
                      const emulator::Place& place = emulator::Place::current()) {
#if defined(RESTKV_COUNT_ACCESSES)
  emulator::count_access(shared, 4, emulator::here());
  if (valid > 0) emulator::count_access(global, valid, emulator::here());
#endif
  emulator::copy_async(shared, global, 4, valid, place);
}
inline void cp_async_commit() { emulator::copy_commit(); }
template <int N>
inline void cp_async_wait() {
  emulator::copy_wait(N);
}

template <uint32_t Count, bool Transposed>
inline void ldmatrix(uint32_t (&r)[Count], const void* row, const emulator::Place& place) {
  if (lane_idx() < 8 * Count) emulator::check_shared(row, 16, 16, place);
#if defined(RESTKV_COUNT_ACCESSES)
  if (lane_idx() < 8 * Count) emulator::count_access(row, 16, emulator::here());
#endif
  emulator::LdMatrixLane lane{row, {}, Count, Transposed};
  emulator::collective("ldmatrix", kFullWarp, &lane, emulator::perform_ldmatrix, place);
  std::copy(lane.r, lane.r + Count, r);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row,
                        const emulator::Place& place = emulator::Place::current()) {
  ldmatrix<4, false>(r, row, place);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row,
                              const emulator::Place& place = emulator::Place::current()) {
  ldmatrix<4, true>(r, row, place);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row,
                        const emulator::Place& place = emulator::Place::current()) {
  ldmatrix<2, false>(r, row, place);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row,
                              const emulator::Place& place = emulator::Place::current()) {
  ldmatrix<2, true>(r, row, place);
}

template <class T>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         const emulator::Place& place = emulator::Place::current()) {
  emulator::MmaLane lane{};
  lane.d = d;
  for (uint32_t i = 0; i < 4; ++i) {
    const float2 pair = unpack2<T>(a[i]);
    // registers are (row g, row g + 8) x (k low, k high)
    lane.a[2 * i] = pair.x;
    lane.a[2 * i + 1] = pair.y;
  }
  for (uint32_t i = 0; i < 2; ++i) {
    const float2 pair = unpack2<T>(b[i]);
    lane.b[2 * i] = pair.x;
    lane.b[2 * i + 1] = pair.y;
  }
  emulator::collective("mma", kFullWarp, &lane, emulator::perform_mma, place);
}
inline void mma_m16n8k16_f32(float (&d)[4], const float (&a)[8], const float (&b)[4],
                             const emulator::Place& place = emulator::Place::current()) {
  emulator::MmaLane lane{};
  lane.d = d;
  std::copy(a, a + 8, lane.a);
  std::copy(b, b + 4, lane.b);
  emulator::collective("mma_f32", kFullWarp, &lane, emulator::perform_mma, place);
}

}  // namespace restkv::cuda

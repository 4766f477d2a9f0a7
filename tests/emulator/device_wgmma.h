// The products of a warpgroup for the host compiler: twin of kernels/cuda/device_wgmma.h. Names and meaning stand in
// kernels/cuda/device.h, how they run in warpgroup.cpp.
#pragma once

#include "emulator/device.h"

namespace restkv::emulator {

// One wgmma as a thread sees it. Operand places are 64-bit descriptors of the PTX manual.
struct WgmmaThread {
  float* d;           // [4 columns], this thread's part
  const uint32_t* a;  // [4], null: a lies in shared memory
  uint64_t a_tile, b_tile;
  uint32_t columns;  // of 8
  float (*to_f32)(uint16_t bits);
  bool transposes_b, accumulates;
};
void wgmma(const WgmmaThread& operands, const Place& place);
void wgmma_fence(const Place& place);
void wgmma_commit(const Place& place);
void wgmma_wait(uint32_t groups_left, const Place& place);
// `d` may be read: no product over it is on its way.
void check_wgmma_done(const float* d, const Place& place);
void fence_proxy_async();
uint64_t wgmma_tile(const void* tile, uint32_t leading_bytes, uint32_t stride_bytes, const Place& place);
// Registers are not counted here, but all of a warpgroup must come to it.
void change_registers(const Place& place);

}  // namespace restkv::emulator

namespace restkv::cuda {

inline constexpr bool kHasWgmma = true;

inline void fence_proxy_async() { emulator::fence_proxy_async(); }
inline uint64_t wgmma_tile(const void* tile, uint32_t leading_bytes, uint32_t stride_bytes,
                           const emulator::Place& place = emulator::Place::current()) {
  return emulator::wgmma_tile(tile, leading_bytes, stride_bytes, place);
}
inline uint64_t wgmma_advance(uint64_t tile, uint32_t bytes) { return tile + (bytes >> 4); }

// Variadic, so the place is that of the call in the kernel only as far as the function: these name no line.
template <class... Registers>
inline void wgmma_fence(Registers&...) {
  emulator::wgmma_fence(emulator::Place::current());
}
inline void wgmma_commit(const emulator::Place& place = emulator::Place::current()) {
  emulator::wgmma_commit(place);
}
template <int N, class... Registers>
inline void wgmma_wait(Registers&... registers) {
  const auto place = emulator::Place::current();
  emulator::wgmma_wait(N, place);
  const auto check = [&]<class R>(const R& r) {
    if constexpr (std::is_same_v<std::remove_all_extents_t<R>, float>)
      emulator::check_wgmma_done(&r[0][0], place);
  };
  (check(registers), ...);
}

template <class T>
inline float wgmma_element(uint16_t bits) {
  return to_f32(T{bits});
}
template <class T, int kColumns>
inline void wgmma_shared(float (&d)[kColumns][4], uint64_t a, uint64_t b, bool accumulates,
                         const emulator::Place& place = emulator::Place::current()) {
  static_assert(kIsHalf<T> && (kColumns == 8 || kColumns == 16));
  emulator::wgmma({&d[0][0], nullptr, a, b, kColumns, wgmma_element<T>, false, accumulates}, place);
}
template <class T, int kColumns>
inline void wgmma_registers(float (&d)[kColumns][4], const uint32_t (&a)[4], uint64_t b,
                            const emulator::Place& place = emulator::Place::current()) {
  static_assert(kIsHalf<T> && (kColumns == 8 || kColumns == 12 || kColumns == 16 || kColumns == 32));
  emulator::wgmma({&d[0][0], a, 0, b, kColumns, wgmma_element<T>, true, true}, place);
}

template <uint32_t kCount>
inline void give_registers(const emulator::Place& place = emulator::Place::current()) {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256);
  emulator::change_registers(place);
}
template <uint32_t kCount>
inline void take_registers(const emulator::Place& place = emulator::Place::current()) {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256);
  emulator::change_registers(place);
}

inline void stop_kernel(const emulator::Place& place = emulator::Place::current()) {
  emulator::fail("the kernel stopped itself", place);
}

}  // namespace restkv::cuda

// The 16-bit element types of kernels and what both compilers share.
#pragma once

#include <cstdint>

namespace restkv::cuda {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline constexpr uint32_t kFullWarp = 0xFFFFFFFFu;
inline constexpr uint32_t kWarpSize = 32;

// Whether the blocks of a kernel may take their places on a card of sm_90 while the one before it runs: programmatic dependent
// launch (card.cpp). Every kernel therefore begins with wait_for_previous(), with nothing before it but prefetch_*() of what no
// kernel writes; tools/check_layers.py sees to it. Off: plain stream order.
inline constexpr bool kOverlapsLaunches = true;

template <class T>
inline constexpr bool kIsHalf = false;
template <>
inline constexpr bool kIsHalf<bf16> = true;
template <>
inline constexpr bool kIsHalf<f16> = true;

}  // namespace restkv::cuda

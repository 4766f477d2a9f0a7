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

// Whether a kernel of a list (launch_list.h) may be set up on a card of sm_90 while the one before it ends: programmatic dependent
// launch. Every kernel therefore begins with wait_for_previous(); tools/check_layers.py sees to it. Off: plain stream order.
inline constexpr bool kOverlapsLaunches = false;

template <class T>
inline constexpr bool kIsHalf = false;
template <>
inline constexpr bool kIsHalf<bf16> = true;
template <>
inline constexpr bool kIsHalf<f16> = true;

}  // namespace restkv::cuda

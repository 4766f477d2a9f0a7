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

template <class T>
inline constexpr bool kIsHalf = false;
template <>
inline constexpr bool kIsHalf<bf16> = true;
template <>
inline constexpr bool kIsHalf<f16> = true;

}  // namespace restkv::cuda

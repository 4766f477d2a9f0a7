// A score and a row index as one 64-bit number whose order is 'better first': higher scores, then newer rows.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace restkv::cpu {

// Order of f32 as unsigned integers: negative numbers reversed below the positive ones.
inline uint32_t ordered_bits(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
}

inline uint64_t score_key(float score, uint32_t row) { return uint64_t{ordered_bits(score)} << 32 | row; }

// NaN and inf rank first, above every finite score.
inline float rank_first_unless_finite(float score) {
  return std::isfinite(score) ? score : std::numeric_limits<float>::infinity();
}

}  // namespace restkv::cpu

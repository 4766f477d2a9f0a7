// What the lanes of a warp do together: shuffles, votes, ldmatrix and mma.sync, with the fragment layouts of the PTX manual
// (9.7.14.5, m16n8k16): lane = 4 * g + t.
#include <bit>
#include <cstring>

#include "emulator/device.h"

namespace restkv::emulator {

void perform_nothing(void* const*) {}

void perform_shuffle(void* const* lanes) {
  for (uint32_t i = 0; i < 32; ++i) {
    if (lanes[i] == nullptr) continue;
    auto* lane = static_cast<ShuffleLane*>(lanes[i]);
    const auto* source = static_cast<const ShuffleLane*>(lanes[lane->source]);
    // a lane outside of the mask: undefined on the card
    lane->result = source != nullptr ? source->value : 0xFFFFFFFFFFFFFFFFull;
  }
}

void perform_ballot(void* const* lanes) {
  uint32_t votes = 0;
  for (uint32_t i = 0; i < 32; ++i)
    if (lanes[i] != nullptr && static_cast<const BallotLane*>(lanes[i])->vote) votes |= 1u << i;
  for (uint32_t i = 0; i < 32; ++i)
    if (lanes[i] != nullptr) static_cast<BallotLane*>(lanes[i])->result = votes;
}

// Matrix m has its rows at the addresses of lanes 8 m .. 8 m + 7. Lane 4 g + t gets (row g, columns 2t, 2t + 1), transposed
// (rows 2t, 2t + 1, column g).
void perform_ldmatrix(void* const* lanes) {
  const auto row = [&](uint32_t matrix, uint32_t r) {
    return static_cast<const std::byte*>(static_cast<const LdMatrixLane*>(lanes[8 * matrix + r])->row);
  };
  const auto at = [&](uint32_t matrix, uint32_t r, uint32_t c) {
    uint16_t value;
    std::memcpy(&value, row(matrix, r) + 2 * c, 2);
    return static_cast<uint32_t>(value);
  };
  for (uint32_t i = 0; i < 32; ++i) {
    auto* lane = static_cast<LdMatrixLane*>(lanes[i]);
    const uint32_t g = i / 4, t = i % 4;
    for (uint32_t m = 0; m < lane->count; ++m) {
      lane->r[m] = lane->transposed ? at(m, 2 * t, g) | at(m, 2 * t + 1, g) << 16
                                    : at(m, g, 2 * t) | at(m, g, 2 * t + 1) << 16;
    }
  }
}

// d[16, 8] += a[16, 16] * b[16, 8], products exact in f32, added in rising k.
void perform_mma(void* const* lanes) {
  float a[16][16], b[16][8];
  for (uint32_t i = 0; i < 32; ++i) {
    const auto* lane = static_cast<const MmaLane*>(lanes[i]);
    const uint32_t g = i / 4, t = i % 4;
    for (uint32_t odd = 0; odd < 2; ++odd) {
      const uint32_t k = 2 * t + odd;
      a[g][k] = lane->a[odd];
      a[g + 8][k] = lane->a[2 + odd];
      a[g][k + 8] = lane->a[4 + odd];
      a[g + 8][k + 8] = lane->a[6 + odd];
      b[k][g] = lane->b[odd];
      b[k + 8][g] = lane->b[2 + odd];
    }
  }
  float d[16][8];
  const auto move = [&](auto&& one) {
    for (uint32_t i = 0; i < 32; ++i) {
      float* own = static_cast<const MmaLane*>(lanes[i])->d;
      const uint32_t g = i / 4, t = i % 4;
      one(d[g][2 * t], own[0]);
      one(d[g][2 * t + 1], own[1]);
      one(d[g + 8][2 * t], own[2]);
      one(d[g + 8][2 * t + 1], own[3]);
    }
  };
  move([](float& matrix, float& own) { matrix = own; });
  for (uint32_t m = 0; m < 16; ++m)
    for (uint32_t k = 0; k < 16; ++k)
      for (uint32_t n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
  move([](float& matrix, float& own) { own = matrix; });
}

}  // namespace restkv::emulator

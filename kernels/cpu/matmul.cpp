// out[t, n] = sum_c x[t, c] * weight[n, c] + bias[n]: x [T, C] f32, weight [N, C] of any type.
//
// Each output is one dot product with one accumulator vector: lane i takes columns i, i + kLanes, ... in rising order by
// fused multiply-add, then the lanes are summed by the fixed tree of simd.h. Tiles and the path for few rows only
// choose which dot products run side by side, so an output's bits do not depend on T, tile or thread.
// Many rows: 24 weight rows are dequantised into cache, then tiles of 4 x rows by 3 (AVX2) or 6 (AVX-512) weight rows run
// along C: compute bound. Up to 8 rows: weights are decoded in registers: memory bound.
#include <algorithm>

#include "kernels/cpu/kernel_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul.cpp"
#include "kernels/cpu/targets.h"

#include "kernels/cpu/simd.h"
#include "kernels/cpu/weight_blocks.h"

HWY_BEFORE_NAMESPACE();
namespace restkv::cpu::HWY_NAMESPACE {

inline constexpr int kTileX = 4;
// 4 x 3 accumulators and their operands fill 16 registers, 4 x 6 fill 32.
inline constexpr int kTileW = kLanes == 16 ? 6 : 3;
inline constexpr int64_t kPrefetchBytes = 4096;
inline constexpr int kMaxDecodeRows = 8;  // of x, for which weights are decoded in registers

// sums[j * 4 + i] = <x row i, w row j>: MX rows of x, kTileW rows of w, `cols` columns each.
template <int MX>
HWY_INLINE void dot_tile(const float* x, int64_t x_stride, const float* const* ws, int64_t cols,
                         float* sums) {
  V acc[MX][kTileW];
#pragma GCC unroll 8
  for (int i = 0; i < MX; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kTileW; ++j) acc[i][j] = zero();
  }
  const auto step = [&](const float* x_column, int64_t stride, const auto& w_at) HWY_ATTR {
    V xv[MX];
#pragma GCC unroll 8
    for (int i = 0; i < MX; ++i) xv[i] = load(x_column + i * stride);
#pragma GCC unroll 8
    for (int j = 0; j < kTileW; ++j) {
      const V w = load(w_at(j));
#pragma GCC unroll 8
      for (int i = 0; i < MX; ++i) acc[i][j] = mul_add(xv[i], w, acc[i][j]);
    }
  };
  int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) step(x + c, x_stride, [&](int j) { return ws[j] + c; });
  if (c < cols) {
    alignas(64) float tails[MX + kTileW][kLanes];
    for (int i = 0; i < MX; ++i) store(load_first(x + i * x_stride + c, cols - c), tails[i]);
    for (int j = 0; j < kTileW; ++j) store(load_first(ws[j] + c, cols - c), tails[MX + j]);
    step(tails[0], kLanes, [&](int j) { return tails[MX + j]; });
  }
#pragma GCC unroll 8
  for (int j = 0; j < kTileW; ++j) {
    sum4(acc[0][j], acc[MX > 1 ? 1 : 0][j], acc[MX > 2 ? 2 : 0][j], acc[MX > 3 ? 3 : 0][j], sums + j * 4);
  }
}

template <int MX>
HWY_INLINE void store_tile(const ConstTensor& x, int64_t row, const float* const* ws, int64_t num_w,
                           const float* bias, float* out, int64_t out_stride) {
  alignas(64) float sums[kTileW * 4];
  dot_tile<MX>(x.f32(row), x.stride, ws, x.cols, sums);
  for (int i = 0; i < MX; ++i) {
    for (int64_t j = 0; j < num_w; ++j) {
      out[i * out_stride + j] = bias == nullptr ? sums[j * 4 + i] : sums[j * 4 + i] + bias[j];
    }
  }
}

// All rows of x times num_rows rows of f32 weights at `weights`.
void multiply_chunk(const ConstTensor& x, const float* weights, int64_t w_stride, int64_t num_rows,
                    const float* bias, float* out, int64_t out_stride) {
  for (int64_t t = 0; t < x.rows; t += kTileX) {
    for (int64_t n = 0; n < num_rows; n += kTileW) {
      const float* ws[kTileW];
      // past the end the last row is repeated; its products are not stored
      for (int64_t j = 0; j < kTileW; ++j) ws[j] = weights + std::min(n + j, num_rows - 1) * w_stride;
      const int64_t num_w = std::min<int64_t>(kTileW, num_rows - n);
      const float* tile_bias = bias == nullptr ? nullptr : bias + n;
      float* tile_out = out + t * out_stride + n;
      switch (std::min<int64_t>(kTileX, x.rows - t)) {
        case 1: store_tile<1>(x, t, ws, num_w, tile_bias, tile_out, out_stride); break;
        case 2: store_tile<2>(x, t, ws, num_w, tile_bias, tile_out, out_stride); break;
        case 3: store_tile<3>(x, t, ws, num_w, tile_bias, tile_out, out_stride); break;
        default: store_tile<4>(x, t, ws, num_w, tile_bias, tile_out, out_stride); break;
      }
    }
  }
}

// MX rows of x times NW weight rows, decoded in registers. sums[i * NW + j] = <x row i, w row j>.
template <class Block, int MX, int NW>
HWY_INLINE void decode_tile(const float* const* xs, const uint8_t* const* ws, int64_t cols, float* sums) {
  constexpr int kVectors = Block::kBlock / kLanes;
  static_assert(MX * NW % 4 == 0);
  V acc[MX * NW];
#pragma GCC unroll 16
  for (int n = 0; n < MX * NW; ++n) acc[n] = zero();
  const int64_t blocks = cols / Block::kBlock;
  // The NW rows lie one behind the other, which the hardware takes for several short streams: fetch what follows them.
  const uint8_t* ahead = ws[NW - 1] + blocks * Block::kBytes + kPrefetchBytes;
  for (int64_t b = 0; b < blocks; ++b) {
#pragma GCC unroll 8
    for (int line = 0; line < NW * Block::kBytes; line += 64) __builtin_prefetch(ahead + line);
    ahead += NW * Block::kBytes;
    [[maybe_unused]] alignas(64) float scales[4 * NW];
    if constexpr (requires { Block::kScales; })
      convert_scales<Block::kScales, NW>(ws, b * Block::kBytes, scales);
#pragma GCC unroll 8
    for (int j = 0; j < NW; ++j) {
      V w[kVectors];
      if constexpr (requires { Block::kScales; }) {
        Block::decode(ws[j] + b * Block::kBytes, scales + Block::kScales * j, w);
      } else {
        Block::decode(ws[j] + b * Block::kBytes, w);
      }
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; ++n) {
#pragma GCC unroll 8
        for (int i = 0; i < MX; ++i) {
          acc[i * NW + j] = mul_add(load(xs[i] + b * Block::kBlock + n * kLanes), w[n], acc[i * NW + j]);
        }
      }
    }
  }
  const int64_t done = blocks * Block::kBlock;
  if (done < cols) {  // plain types only
    alignas(64) float tails[MX + NW][kLanes] = {};
    for (int i = 0; i < MX; ++i) std::copy(xs[i] + done, xs[i] + cols, tails[i]);
    for (int j = 0; j < NW; ++j)
      dequantize_row(Block::kDType, ws[j] + blocks * Block::kBytes, tails[MX + j], cols - done);
#pragma GCC unroll 8
    for (int j = 0; j < NW; ++j) {
#pragma GCC unroll 8
      for (int i = 0; i < MX; ++i)
        acc[i * NW + j] = mul_add(load(tails[i]), load(tails[MX + j]), acc[i * NW + j]);
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < MX * NW; n += 4) sum4(acc[n], acc[n + 1], acc[n + 2], acc[n + 3], sums + n);
}

// The same for the types of group_blocks.h, whose blocks are too large for registers: the scales of a block of each row go
// into memory, then the rows go through it side by side, a part at a time.
template <class Block, int MX, int NW>
HWY_INLINE void group_tile(const float* const* xs, const uint8_t* const* ws, int64_t cols, float* sums) {
  static_assert(MX * NW % 4 == 0);
  V acc[NW][MX];
#pragma GCC unroll 8
  for (int j = 0; j < NW; ++j) {
#pragma GCC unroll 8
    for (int i = 0; i < MX; ++i) acc[j][i] = zero();
  }
  alignas(64) float scales[NW][Block::kScales];
  const int64_t blocks = cols / Block::kBlock;
  const uint8_t* ahead = ws[NW - 1] + blocks * Block::kBytes + kPrefetchBytes;
  for (int64_t b = 0; b < blocks; ++b) {
    for (int line = 0; line < NW * Block::kBytes; line += 64) __builtin_prefetch(ahead + line);
    ahead += NW * Block::kBytes;
#pragma GCC unroll 8
    for (int j = 0; j < NW; ++j) make_scales<Block>(ws[j] + b * Block::kBytes, scales[j]);
    for_parts<Block::kParts>([&](auto part) HWY_ATTR __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int j = 0; j < NW; ++j) {
        Block::template decode<decltype(part)::value>(
            ws[j] + b * Block::kBytes, scales[j], [&](int at, V w) HWY_ATTR __attribute__((always_inline)) {
#pragma GCC unroll 8
              for (int i = 0; i < MX; ++i)
                acc[j][i] = mul_add(load(xs[i] + b * Block::kBlock + at), w, acc[j][i]);
            });
      }
    });
  }
#pragma GCC unroll 16
  for (int n = 0; n < MX * NW; n += 4) {
    const auto at = [&](int k) HWY_ATTR { return acc[(n + k) % NW][(n + k) / NW]; };
    sum4(at(0), at(1), at(2), at(3), sums + n);
  }
}

// Weight rows [begin, end) for all, at most MX, rows of x.
template <class Block, int MX>
void decode_rows(const ConstTensor& x, const ConstTensor& weight, int64_t begin, int64_t end,
                 const float* bias, const Tensor& out) {
  // the accumulators and the operands of one step fit the 16 or 32 registers
  constexpr int NW = MX <= 2 ? 4 : MX == 4 ? (kLanes == 16 ? 4 : 2) : (kLanes == 16 ? 2 : 1);
  const float* xs[MX];  // past the end rows are repeated; their products are not stored
  for (int64_t i = 0; i < MX; ++i) xs[i] = x.f32(std::min(i, x.rows - 1));
  const auto* weights = static_cast<const uint8_t*>(weight.data);
  const int64_t row_bytes = bytes_of(weight.dtype, weight.stride);  // once: it divides
  for (int64_t n = begin; n < end; n += NW) {
    const uint8_t* ws[NW];
    for (int64_t j = 0; j < NW; ++j) ws[j] = weights + std::min(n + j, end - 1) * row_bytes;
    alignas(64) float sums[MX * NW];
    if constexpr (requires { Block::kParts; }) {
      group_tile<Block, MX, NW>(xs, ws, weight.cols, sums);
    } else {
      decode_tile<Block, MX, NW>(xs, ws, weight.cols, sums);
    }
    for (int64_t i = 0; i < x.rows; ++i) {
      float* row = out.f32(i) + n;
      for (int64_t j = 0; j < std::min<int64_t>(NW, end - n); ++j) {
        row[j] = bias == nullptr ? sums[i * NW + j] : sums[i * NW + j] + bias[n + j - begin];
      }
    }
  }
}

void matmul(const ConstTensor& x, const MatmulOutput& output, int64_t begin, int64_t end,
            const Workspace& workspace) {
  const ConstTensor& weight = output.weight;
  const int64_t rows_per_chunk = matmul_rows_per_chunk(weight.cols);
  float* buffer = reinterpret_cast<float*>(workspace.data);  // [rows_per_chunk, C]
  const float* bias = nullptr;                               // of weight row n at bias[n - begin]
  if (output.bias) {
    const ConstTensor& given = output.bias;
    float* copy = buffer + rows_per_chunk * weight.cols;
    decode_weights(given.dtype, static_cast<const std::byte*>(given.data) + bytes_of(given.dtype, begin),
                   copy, end - begin);
    bias = copy;
  }
  const auto decode = [&](auto block) {
    using Block = decltype(block);
    if (x.rows == 1) {
      decode_rows<Block, 1>(x, weight, begin, end, bias, output.out);
    } else if (x.rows == 2) {
      decode_rows<Block, 2>(x, weight, begin, end, bias, output.out);
    } else if (x.rows <= 4) {
      decode_rows<Block, 4>(x, weight, begin, end, bias, output.out);
    } else {
      decode_rows<Block, 8>(x, weight, begin, end, bias, output.out);
    }
  };
  if (x.rows <= kMaxDecodeRows &&
      (dispatch_block(weight.dtype, decode) || dispatch_group(weight.dtype, decode)))
    return;
  for (int64_t n = begin; n < end; n += rows_per_chunk) {
    const int64_t rows = std::min(rows_per_chunk, end - n);
    const float* weights = buffer;
    int64_t stride = weight.cols;
    if (weight.dtype == DType::kF32) {
      weights = weight.f32(n);
      stride = weight.stride;
    } else {
      for (int64_t j = 0; j < rows; ++j) {
        decode_weights(weight.dtype, weight.row(n + j), buffer + j * weight.cols, weight.cols);
      }
    }
    multiply_chunk(x, weights, stride, rows, bias == nullptr ? nullptr : bias + (n - begin),
                   output.out.f32() + n, output.out.stride);
  }
}

void fill_matmul(KernelTable& table) {
  table.lanes = kLanes;
  table.dequantize = decode_weights;
  table.matmul = matmul;
}

}  // namespace restkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace restkv::cpu {

int64_t matmul_rows_per_chunk(int64_t cols) {
  // 24 rows, or what fits 160 KiB of the second-level cache; a multiple of both tile widths
  return std::clamp<int64_t>(160 * 1024 / (4 * cols) / 6 * 6, 6, 24);
}

HWY_EXPORT(fill_matmul);
void set_matmul_kernels(KernelTable& table) { HWY_DYNAMIC_DISPATCH(fill_matmul)(table); }

}  // namespace restkv::cpu
#endif

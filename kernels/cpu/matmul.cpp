// out[t, n] = sum_c x[t, c] * weight[n, c] + bias[n]: x [T, C] f32, weight [N, C] of any type.
//
// Each output is one dot product with one accumulator vector: lane i takes columns i, i + kLanes, ... in rising order by
// fused multiply-add, then the lanes are summed by the fixed tree of simd.h. Tiles and the single-row path only
// choose which dot products run side by side, so an output's bits do not depend on T, tile or thread.
// Many rows: kChunkRows weight rows are dequantised into cache, then tiles of 4 x rows by 3 (AVX2) or 6 (AVX-512) weight
// rows run along C: compute bound. One row: weights are decoded in registers: memory bound.
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
inline constexpr int kSingleW = 4;  // weight rows side by side where x has one row

// out(i, j) = <x row i, w row j>; xs [MX], ws [kTileW] rows of `cols` floats; sums [MX][kTileW rounded up to 4].
template <int MX>
HWY_INLINE void dot_tile(const float* x, int64_t x_stride, const float* const* ws, int64_t cols,
                         float* sums) {
  V acc[MX][kTileW];
  for (auto& row : acc) {
    for (V& v : row) v = zero();
  }
  int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) {
    V xv[MX];
    for (int i = 0; i < MX; ++i) xv[i] = load(x + i * x_stride + c);
    for (int j = 0; j < kTileW; ++j) {
      const V w = load(ws[j] + c);
      for (int i = 0; i < MX; ++i) acc[i][j] = mul_add(xv[i], w, acc[i][j]);
    }
  }
  if (c < cols) {
    V xv[MX];
    for (int i = 0; i < MX; ++i) xv[i] = load_first(x + i * x_stride + c, cols - c);
    for (int j = 0; j < kTileW; ++j) {
      const V w = load_first(ws[j] + c, cols - c);
      for (int i = 0; i < MX; ++i) acc[i][j] = mul_add(xv[i], w, acc[i][j]);
    }
  }
  // sums[j * 4 + i]
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

// One row of x times kSingleW weight rows, decoded in registers.
template <class Block>
HWY_INLINE void single_row(const float* x, const uint8_t* const* ws, int64_t cols, float* sums) {
  constexpr int kVectors = Block::kBlock / kLanes;
  V acc[kSingleW];
  for (V& v : acc) v = zero();
  const int64_t blocks = cols / Block::kBlock;
  for (int64_t b = 0; b < blocks; ++b) {
    V xv[kVectors];
    for (int i = 0; i < kVectors; ++i) xv[i] = load(x + b * Block::kBlock + i * kLanes);
    for (int j = 0; j < kSingleW; ++j) {
      V w[kVectors];
      Block::decode(ws[j] + b * Block::kBytes, w);
      for (int i = 0; i < kVectors; ++i) acc[j] = mul_add(xv[i], w[i], acc[j]);
    }
  }
  const int64_t rest = cols - blocks * Block::kBlock;
  if (rest > 0) {
    const V xv = load_first(x + blocks * Block::kBlock, rest);
    for (int j = 0; j < kSingleW; ++j) {
      alignas(64) float w[kLanes] = {};
      dequantize_row(Block::kDType, ws[j] + blocks * Block::kBytes, w, rest);
      acc[j] = mul_add(xv, load(w), acc[j]);
    }
  }
  sum4(acc[0], acc[1], acc[2], acc[3], sums);
}

template <class Block>
void single_rows(const float* x, const ConstTensor& weight, int64_t begin, int64_t end, const float* bias,
                 float* out) {
  for (int64_t n = begin; n < end; n += kSingleW) {
    const uint8_t* ws[kSingleW];
    for (int64_t j = 0; j < kSingleW; ++j)
      ws[j] = static_cast<const uint8_t*>(weight.row(std::min(n + j, end - 1)));
    float sums[kSingleW];
    single_row<Block>(x, ws, weight.cols, sums);
    for (int64_t j = 0; j < std::min<int64_t>(kSingleW, end - n); ++j) {
      out[n + j] = bias == nullptr ? sums[j] : sums[j] + bias[n + j - begin];
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
  if (x.rows == 1 && dispatch_block(weight.dtype, [&](auto block) {
        single_rows<decltype(block)>(x.f32(), weight, begin, end, bias, output.out.f32());
      })) {
    return;
  }
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

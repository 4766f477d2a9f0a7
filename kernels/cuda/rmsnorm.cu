// residual += x (where given), then out = y / sqrt(mean(y^2) + eps) * (offset + weight) per group of C columns, y = residual
// or x (arXiv 1910.07467, eq. 4). Sums in f32, in an order that depends on C alone. Bound by memory, and for few rows by the
// latency of one read: a thread asks for its pieces of 16 bytes of x, residual and weight before it waits for the first, and
// keeps the values in registers over the sum. What a block cannot hold (over 16,384 values of 16 bits) it reads twice.
// Wide groups (model norm): a block owns one group of one row, with as many threads as it has pieces up to 512, beyond with
// two pieces a thread and up to 1,024 threads. Narrow ones (QK-norm): 1 to 32 lanes of a warp own one.
// A thread writes only where it alone has read, so out may be x.
// With one piece a thread a block takes 32 registers: four of 512 threads are resident.
// Occupancy: rmsnorm_block_kernel 512 x 2, rmsnorm_warp_kernel 256 x 5.
#include <algorithm>
#include <bit>

#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/pieces.h"
#include "kernels/cuda/reduce.h"

namespace restkv::cuda {
namespace {

constexpr uint32_t kOnePieceThreads = 512, kMaxThreads = 1024;
constexpr uint32_t kWarpThreads = 256, kWarps = kWarpThreads / kWarpSize;
constexpr int64_t kWarpCols = 512;  // groups up to here are a warp's

template <class T>
struct RmsNormParams {
  const T* x;          // [T, groups * C]
  T* residual;         // [T, groups * C] or null
  T* out;              // [T, groups * C]
  PlainValues weight;  // [C]
  int64_t x_stride, residual_stride, out_stride;
  int64_t cols;     // C
  uint32_t groups;  // of a row
  uint32_t items;   // groups of all rows
  uint32_t lanes;   // of a group of the narrow kernel: 1, 2, .. 32
  float eps, offset;
  int32_t is_whole;  // every group of x, residual and out, and the weight, are whole pieces
};

// One group of one row.
template <class T>
struct Group {
  const T* x;
  T* residual;  // or null
  T* out;
};

template <class T>
__device__ __forceinline__ Group<T> group_of(const RmsNormParams<T>& p, int64_t row, int64_t group) {
  const int64_t at = group * p.cols;
  return {p.x + row * p.x_stride + at,
          p.residual != nullptr ? p.residual + row * p.residual_stride + at : nullptr,
          p.out + row * p.out_stride + at};
}

template <class T>
__device__ __forceinline__ uint4 added(uint4 x, uint4 residual) {
  float sum[kPiece<T>], more[kPiece<T>];
  unpack_piece<T>(residual, sum);
  unpack_piece<T>(x, more);
#pragma unroll
  for (int32_t i = 0; i < kPiece<T>; ++i) sum[i] += more[i];
  return pack_piece<T>(sum);
}

template <class T>
__device__ __forceinline__ float add_squares(uint4 piece, float squares) {
  float values[kPiece<T>];
  unpack_piece<T>(piece, values);
#pragma unroll
  for (int32_t i = 0; i < kPiece<T>; ++i) squares = fma_rn(values[i], values[i], squares);
  return squares;
}

template <bool IsWhole, class T>
__device__ __forceinline__ uint4 scaled(const RmsNormParams<T>& p, uint4 piece, float scale,
                                        const PlainPiece<IsWhole, kPiece<T>>& weight) {
  float values[kPiece<T>], weights[kPiece<T>];
  unpack_piece<T>(piece, values);
  weight.unpack(p.weight, weights);
#pragma unroll
  for (int32_t i = 0; i < kPiece<T>; ++i) values[i] = values[i] * scale * (p.offset + weights[i]);
  return pack_piece<T>(values);
}

// Thread `at` of `threads` of one group of `cols` columns: it has pieces at, at + threads, ..., and keeps `Held` of them;
// HasRest: there may be more.
template <bool IsWhole, int32_t Held, bool HasRest, class T, class Reduce>
__device__ __forceinline__ void normalise_pieces(const RmsNormParams<T>& p, const Group<T>& group,
                                                 int64_t cols, uint32_t at, uint32_t threads,
                                                 const Reduce& reduce) {
  const int64_t first = int64_t{at} * kPiece<T>, step = int64_t{threads} * kPiece<T>;
  uint4 values[Held], before[Held] = {};
  PlainPiece<IsWhole, kPiece<T>> weights[Held];
#pragma unroll
  for (int32_t h = 0; h < Held; ++h) {
    const int64_t c = first + h * step;
    values[h] = load_piece<IsWhole>(group.x + c, cols - c);
    if (group.residual != nullptr) before[h] = load_piece<IsWhole>(group.residual + c, cols - c);
    weights[h].load(p.weight, c, cols - c);
  }
  float squares = 0.0f;
#pragma unroll
  for (int32_t h = 0; h < Held; ++h) {
    const int64_t c = first + h * step;
    if (group.residual != nullptr) {
      values[h] = added<T>(values[h], before[h]);
      store_piece<IsWhole>(group.residual + c, values[h], cols - c);
    }
    squares = add_squares<T>(values[h], squares);
  }
#pragma unroll 1
  for (int64_t c = first + Held * step; HasRest && c < cols; c += step) {
    uint4 piece = load_piece<IsWhole>(group.x + c, cols - c);
    if (group.residual != nullptr) {
      piece = added<T>(piece, load_piece<IsWhole>(group.residual + c, cols - c));
      store_piece<IsWhole>(group.residual + c, piece, cols - c);
    }
    squares = add_squares<T>(piece, squares);
  }
  const float scale = rsqrt_exact(reduce(squares) / static_cast<float>(p.cols) + p.eps);
#pragma unroll
  for (int32_t h = 0; h < Held; ++h) {
    const int64_t c = first + h * step;
    store_piece<IsWhole>(group.out + c, scaled<IsWhole>(p, values[h], scale, weights[h]), cols - c);
  }
  const T* from = group.residual != nullptr ? group.residual : group.x;
#pragma unroll 1
  for (int64_t c = first + Held * step; HasRest && c < cols; c += step) {
    weights[0].load(p.weight, c, cols - c);
    const uint4 piece = load_piece<IsWhole>(from + c, cols - c);
    store_piece<IsWhole>(group.out + c, scaled<IsWhole>(p, piece, scale, weights[0]), cols - c);
  }
}

template <int32_t Held, bool HasRest, class T, class Reduce>
__device__ __forceinline__ void normalise(const RmsNormParams<T>& p, const Group<T>& group, int64_t cols,
                                          uint32_t at, uint32_t threads, const Reduce& reduce) {
  if (p.is_whole != 0) {
    normalise_pieces<true, Held, HasRest>(p, group, cols, at, threads, reduce);
  } else {
    normalise_pieces<false, 1, HasRest>(p, group, cols, at, threads, reduce);
  }
}

// Before the wait: the weight, on its way to L2. The rest is there already, from the kernels before.
template <class T>
__device__ __forceinline__ void prefetch_weight(const RmsNormParams<T>& p) {
  constexpr int64_t kLine = 128;
  const auto* weight = static_cast<const unsigned char*>(p.weight.data);
  const int64_t bytes = p.cols * (p.weight.kind == 0 ? 4 : 2);
  for (int64_t at = int64_t{threadIdx.x} * kLine; at < bytes; at += int64_t{blockDim.x} * kLine)
    prefetch_line(weight + at);
}

template <class T, int32_t Held>
__global__ void __launch_bounds__(Held == 1 ? kOnePieceThreads : kMaxThreads, Held == 1 ? 4 : 1)
    rmsnorm_block_kernel(const __grid_constant__ RmsNormParams<T> p) {
  prefetch_weight(p);
  wait_for_previous();
  normalise<Held, (Held > 1)>(p, group_of(p, blockIdx.x, blockIdx.y), p.cols, threadIdx.x, blockDim.x,
                              [](float squares) { return block_sum(squares, shared_memory<float>()); });
}

template <class T>
__global__ void __launch_bounds__(kWarpThreads, 5)
    rmsnorm_warp_kernel(const __grid_constant__ RmsNormParams<T> p) {
  prefetch_weight(p);
  wait_for_previous();
  const uint32_t of_warp = kWarpSize / p.lanes, first = (blockIdx.x * kWarps + warp_idx()) * of_warp;
  if (first >= p.items) return;  // a whole warp
  const uint32_t item = first + lane_idx() / p.lanes;
  const uint32_t there = min(item, p.items - 1);
  normalise<1, true>(p, group_of(p, there / p.groups, there % p.groups), item < p.items ? p.cols : 0,
                     lane_idx() % p.lanes, p.lanes, [&](float squares) {
                       for (uint32_t bits = p.lanes / 2; bits > 0; bits /= 2)
                         squares += shuffle_xor(squares, bits);
                       return squares;
                     });
}

uint32_t whole_warps(int64_t threads) { return blocks_of(threads, kWarpSize) * kWarpSize; }

}  // namespace

void rmsnorm(Context& context, const RmsNormArgs& args) {
  if (args.x.rows == 0) return;
  const int64_t cols = args.weight.cols, groups = args.x.cols / cols, items = args.x.rows * groups;
  CHECK(items <= INT32_MAX) << args.x.rows << " rows of " << groups << " groups";
  const bool is_whole = has_whole_pieces(args.x) && has_whole_pieces(args.residual) &&
                        has_whole_pieces(args.out) && bytes_of(args.x.dtype, cols) % 16 == 0 &&
                        reinterpret_cast<uintptr_t>(args.weight.data) % 16 == 0;
  dispatch_float(args.x.dtype, [&]<class T>() {
    const auto pieces = int64_t{blocks_of(cols, kPiece<T>)};
    RmsNormParams<T> params{static_cast<const T*>(args.x.data),
                            static_cast<T*>(args.residual.data),
                            static_cast<T*>(args.out.data),
                            plain_values(args.weight),
                            args.x.stride,
                            args.residual.stride,
                            args.out.stride,
                            cols,
                            static_cast<uint32_t>(groups),
                            static_cast<uint32_t>(items),
                            kWarpSize,
                            args.eps,
                            args.offset,
                            is_whole ? 1 : 0};
    if (cols <= kWarpCols) {
      params.lanes = std::min(std::bit_ceil(static_cast<uint32_t>(pieces)), kWarpSize);
      launch(rmsnorm_warp_kernel<T>, {.x = blocks_of(items, int64_t{kWarps} * (kWarpSize / params.lanes))},
             kWarpThreads, 0, context.ready(), params);
      return;
    }
    const Grid grid{.x = static_cast<uint32_t>(args.x.rows), .y = static_cast<uint32_t>(groups)};
    constexpr uint32_t kShared = kWarpSize * sizeof(float);
    if (pieces <= kOnePieceThreads) {
      launch(rmsnorm_block_kernel<T, 1>, grid, whole_warps(pieces), kShared, context.ready(), params);
    } else {
      const uint32_t threads = std::min(whole_warps((pieces + 1) / 2), kMaxThreads);
      launch(rmsnorm_block_kernel<T, 2>, grid, threads, kShared, context.ready(), params);
    }
  });
}

}  // namespace restkv::cuda

// out[t, n] = sum over c of x[t, c] * weight[n, c] + bias[n] for up to three weights of one input (Q, K, V; gate, up).
// Two kernels; both add in f32 in an order that depends on C alone:
//   tiles   (T > 1, or `deterministic`): 64 x 64 outputs a block, 4 warps of 32 x 32 on mma.sync m16n8k16, a ring of three 32-wide
//           slices by cp.async. Matrix-bound beyond some 200 rows. Shared memory 30 KB (16-bit), 60 KB (f32: 2 blocks, not 3).
//   streams (T = 1): a block streams four weight rows past L1, the 4 warps taking turns at the columns, so that a piece of x serves
//           four rows; a lane has 8 accesses of 16 bytes on their way. Memory-bound: 8 blocks keep 128 KB of a multiprocessor
//           on their way, the first of them already while the kernel before ends (wait_for_previous). N = 4,096 on 132
//           multiprocessors is 1,024 blocks of 1,056 places: one wave, 97% full.
// f32 (tests) uses exact products in the same places. Products of several rows in 16 bits are the vendor's library's where
// there is one and not `deterministic` (Runtime::multiply); outputs whose weights and results lie side by side are one product.
// Occupancy: matmul_tile_kernel 128 x 3, matmul_stream_kernel 128 x 8.
#include <algorithm>

#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/plain_values.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/tile.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kMaxOutputs = 3;
constexpr uint32_t kThreads = 128, kWarps = kThreads / kWarpSize;
constexpr int32_t kTileM = 64, kTileN = 64, kTileK = 32, kStages = 3;
constexpr int32_t kStride =
    kTileK + 8;                     // of a row in shared memory: 80 bytes, ldmatrix without bank conflicts
constexpr int32_t kStreamRows = 4;  // of a weight, a block's
template <class T>
constexpr int32_t kPer16 = 16 / sizeof(T);
template <class T>
constexpr int32_t kInFlight = kIsHalf<T> ? 2 : 1;  // pieces of each
static_assert(kWarps == 4 && kTileM == 2 * 32 && kTileN == 2 * 32, "a warp owns a quarter of the tile");

template <class T>
struct Output {
  const T* weight;   // [N, C]
  void* out;         // [T, N] of T, or of f32
  PlainValues bias;  // [N] or null
  int64_t weight_stride, out_stride;
  int64_t num;          // N
  int32_t first_block;  // of the blocks over all outputs
  bool is_f32;
};

template <class T>
struct MatmulParams {
  const T* x;  // [T, C]
  int64_t x_stride;
  int64_t rows, cols;  // T, C
  Output<T> outputs[kMaxOutputs];
  int32_t num_outputs;
  int32_t
      is_aligned;  // rows of x and of the weights begin at multiples of 16 bytes; no padding behind the array (LaunchList)
};

template <class T>
struct MatmulTiles {
  T x[kStages][kTileM * kStride];
  T weight[kStages][kTileN * kStride];
};

static_assert(fits_multiprocessor(sizeof(MatmulTiles<bf16>), 3) &&
              fits_multiprocessor(sizeof(MatmulTiles<float>), 2));

template <class T>
__device__ __forceinline__ const Output<T>& output_of(const MatmulParams<T>& p, int32_t block) {
  int32_t i = 0;
  while (i + 1 < p.num_outputs && block >= p.outputs[i + 1].first_block) ++i;
  return p.outputs[i];
}

template <class T>
__device__ __forceinline__ void put(const Output<T>& output, int64_t row, int64_t n, float value) {
  if (output.bias.data != nullptr) value += output.bias[n];
  if (output.is_f32) {
    static_cast<float*>(output.out)[row * output.out_stride + n] = value;
  } else {
    static_cast<T*>(output.out)[row * output.out_stride + n] = from_f32<T>(value);
  }
}

// Columns [k, k + 32) of 64 rows from `first` on; rows beyond `rows` and columns beyond `cols` become 0.
template <class T>
__device__ __forceinline__ void load_slice(T* tile, const T* from, int64_t stride, int64_t first,
                                           int64_t rows, int64_t cols, int64_t k, bool is_aligned) {
  if (is_aligned) {
    constexpr int32_t kChunks = kTileK / kPer16<T>;  // of a row
    static_assert(!kIsHalf<T> || kChunks == 4);
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kTileM * kChunks;
         i += static_cast<int32_t>(kThreads)) {
      // 16-bit rows are 80 bytes apart: 8 lanes write one column of 8 rows, as ldmatrix reads them, and meet on no bank; a warp
      // still reads whole sectors. f32 rows fill the banks alone.
      const int32_t r = kIsHalf<T> ? i / 32 * 8 + i % 8 : i / kChunks;
      const int32_t c = (kIsHalf<T> ? i % 32 / 8 : i % kChunks) * kPer16<T>;
      const int64_t left = first + r < rows ? cols - k - c : 0;
      const auto valid = static_cast<uint32_t>(max(int64_t{0}, min(left, int64_t{kPer16<T>}))) * sizeof(T);
      cp_async16(tile + r * kStride + c, valid > 0 ? from + (first + r) * stride + k + c : from, valid);
    }
    return;
  }
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kTileM * kTileK;
       i += static_cast<int32_t>(kThreads)) {
    const int32_t r = i / kTileK, c = i % kTileK;
    const bool is_there = first + r < rows && k + c < cols;
    tile[r * kStride + c] = is_there ? from[(first + r) * stride + k + c] : from_f32<T>(0.0f);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3) matmul_tile_kernel(const __grid_constant__ MatmulParams<T> p) {
  wait_for_previous();
  auto& tiles = *shared_memory<MatmulTiles<T>>();
  const Output<T>& output = output_of(p, static_cast<int32_t>(blockIdx.y));
  const int64_t row0 = int64_t{blockIdx.x} * kTileM;
  const int64_t n0 = int64_t{static_cast<int32_t>(blockIdx.y) - output.first_block} * kTileN;
  const auto warp = static_cast<int32_t>(warp_idx());
  const int32_t warp_m = warp / 2 * 32, warp_n = warp % 2 * 32;

  const int64_t slices = (p.cols + kTileK - 1) / kTileK;
  const auto fetch = [&](int64_t slice) {
    if (slice < slices) {
      const int64_t stage = slice % kStages;
      load_slice(tiles.x[stage], p.x, p.x_stride, row0, p.rows, p.cols, slice * kTileK, p.is_aligned != 0);
      load_slice(tiles.weight[stage], output.weight, output.weight_stride, n0, output.num, p.cols,
                 slice * kTileK, p.is_aligned != 0);
    }
    cp_async_commit();
  };

  float sums[2][4][4] = {};  // 16-row blocks x 8-column blocks x the lane's four
  fetch(0);
  fetch(1);
  for (int64_t slice = 0; slice < slices; ++slice) {
    cp_async_wait<1>();
    sync_threads();  // everybody's part has landed, and the stage fetched next is read no more
    fetch(slice + 2);
    const T* x = tiles.x[slice % kStages] + warp_m * kStride;
    const T* weight = tiles.weight[slice % kStages] + warp_n * kStride;
#pragma unroll
    for (int32_t k = 0; k < kTileK; k += 16) {
      MmaA<T> a[2];
      load_a(a[0], x + k, kStride);
      load_a(a[1], x + 16 * kStride + k, kStride);
#pragma unroll
      for (int32_t n = 0; n < 4; ++n) {
        MmaB<T> b;
        load_b(b, weight + n * 8 * kStride + k, kStride);
        mma(sums[0][n], a[0], b);
        mma(sums[1][n], a[1], b);
      }
    }
  }
  cp_async_wait<0>();

  const auto group = static_cast<int32_t>(lane_idx() / 4), pair = static_cast<int32_t>(lane_idx() % 4) * 2;
#pragma unroll
  for (int32_t m = 0; m < 2; ++m) {
#pragma unroll
    for (int32_t n = 0; n < 4; ++n) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        const int64_t row = row0 + warp_m + m * 16 + group + i / 2 * 8;
        const int64_t column = n0 + warp_n + n * 8 + pair + i % 2;
        if (row < p.rows && column < output.num) put(output, row, column, sums[m][n][i]);
      }
    }
  }
}

// Two values of T out of 4 bytes, or one f32.
template <class T>
__device__ __forceinline__ float multiply_chunk(uint4 a, uint4 b, float sum) {
  const uint32_t x[4] = {a.x, a.y, a.z, a.w}, w[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    if constexpr (kIsHalf<T>) {
      const float2 left = unpack2<T>(x[i]), right = unpack2<T>(w[i]);
      sum = fma_rn(left.x, right.x, sum);
      sum = fma_rn(left.y, right.y, sum);
    } else {
      sum = fma_rn(bits_to_f32(x[i]), bits_to_f32(w[i]), sum);
    }
  }
  return sum;
}

// Columns c, c + step, ... of the rows: `Count` pieces of each.
template <int32_t Count, class T>
__device__ __forceinline__ void load_weights(uint4 (&weights)[Count][kStreamRows],
                                             const T* const (&rows)[kStreamRows], int64_t c, int64_t step) {
#pragma unroll
  for (int32_t i = 0; i < Count; ++i) {
#pragma unroll
    for (int32_t r = 0; r < kStreamRows; ++r) weights[i][r] = load_streamed(rows[r] + c + i * step);
  }
}

template <int32_t Count, class T>
__device__ __forceinline__ void multiply_held(float (&sums)[kStreamRows], const T* x,
                                              const uint4 (&weights)[Count][kStreamRows], int64_t c,
                                              int64_t step) {
  uint4 pieces[Count];
#pragma unroll
  for (int32_t i = 0; i < Count; ++i) pieces[i] = load_vector<uint4>(x + c + i * step);
#pragma unroll
  for (int32_t i = 0; i < Count; ++i) {
#pragma unroll
    for (int32_t r = 0; r < kStreamRows; ++r) sums[r] = multiply_chunk<T>(pieces[i], weights[i][r], sums[r]);
  }
}

template <class T>
constexpr int64_t kStreamStep = int64_t{kThreads} * kPer16<T>;  // columns a block's threads take at once

// Columns that are read in pieces.
template <class T>
__device__ __forceinline__ int64_t whole_columns(const MatmulParams<T>& p) {
  return p.is_aligned != 0 ? p.cols / kPer16<T> * kPer16<T> : 0;
}

// The rows of a block, and the first pieces of them where the thread has as many.
template <class T>
struct StreamRows {
  const Output<T>* output;
  int64_t first;
  const T* rows[kStreamRows];  // the last one again for those beyond
  uint4 weights[kInFlight<T>][kStreamRows];
  bool is_held;
};

// Before the wait: a weight, placed at load. What a multiprocessor can have on its way is, when x is there.
template <class T>
__device__ __forceinline__ StreamRows<T> prefetch_rows(const MatmulParams<T>& p) {
  StreamRows<T> block{};
  block.output = &output_of(p, static_cast<int32_t>(blockIdx.x));
  block.first = int64_t{static_cast<int32_t>(blockIdx.x) - block.output->first_block} * kStreamRows;
#pragma unroll
  for (int32_t r = 0; r < kStreamRows; ++r) {
    const int64_t row = min(block.first + r, block.output->num - 1);
    block.rows[r] = block.output->weight + row * block.output->weight_stride;
  }
  const int64_t c = int64_t{threadIdx.x} * kPer16<T>;
  block.is_held = c + (kInFlight<T> - 1) * kStreamStep<T> < whole_columns(p);
  if (block.is_held) load_weights(block.weights, block.rows, c, kStreamStep<T>);
  return block;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 8)
    matmul_stream_kernel(const __grid_constant__ MatmulParams<T> p) {
  StreamRows<T> block = prefetch_rows(p);
  wait_for_previous();
  auto* partial = shared_memory<float>();  // [kStreamRows, kWarps]
  const Output<T>& output = *block.output;
  const auto& rows = block.rows;
  constexpr int64_t kStep = kStreamStep<T>;
  const int64_t first = block.first, whole = whole_columns(p);
  float sums[kStreamRows] = {};
  int64_t c = int64_t{threadIdx.x} * kPer16<T>;
  if (block.is_held) {
    multiply_held(sums, p.x, block.weights, c, kStep);
    c += kInFlight<T> * kStep;
  }
#pragma unroll 1
  for (; c + (kInFlight<T> - 1) * kStep < whole; c += kInFlight<T> * kStep) {
    load_weights(block.weights, rows, c, kStep);
    multiply_held(sums, p.x, block.weights, c, kStep);
  }
#pragma unroll 1
  for (; c < whole; c += kStep) {
    uint4 weights[1][kStreamRows];
    load_weights(weights, rows, c, kStep);
    multiply_held(sums, p.x, weights, c, kStep);
  }
#pragma unroll 1
  for (c = whole + threadIdx.x; c < p.cols; c += kThreads) {
    const float x = to_f32(p.x[c]);
#pragma unroll
    for (int32_t r = 0; r < kStreamRows; ++r) sums[r] = fma_rn(x, to_f32(rows[r][c]), sums[r]);
  }
#pragma unroll
  for (int32_t r = 0; r < kStreamRows; ++r) {
    const float sum = warp_reduce(sums[r], Sum{});
    if (lane_idx() == 0) partial[r * static_cast<int32_t>(kWarps) + static_cast<int32_t>(warp_idx())] = sum;
  }
  sync_threads();
  const int64_t n = first + threadIdx.x;
  if (threadIdx.x >= kStreamRows || n >= output.num) return;
  const auto four = load_vector<float4>(partial + threadIdx.x * kWarps);
  put(output, 0, n, four.x + four.y + four.z + four.w);
}

template <class T>
bool is_aligned(const MatmulArgs& args, std::span<const MatmulOutput> outputs) {
  const auto rows_are = [](const void* data, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
  };
  bool all = rows_are(args.x.data, args.x.stride);
  for (const MatmulOutput& output : outputs) all &= rows_are(output.weight.data, output.weight.stride);
  return all;
}

template <class T>
void run(Context& context, const MatmulArgs& args, std::span<const MatmulOutput> outputs, bool streams) {
  MatmulParams<T> params{};
  params.x = static_cast<const T*>(args.x.data);
  params.x_stride = args.x.stride;
  params.rows = args.x.rows;
  params.cols = args.x.cols;
  params.num_outputs = static_cast<int32_t>(outputs.size());
  params.is_aligned = is_aligned<T>(args, outputs) ? 1 : 0;
  uint32_t blocks = 0;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const MatmulOutput& output = outputs[i];
    CHECK(output.weight.dtype == args.x.dtype)
        << "the weight was not placed: " << dtype_info(output.weight.dtype).name;
    params.outputs[i] = {static_cast<const T*>(output.weight.data),
                         output.out.data,
                         plain_values(output.bias),
                         output.weight.stride,
                         output.out.stride,
                         output.weight.rows,
                         static_cast<int32_t>(blocks),
                         output.out.dtype == DType::kF32};
    blocks += blocks_of(output.weight.rows, streams ? int64_t{kStreamRows} : int64_t{kTileN});
  }
  if (blocks == 0) return;
  if (streams) {
    launch(matmul_stream_kernel<T>, {.x = blocks}, kThreads, kStreamRows * kWarps * sizeof(float),
           context.ready(), params);
  } else {
    launch(matmul_tile_kernel<T>, {.x = blocks_of(args.x.rows, kTileM), .y = blocks}, kThreads,
           sizeof(MatmulTiles<T>), context.ready(), params);
  }
}

Product product_of(const MatmulArgs& args, const MatmulOutput& output) {
  return {.x = args.x.data,
          .weight = output.weight.data,
          .out = output.out.data,
          .bias = output.bias.data,
          .rows = args.x.rows,
          .cols = args.x.cols,
          .num = output.weight.rows,
          .x_stride = args.x.stride,
          .weight_stride = output.weight.stride,
          .out_stride = output.out.stride,
          .type = args.x.dtype,
          .out_type = output.out.dtype};
}

// The rows of one weight behind those of another, the columns of its result beside those of the other.
bool joins(const Product& all, const Product& next) {
  const auto behind = [](const void* data, DType type, int64_t count) {
    return static_cast<const std::byte*>(data) + bytes_of(type, count);
  };
  return all.weight_stride == next.weight_stride && all.out_stride == next.out_stride &&
         all.out_type == next.out_type && all.bias == nullptr && next.bias == nullptr &&
         behind(all.weight, all.type, all.num * all.weight_stride) == next.weight &&
         behind(all.out, all.out_type, all.num) == next.out;
}

// Outputs [0, n) that the library took.
size_t multiply(Context& context, const MatmulArgs& args) {
  size_t done = 0;
  while (done < args.outputs.size()) {
    Product product = product_of(args, args.outputs[done]);
    CHECK(args.outputs[done].weight.dtype == product.type)
        << "the weight was not placed: " << dtype_info(args.outputs[done].weight.dtype).name;
    if (product.bias != nullptr && args.outputs[done].bias.dtype != product.type) return done;
    size_t end = done + 1;
    for (; end < args.outputs.size(); ++end) {
      const Product next = product_of(args, args.outputs[end]);
      if (!joins(product, next)) break;
      product.num += next.num;
    }
    if (!context.runtime().multiply(product, context.ready())) return done;
    done = end;
  }
  return done;
}

}  // namespace

void matmul(Context& context, const MatmulArgs& args) {
  const bool streams = args.x.rows == 1 && !context.is_deterministic();
  const bool may_use_library = !streams && !context.is_deterministic() && args.x.dtype != DType::kF32;
  size_t first = may_use_library ? multiply(context, args) : 0;
  for (; first < args.outputs.size(); first += kMaxOutputs) {
    const auto outputs =
        args.outputs.subspan(first, std::min<size_t>(kMaxOutputs, args.outputs.size() - first));
    dispatch_float(args.x.dtype, [&]<class T>() { run<T>(context, args, outputs, streams); });
  }
}

}  // namespace restkv::cuda

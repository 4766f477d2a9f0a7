// factor_projection: R_g [D, D] with ||R_g x|| = ||W_g x||, W_g [M, D] the columns of query head g of W_o, in f64.
//   gram_kernel    grid (tile, head, part)  64 x 64 of G_g = W_g^T W_g, on and above its diagonal, over a part of the M rows
//   factor_kernel  grid (head)              adds the parts in rising order, then Cholesky: G_g = R_g^T R_g
// The sums are as good as a QR of W_g: kernels/cpu/eviction/factor_projection.cpp says why. Products of two f32 are exact, each
// number is one chain in rising order of rows within its part: the same bits in every run, and no atomics.
// Bound: the first by f64 multiply-adds, M*H*D*(D + 64)/2, each tile of W in shared memory as f64 (16 KiB); the second by latency:
// D steps of one block a head, 16 rows of R at a time in shared memory (34 KiB), the others of G in L2. Once a layer in a
// process. As many heads at a time as the workspace holds: 8 parts*D*D bytes each.
// Occupancy: gram_kernel 256 x 2, factor_kernel 256 x 3.
#include <limits>

#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kTile = 64;   // columns of W_g on either side of a tile of G_g
constexpr int32_t kDepth = 16;  // rows of W_g at a time
constexpr int32_t kPanel = 16;  // rows of R_g at a time
constexpr int32_t kPartRows = 1024;
constexpr int32_t kMaxParts = 16;
constexpr int32_t kMaxDim = 256;
constexpr double kRankTolerance = 1e-14;  // as on the CPU
static_assert(kThreads == (kTile / 4) * (kTile / 4), "a thread owns a 4 x 4 patch");
static_assert(kThreads == kDepth * kTile / 4, "a thread loads 4 values of a tile");

struct FactorParams {
  const std::byte* weight;  // [M, H*D]
  int64_t row_bytes;        // of the weight
  DType dtype;              // f32, f16 or bf16
  int32_t rows;             // M
  int32_t dim;              // D
  int32_t first_head;       // of this launch
  int32_t parts;
  int32_t part_rows;  // a multiple of kDepth
  double*
      gram;    // [heads, parts, D, D], written on and above the diagonal; part 0 becomes what is left of G_g
  float* out;  // [H*D, out_stride]
  int64_t out_stride;
};

struct GramShared {
  double a[kDepth][kTile];
  double b[kDepth][kTile];
};

struct FactorShared {
  double panel[kPanel][kMaxDim + 1];  // rows of R_g, of columns from the panel's first one on
  double square[kMaxDim];             // diagonal of G_g
};

// Rows [row, row + kDepth) below `end`, columns [column, column + kTile) of a head; zeros beyond. Column 4 t + n lies at
// 16 n + t: neighbours in a warp write and read neighbours.
__device__ __forceinline__ void load_tile(const FactorParams& p, int64_t head_column, int32_t row,
                                          int32_t end, int32_t column, double (&tile)[kDepth][kTile]) {
  const int32_t r = static_cast<int32_t>(threadIdx.x) / (kTile / 4);
  const int32_t c = static_cast<int32_t>(threadIdx.x) % (kTile / 4) * 4;
  float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
  if (row + r < end && column + c < p.dim) {
    x = load_four(p.weight + (row + r) * p.row_bytes + (head_column + column + c) * bytes_of_element(p.dtype),
                  p.dtype);
  }
  double* to = tile[r] + c / 4;
  to[0] = static_cast<double>(x.x);
  to[kTile / 4] = static_cast<double>(x.y);
  to[2 * (kTile / 4)] = static_cast<double>(x.z);
  to[3 * (kTile / 4)] = static_cast<double>(x.w);
}

static_assert(fits_multiprocessor(sizeof(GramShared), 2) && fits_multiprocessor(sizeof(FactorShared), 3));

__global__ void __launch_bounds__(kThreads, 2) gram_kernel(const __grid_constant__ FactorParams p) {
  wait_for_previous();
  // Tiles (i, j), i <= j, column by column.
  const auto tile = static_cast<int32_t>(blockIdx.x);
  int32_t tile_j = 0;
  while ((tile_j + 1) * (tile_j + 2) / 2 <= tile) ++tile_j;
  const int32_t first_i = (tile - tile_j * (tile_j + 1) / 2) * kTile, first_j = tile_j * kTile;
  const int64_t head_column = (int64_t{p.first_head} + blockIdx.y) * p.dim;
  const int32_t begin = static_cast<int32_t>(blockIdx.z) * p.part_rows;
  const int32_t end = min(p.rows, begin + p.part_rows);
  GramShared& shared = *shared_memory<GramShared>();
  const int32_t i0 = static_cast<int32_t>(threadIdx.x) / 16, j0 = static_cast<int32_t>(threadIdx.x) % 16;
  double sum[4][4] = {};
  for (int32_t row = begin; row < end; row += kDepth) {
    load_tile(p, head_column, row, end, first_i, shared.a);
    load_tile(p, head_column, row, end, first_j, shared.b);
    sync_threads();
#pragma unroll 4
    for (int32_t k = 0; k < kDepth; ++k) {
      double a[4], b[4];
#pragma unroll
      for (int32_t n = 0; n < 4; ++n) {
        a[n] = shared.a[k][i0 + 16 * n];
        b[n] = shared.b[k][j0 + 16 * n];
      }
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
#pragma unroll
        for (int32_t j = 0; j < 4; ++j) sum[i][j] += a[i] * b[j];
      }
    }
    sync_threads();
  }
  double* gram = p.gram + (int64_t{blockIdx.y} * p.parts + blockIdx.z) * p.dim * p.dim;
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      const int32_t row = first_i + 4 * i0 + i, column = first_j + 4 * j0 + j;
      if (row <= column && column < p.dim) gram[row * p.dim + column] = sum[i][j];
    }
  }
}

// Cholesky of the panel's own rows [0, count) x [0, width); `square`: the whole squares of its columns.
__device__ __forceinline__ void factor_panel(int32_t count, int32_t width, const double* square,
                                             double (&panel)[kPanel][kMaxDim + 1]) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  for (int32_t k = 0; k < count; ++k) {
    const double pivot = panel[k][k];
    const bool is_dependent = pivot <= kRankTolerance * square[k];
    const double scale = is_dependent ? 0.0 : 1.0 / sqrt(pivot);
    sync_threads();  // all have read the pivot
    for (int32_t c = k + thread; c < width; c += kThreads) panel[k][c] *= scale;
    sync_threads();
    for (int32_t r = k + 1; r < count; ++r) {
      for (int32_t c = r + thread; c < width; c += kThreads) panel[r][c] -= panel[k][r] * panel[k][c];
    }
    sync_threads();
  }
}

__global__ void __launch_bounds__(kThreads, 3) factor_kernel(const __grid_constant__ FactorParams p) {
  wait_for_previous();
  FactorShared& shared = *shared_memory<FactorShared>();
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t dim = p.dim, size = dim * dim;
  double* gram = p.gram + int64_t{blockIdx.x} * p.parts * size;
  float* out = p.out + (int64_t{p.first_head} + blockIdx.x) * dim * p.out_stride;
  for (int32_t i = thread; i < size; i += kThreads) {
    const int32_t row = i / dim, column = i % dim;
    if (column > row) out[row * p.out_stride + column] = 0.0f;
    if (column < row) continue;
    double sum = gram[i];
    for (int32_t part = 1; part < p.parts; ++part) sum += gram[int64_t{part} * size + i];
    gram[i] = sum;
    if (row == column) shared.square[row] = sum;
  }
  sync_threads();
  double trace = 0.0;
  for (int32_t k = 0; k < dim; ++k) trace += shared.square[k];
  if (!(trace < std::numeric_limits<double>::infinity())) {  // a weight is not finite
    for (int32_t i = thread; i < size; i += kThreads) {
      const int32_t row = i / dim, column = i % dim;
      if (column <= row) out[row * p.out_stride + column] = std::numeric_limits<float>::quiet_NaN();
    }
    return;
  }
  for (int32_t first = 0; first < dim; first += kPanel) {
    const int32_t count = min(kPanel, dim - first), width = dim - first;
    for (int32_t i = thread; i < count * width; i += kThreads) {
      const int32_t r = i / width, c = i % width;
      if (c >= r) shared.panel[r][c] = gram[(first + r) * dim + first + c];
    }
    sync_threads();
    factor_panel(count, width, shared.square + first, shared.panel);
    for (int32_t i = thread; i < count * width; i += kThreads) {
      const int32_t r = i % count, c = i / count;
      if (c >= r) out[(first + c) * p.out_stride + first + r] = static_cast<float>(shared.panel[r][c]);
    }
    const int32_t rest = width - count;
    for (int32_t i = thread; i < rest * rest; i += kThreads) {
      const int32_t row = count + i / rest, column = count + i % rest;
      if (column < row) continue;
      double* left = gram + (first + row) * dim + first + column;
      double sum = *left;
      for (int32_t r = 0; r < count; ++r) sum -= shared.panel[r][row] * shared.panel[r][column];
      *left = sum;
    }
    sync_threads();
  }
}

}  // namespace

void factor_projection(Context& context, const FactorProjectionArgs& args) {
  const ConstTensor& weight = args.weight;
  const auto dim = static_cast<int32_t>(args.out.cols);
  CHECK(dim % 8 == 0 && dim <= kMaxDim) << "head dim " << dim;
  CHECK(weight.dtype == DType::kF32 || weight.dtype == DType::kF16 || weight.dtype == DType::kBF16)
      << "no kernel for " << dtype_info(weight.dtype).name;
  CHECK(weight.stride % 4 == 0 && weight.rows < INT32_MAX)
      << weight.rows << " rows, stride " << weight.stride;
  FactorParams params{};
  params.weight = static_cast<const std::byte*>(weight.data);
  params.row_bytes = bytes_of(weight.dtype, weight.stride);
  params.dtype = weight.dtype;
  params.rows = static_cast<int32_t>(weight.rows);
  params.dim = dim;
  params.parts = std::min(kMaxParts, (params.rows + kPartRows - 1) / kPartRows);
  params.part_rows = ((params.rows + params.parts - 1) / params.parts + kDepth - 1) / kDepth * kDepth;
  params.out = args.out.f32(0);
  params.out_stride = args.out.stride;
  const int64_t per_head = int64_t{params.parts} * dim * dim;
  const int64_t batch = std::min<int64_t>(
      {args.num_heads, (context.workspace_left() - 256) / (per_head * int64_t{sizeof(double)}), 65535});
  CHECK(batch > 0) << "a workspace of " << context.workspace_left() << " bytes for " << per_head * 8;
  params.gram = context.workspace<double>(batch * per_head);
  const uint32_t tiles = blocks_of(dim, kTile);
  for (int64_t first = 0; first < args.num_heads; first += batch) {
    params.first_head = static_cast<int32_t>(first);
    const auto count = static_cast<uint32_t>(std::min<int64_t>(batch, args.num_heads - first));
    launch(gram_kernel, {.x = tiles * (tiles + 1) / 2, .y = count, .z = static_cast<uint32_t>(params.parts)},
           kThreads, sizeof(GramShared), context.ready(), params);
    launch(factor_kernel, {.x = count}, kThreads, sizeof(FactorShared), context.ready(), params);
  }
}

}  // namespace restkv::cuda

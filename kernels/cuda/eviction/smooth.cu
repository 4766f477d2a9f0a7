// smooth: pooling of scores over neighbouring rows (PoolKind says which rows a row sees). After prefill only: neighbours in
// slots are then neighbours in text. Rows that are not finite count as 0 for their neighbours and stay first themselves.
// Grid: (256 rows, KV head, item); a thread owns one row and reads its neighbours from L1. The drift of kAdaptive is summed
// by one thread of each block in the CPU's order, in f64, so that every block and every backend finds the same kernel.
// Bound: bandwidth, 8 bytes a row. No shared memory but the drift's 8 bytes.
// Occupancy: smooth_kernel 256 x 6.
#include "kernels/cuda/eviction/item_views.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kSmoothThreads = 256;

struct SmoothView {
  RowsView rows;            // for the lengths
  const float* in;          // [K, in_stride]
  float* out;               // [K, out_stride]
  const float* mean_index;  // [H, index_stride], kAdaptive
  int64_t in_stride;
  int64_t out_stride;
  int64_t index_stride;
  int32_t window_rows;
  int32_t num_queries;
};

struct SmoothParams {
  const SmoothView* items;
  PoolKind kind;
  int32_t kernel;
  int32_t scale;
  int32_t group;
};

struct SmoothShared {
  int32_t width, first;  // row j pools rows j + first .. j + first + width - 1
};

// What a row gives its neighbours.
__device__ __forceinline__ float source(const float* in, int64_t row) {
  return fabsf(in[row]) < kInfinity ? in[row] : 0.0f;
}

// kernels/eviction.h adaptive_kernel, of the mean over the group of: mean index of the top rows over the earlier half of
// the queries, minus the later half.
__device__ __forceinline__ void adaptive(const SmoothParams& p, const SmoothView& item, int32_t head,
                                         SmoothShared& shared) {
  const int32_t half = item.num_queries / 2;
  double drift = 0.0;
  for (int32_t g = 0; g < p.group && half > 0; ++g) {
    const float* index = item.mean_index + (int64_t{head} * p.group + g) * item.index_stride;
    for (int32_t t = 0; t < half; ++t) {
      drift += static_cast<double>(index[t]) - static_cast<double>(index[item.num_queries - half + t]);
    }
  }
  if (half > 0) drift /= static_cast<double>(half) * p.group;
  constexpr double kMost = kMaxDriftSteps;
  const double steps = fmin(fmax(drift / p.scale, -kMost), kMost);
  const auto reach = static_cast<int32_t>(floor(fabs(steps)));
  const int32_t shift = static_cast<int32_t>(floor(steps)) + (drift > 0.0 ? 0 : 1);
  shared.width = max(p.kernel, 2 * reach + 1);
  shared.first = shift - shared.width / 2;
}

__global__ void __launch_bounds__(kSmoothThreads, 6) smooth_kernel(const __grid_constant__ SmoothParams p) {
  wait_for_previous();
  const SmoothView& item = p.items[blockIdx.z];
  const auto head = static_cast<int32_t>(blockIdx.y);
  const int64_t n = (item.rows.kv_len ? item.rows.kv_len[head] : 0) + item.rows.scratch_rows;
  if (int64_t{blockIdx.x} * kSmoothThreads >= n) return;
  SmoothShared& shared = *shared_memory<SmoothShared>();
  if (threadIdx.x == 0) {
    shared.width = p.kernel;
    shared.first = p.kind == PoolKind::kForward ? 1 - p.kernel : -(p.kernel / 2);
    if (p.kind == PoolKind::kAdaptive) adaptive(p, item, head, shared);
  }
  sync_threads();
  const int64_t row = int64_t{blockIdx.x} * kSmoothThreads + threadIdx.x;
  if (row >= n) return;
  const float* in = item.in + head * item.in_stride;
  float* out = item.out + head * item.out_stride;
  const int64_t pooled = p.kind == PoolKind::kForward ? n : max(int64_t{0}, n - item.window_rows);
  const float own = in[row];
  if (!(fabsf(own) < kInfinity)) {
    out[row] = kInfinity;
    return;
  }
  if (p.kind == PoolKind::kNone || row >= pooled) {
    out[row] = own;
    return;
  }
  const int64_t begin = row + shared.first, end = begin + shared.width;
  float value = 0.0f;
  switch (p.kind) {
    case PoolKind::kAdaptive:
      for (int64_t i = begin; i < end; ++i) value += source(in, min(max(i, int64_t{0}), pooled - 1));
      break;
    case PoolKind::kAvg:
      for (int64_t i = max(begin, int64_t{0}); i < min(end, pooled); ++i) value += source(in, i);
      break;
    default:
      value = own;
      for (int64_t i = max(begin, int64_t{0}); i < min(end, pooled); ++i) value = max(value, source(in, i));
      break;
  }
  if (p.kind == PoolKind::kAdaptive || p.kind == PoolKind::kAvg) value /= static_cast<float>(shared.width);
  out[row] = value;
}

}  // namespace

void smooth(Context& context, const SmoothArgs& args) {
  const int32_t num_kv_heads = args.shape.num_kv_heads;
  const Staged<SmoothView> items = context.stage<SmoothView>(args.items.size());
  size_t count = 0;
  int32_t most = 0;
  for (const SmoothItem& item : args.items) {
    SmoothView view{};
    view.rows = rows_view(context, item.rows, num_kv_heads);
    view.in = static_cast<const float*>(item.in.data);
    view.in_stride = item.in.stride;
    view.out = static_cast<float*>(item.out.data);
    view.out_stride = item.out.stride;
    view.mean_index = static_cast<const float*>(item.observation.mean_index.data);
    view.index_stride = item.observation.mean_index.stride;
    view.window_rows = item.window_rows;
    view.num_queries = item.num_queries;
    items.host[count++] = view;
    most = std::max(most, most_rows(item.rows, num_kv_heads));
  }
  if (most == 0) return;
  const SmoothParams params{.items = items.device,
                            .kind = args.kind,
                            .kernel = args.kernel,
                            .scale = args.scale,
                            .group = args.shape.num_heads / num_kv_heads};
  launch(smooth_kernel,
         {.x = blocks_of(most, kSmoothThreads),
          .y = static_cast<uint32_t>(num_kv_heads),
          .z = static_cast<uint32_t>(count)},
         kSmoothThreads, sizeof(SmoothShared), context.ready(), params);
}

}  // namespace restkv::cuda

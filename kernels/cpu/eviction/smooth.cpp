// smooth: pooling of scores over neighbouring rows, one KV head a unit. After prefill only: neighbours in slots are then
// neighbours in text.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/eviction/eviction_ops.h"
#include "kernels/cpu/eviction/score_key.h"

namespace restkv::cpu {
namespace {

// What a row gives its neighbours: a row that is not finite must not take them along.
float source(const float* in, int64_t row) { return std::isfinite(in[row]) ? in[row] : 0.0f; }

// Mean over the group of: mean index of the top rows over the earlier half of the queries, minus the later half.
double group_drift(const SmoothArgs& args, const SmoothItem& item, int32_t kv_head) {
  const int32_t group = args.shape.num_heads / args.shape.num_kv_heads;
  const int32_t half = item.num_queries / 2;
  if (half == 0) return 0.0;
  double drift = 0.0;
  for (int32_t g = 0; g < group; ++g) {
    const float* index = item.observation.mean_index.f32(kv_head * group + g);
    for (int32_t t = 0; t < half; ++t) {
      drift += static_cast<double>(index[t]) - static_cast<double>(index[item.num_queries - half + t]);
    }
  }
  return drift / (static_cast<double>(half) * group);
}

void smooth_head(const SmoothArgs& args, const SmoothItem& item, int32_t head) {
  const int64_t n = item.rows.num_rows(head);
  const float* in = item.in.f32(head);
  float* out = item.out.f32(head);
  const int64_t pooled =
      args.kind == PoolKind::kForward ? n : std::max<int64_t>(0, n - item.window_rows);  // rows [0, pooled)
  int64_t width = args.kernel, first = 0;  // row j pools rows j + first .. j + first + width - 1
  if (args.kind == PoolKind::kForward) {
    first = 1 - width;
  } else if (args.kind == PoolKind::kAdaptive) {
    const AdaptiveKernel kernel = adaptive_kernel(group_drift(args, item, head), args.kernel, args.scale);
    width = kernel.width;
    first = kernel.shift - width / 2;
  } else {
    first = -(width / 2);
  }
  for (int64_t j = 0; j < n; ++j) {
    if (!std::isfinite(in[j])) {
      out[j] = std::numeric_limits<float>::infinity();
      continue;
    }
    if (args.kind == PoolKind::kNone || j >= pooled) {
      out[j] = in[j];
      continue;
    }
    float value = args.kind == PoolKind::kMax || args.kind == PoolKind::kForward ? in[j] : 0.0f;
    for (int64_t i = j + first; i < j + first + width; ++i) {
      switch (args.kind) {
        case PoolKind::kAdaptive: value += source(in, std::clamp<int64_t>(i, 0, pooled - 1)); break;
        case PoolKind::kAvg:
          if (i >= 0 && i < pooled) value += source(in, i);
          break;
        case PoolKind::kMax:
        case PoolKind::kForward:
          if (i >= 0 && i < pooled) value = std::max(value, source(in, i));
          break;
        case PoolKind::kNone: break;
      }
    }
    if (args.kind == PoolKind::kAdaptive || args.kind == PoolKind::kAvg) value /= static_cast<float>(width);
    out[j] = value;
  }
}

}  // namespace

void smooth(const SmoothArgs& args, ThreadPool& pool) {
  const int32_t num_heads = args.shape.num_kv_heads;
  pool.parallel_for(static_cast<int64_t>(args.items.size()) * num_heads, [&](int64_t unit, int) {
    smooth_head(args, args.items[static_cast<size_t>(unit / num_heads)],
                static_cast<int32_t>(unit % num_heads));
  });
}

}  // namespace restkv::cpu

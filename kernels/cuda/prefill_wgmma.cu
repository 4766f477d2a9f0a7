// Causal attention of prompt rows on sm_90a: what prefill_attention.cu says, to the same rules, with the products of a warpgroup
// (wgmma) and for caches of 16 bits. A card that has them runs this kernel for all of its rows, since the order of sums is
// another one than that of mma.sync.
// A block owns 128 queries of one KV head (rows x G heads), 64 for each of two warpgroups, or 64 where blocks of 128 are fewer
// than the multiprocessors: a row's arithmetic is the same in both. Tiles of 128 entries (64 for D > 128), aligned to the
// absolute entry index, two buffers each for K and V, filled by cp.async of all threads (no copy engine: the prefix lies in
// pages). One barrier a tile; between two of them a warpgroup has on its way
//   S' = Q K'^T of the next tile, then O += P V of this one; the softmax of S' runs while P V does.
// Every tile that some query of the block sees is multiplied for all of them, with weight 0 where it is not seen: a NaN in V of
// such an entry may reach the other queries of the block.
// Grid: tile of queries x KV head, the tiles with most entries first. Bound: matrix products, 4*D flops for each visible pair;
// exponentials come close behind (at D = 128 the units for them need as long as the tensor cores for P V).
// Shared memory at D = 128: 32 KiB of queries, 2 x 32 KiB of keys and as much of values: 161 KiB, 1 block an SM (194 KiB at
// D = 256).
// Occupancy: prefill_wgmma_kernel 256 x 1.
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/prefill_plan.h"
#include "kernels/cuda/prefill_tiles.h"
#include "kernels/cuda/swizzled_tiles.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kGroupThreads = 128, kGroupQueries = 64, kMaxGroups = 2;  // of a warpgroup; warpgroups
constexpr uint32_t kSm90SharedBytes = 227u << 10;

template <class T, int32_t kDim, int32_t kGroups>
struct WgmmaShared {
  using Queries = SwizzledTile<T, kDim, kGroups * kGroupQueries>;
  using Entries = SwizzledTile<T, kDim, kDim <= 128 ? 128 : 64>;
  T queries[Queries::kElements];
  T keys[2][Entries::kElements];
  T values[2][Entries::kElements];
  BlockRanges<T, kGroups * kGroupQueries, kGroups * 4> ranges;
};

// Logits to weights of the next tile, while the products before it are on their way: what is left to do with their sums is to
// multiply them by `factor`, where the result says so.
template <class T, int32_t kColumns>
__device__ __forceinline__ bool weigh_tile(float (&s)[kColumns][4], const PrefillParams<T>& p,
                                           const Visible* seen, const SeenByWarp& all, int32_t first,
                                           SoftmaxRows& rows, float (&factor)[2]) {
  if (p.cap_scale > 0.0f) cap_logits<T>(s, p.cap_scale);
  if (first < all.all_begin || first + kColumns * 8 > all.all_end) {
    const int32_t g = static_cast<int32_t>(lane_idx()) / 4, c = static_cast<int32_t>(lane_idx()) % 4 * 2;
    hide_logits<T>(s, {seen[g], seen[g + 8]}, first + c);
  }
  float base[2];
  const bool has_changed = raise_maximum<T>(s, p.unit, rows, base, factor);
  rows.sum[0] *= factor[0];
  rows.sum[1] *= factor[1];
#pragma unroll
  for (int32_t k = 0; k < kColumns / 2; ++k) weigh_step<T>(s, k, p.unit, base, rows);
  return has_changed;
}

template <class T, int32_t kColumns>
__device__ __forceinline__ void pack_weights(uint32_t (&weights)[kColumns / 2][4],
                                             const float (&s)[kColumns][4]) {
#pragma unroll
  for (int32_t k = 0; k < kColumns / 2; ++k) {
    MmaA<T> a;
    a_from_accumulators(a, s[2 * k], s[2 * k + 1]);
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) weights[k][i] = a.r[i];
  }
}

template <class T, int32_t kDim, int32_t kGroups>
__device__ __forceinline__ void attend(const PrefillParams<T>& p) {
  using Shared = WgmmaShared<T, kDim, kGroups>;
  using Queries = typename Shared::Queries;
  using Entries = typename Shared::Entries;
  constexpr int32_t kThreads = kGroups * kGroupThreads, kKeys = Entries::kRows;
  auto& shared = *shared_memory<Shared>();
  auto& ranges = shared.ranges;
  const auto warp = static_cast<int32_t>(warp_idx());

  find_ranges(p, ranges);
  for (int32_t i = 0; i < 2; ++i) {
    clear_padding<Entries, kThreads>(p.dim, shared.keys[i]);
    clear_padding<Entries, kThreads>(p.dim, shared.values[i]);
  }
  sync_threads();
  const Visible some = find_some(ranges);
  int32_t first = some.begin / kKeys * kKeys;  // entry of the tile
  const bool has_entries = first < some.end;
  if (has_entries) {
    copy_rows<false, Entries, kThreads>(ranges.rows, p.dim, first, some, shared.keys[0]);
    const BlockWork work(p);
    load_query_rows<Queries, kThreads>(p.q, p.q_type, p.has_copied_queries, p.q_stride, work.segment,
                                       work.kv_head, p.group, p.dim, work.first, shared.queries);
  }
  cp_async_commit();

  float out[kDim / 8][4] = {};
  SoftmaxRows rows;
  if (has_entries) {
    copy_rows<true, Entries, kThreads>(ranges.rows, p.dim, first, some, shared.values[0]);
    if (first + kKeys < some.end) {
      copy_rows<false, Entries, kThreads>(ranges.rows, p.dim, first + kKeys, some, shared.keys[1]);
    }
    cp_async_commit();
    cp_async_wait<1>();
    fence_proxy_async();
    sync_threads();  // keys and queries are there for all, and `some`

    const T* queries = shared.queries + warp / 4 * kGroupQueries * 64;
    float s[kKeys / 8][4], factor[2];
    uint32_t weights[kKeys / 16][4];
    wgmma_fence();
    multiply_keys<Queries, Entries>(s, queries, shared.keys[0]);
    wgmma_commit();
    wgmma_wait<0>(s);
    weigh_tile(s, p, ranges.seen + warp * 16, ranges.warps[warp], first, rows, factor);
    pack_weights<T>(weights, s);

    int32_t stage = 0;  // of the tile whose weights are known
    for (; first + kKeys < ranges.some.end; first += kKeys) {
      cp_async_wait<0>();
      fence_proxy_async();
      sync_threads();  // its values and the next keys are there for all; the other two buffers nobody needs any more
      wgmma_fence(out, weights);
      multiply_keys<Queries, Entries>(s, queries, shared.keys[stage ^ 1]);
      wgmma_commit();
      multiply_values<Entries>(out, weights, shared.values[stage]);
      wgmma_commit();
      copy_rows<true, Entries, kThreads>(ranges.rows, p.dim, first + kKeys, ranges.some,
                                         shared.values[stage ^ 1]);
      if (first + 2 * kKeys < ranges.some.end) {
        copy_rows<false, Entries, kThreads>(ranges.rows, p.dim, first + 2 * kKeys, ranges.some,
                                            shared.keys[stage]);
      }
      cp_async_commit();
      wgmma_wait<1>(s);
      const bool has_changed =
          weigh_tile(s, p, ranges.seen + warp * 16, ranges.warps[warp], first + kKeys, rows, factor);
      wgmma_wait<0>(out);
      if (any(has_changed)) scale_rows<T>(out, factor);
      pack_weights<T>(weights, s);
      stage ^= 1;
    }
    cp_async_wait<0>();
    fence_proxy_async();
    sync_threads();
    wgmma_fence(out, weights);
    multiply_values<Entries>(out, weights, shared.values[stage]);
    wgmma_commit();
    wgmma_wait<0>(out);
  }
  cp_async_wait<0>();
  store_rows(p, BlockWork(p), warp * 16, out, rows);
}

template <class T, int32_t kDim, int32_t kGroups>
__global__ void __launch_bounds__(kGroups* kGroupThreads, 1)
    prefill_wgmma_kernel(const __grid_constant__ PrefillParams<T> p) {
  wait_for_previous();
  static_assert(sizeof(WgmmaShared<T, kDim, kGroups>) <= kSm90SharedBytes);
  if constexpr (kHasWgmma) {
    attend<T, kDim, kGroups>(p);
  } else {
    stop_kernel();  // prefill_wgmma() starts it nowhere else
  }
}

}  // namespace

void prefill_wgmma(Context& context, const PrefillAttentionArgs& args) {
  CHECK(context.limits().has_wgmma) << "sm_90a only";
  const AttentionShape& shape = args.shape;
  // Large blocks read K and V half as often; small ones where there are too few large ones for the card.
  int64_t blocks = 0;
  for (const PrefillSegment& segment : args.segments) {
    blocks +=
        blocks_of(segment.num_rows * (shape.num_heads / shape.num_kv_heads), kMaxGroups * kGroupQueries) *
        int64_t{shape.num_kv_heads};
  }
  const int32_t groups = blocks >= context.limits().num_multiprocessors ? kMaxGroups : 1;
  const PrefillPlan plan = plan_prefill(context, args, groups * kGroupQueries);
  if (plan.num_tiles == 0) return;
  dispatch_half(args.segments[0].k.dtype, [&]<class T>() {
    dispatch_head_dim(shape.head_dim, [&]<int32_t kDim>() {
      const auto start = [&]<int32_t kGroups>() {
        launch(prefill_wgmma_kernel<T, kDim, kGroups>,
               {.x = plan.num_tiles * static_cast<uint32_t>(shape.num_kv_heads)}, kGroups * kGroupThreads,
               sizeof(WgmmaShared<T, kDim, kGroups>), context.ready(), prefill_params<T>(args, plan));
      };
      if (groups == kMaxGroups) return start.template operator()<kMaxGroups>();
      start.template operator()<1>();
    });
  });
}

int32_t prefill_wgmma_shared_bytes(int32_t head_dim) {
  int32_t bytes = 0;
  dispatch_head_dim(head_dim, [&]<int32_t kDim>() { bytes = sizeof(WgmmaShared<f16, kDim, kMaxGroups>); });
  return bytes;
}

}  // namespace restkv::cuda

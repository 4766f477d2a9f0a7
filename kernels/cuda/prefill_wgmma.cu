// Causal attention of prompt rows on sm_90a: what prefill_attention.cu says, to the same rules, with the products of a warpgroup
// (wgmma) and for caches of 16 bits. A card that has them runs this kernel for all of its rows, since the order of sums is
// another one than that of mma.sync.
// A block owns 128 queries of one KV head (rows x G heads), 64 for each of two warpgroups, or 64 where blocks of 128 are fewer
// than the multiprocessors: a row's arithmetic is the same in both. One more warpgroup copies (cp.async, no copy engine: the
// prefix lies in pages): tiles of 128 entries (64 for D > 128), aligned to the absolute entry index, into a ring of slots, K and V
// of a tile in one each. Two named barriers a slot say that it is filled and that it is free; nothing else holds the warpgroups
// together, but that they ask for products by turns:
//   S' = Q K'^T of the next tile, then O += P V of this one; the softmax of S' runs while P V and the other's products do.
// The copying warpgroup gives most of its registers to the others.
// Every tile that some query of the block sees is multiplied for all of them, with weight 0 where it is not seen: a NaN or inf in V of
// such an entry may reach the other queries of the block.
// Grid: tile of queries x KV head, the tiles with most entries first. Bound: matrix products, 4*D flops for each visible pair;
// exponentials come close behind (at D = 128 the units for them need as long as the tensor cores for P V).
// Shared memory at D = 128: 32 KiB of queries, 6 slots of 32 KiB: 226 KiB, 1 block an SM (4 slots, 194 KiB at D = 256).
// Occupancy: prefill_wgmma_kernel 384 x 1.
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/prefill_plan.h"
#include "kernels/cuda/prefill_tiles.h"
#include "kernels/cuda/swizzled_tiles.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kGroupThreads = 128, kGroupQueries = 64;  // of a warpgroup
constexpr int32_t kMaxGroups = 2;                           // with queries
constexpr int32_t kMaxThreads = (1 + kMaxGroups) * kGroupThreads;
constexpr uint32_t kSm90SharedBytes = 227u << 10;
// Registers of a thread: what the compiler has for the kernel as a whole, then where a warpgroup only copies and where it has
// sums. Blocks with one warpgroup of queries start with as many a thread and so have what they ask for, too.
constexpr uint32_t kStartRegisters = 65536 / kMaxThreads / 8 * 8, kCopyRegisters = 40, kSumRegisters = 232;
static_assert(kCopyRegisters + kMaxGroups * kSumRegisters <= (1 + kMaxGroups) * kStartRegisters);
static_assert(kCopyRegisters + kSumRegisters <= 2 * kStartRegisters);

template <class T, int32_t kDim, int32_t kGroups>
struct WgmmaShared {
  using Queries = SwizzledTile<T, kDim, kGroups * kGroupQueries>;
  using Entries = SwizzledTile<T, kDim, kDim <= 128 ? 128 : 64>;
  static constexpr int32_t kSlots = kDim <= 128 ? 6 : 4;
  T queries[Queries::kElements];
  T slots[kSlots][Entries::kElements];  // keys of a tile, its values, keys of the next ...
  BlockRanges<T, kGroups * kGroupQueries, kGroupThreads / 32> ranges;
};

// Named barriers of a slot: its entries are there for wgmma, and nobody reads them any more.
template <int32_t = 0>  // or it counts as unused where there is no wgmma
__device__ __forceinline__ uint32_t filled(int32_t slot) {
  return 1u + static_cast<uint32_t>(slot);
}
template <int32_t kSlots>
__device__ __forceinline__ uint32_t freed(int32_t slot) {
  return filled(slot) + kSlots;
}

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

// Tiles from `begin`, the first entry of one, to the last that some query sees.
template <int32_t kKeys>
__device__ __forceinline__ int32_t count_tiles(const Visible& some, int32_t begin) {
  return begin < some.end ? (some.end - begin + kKeys - 1) / kKeys : 0;
}

// The warpgroup that copies. What it has asked for it hands on once kLag younger copies are on their way: more of them than the
// ring has slots that the others can free without it would stop both.
template <class T, int32_t kDim, int32_t kGroups>
__device__ __forceinline__ void copy_tiles(const PrefillParams<T>& p, WgmmaShared<T, kDim, kGroups>& shared,
                                           const Visible& some) {
  using Shared = WgmmaShared<T, kDim, kGroups>;
  using Queries = typename Shared::Queries;
  using Entries = typename Shared::Entries;
  constexpr int32_t kKeys = Entries::kRows, kSlots = Shared::kSlots, kLag = kSlots / 2 - 1;
  static_assert(kLag <= kSlots - 2);
  constexpr uint32_t kThreads = (1 + kGroups) * kGroupThreads;
  const auto& rows = shared.ranges.rows;
  int32_t first = some.begin / kKeys * kKeys;
  const int32_t num_copies = 2 * count_tiles<kKeys>(some, first);
  if (num_copies == 0) return;
  {
    const BlockWork work(p);
    load_query_rows<Queries, kGroupThreads>(p.q, p.q_type, p.has_copied_queries, p.q_stride, work.segment,
                                            work.kv_head, p.group, p.dim, work.first, shared.queries);
  }
  int32_t slot = 0, landed = 0;
#pragma unroll 1
  for (int32_t i = 0; i < num_copies + kLag; ++i) {
    if (i < num_copies) {
      if (i >= kSlots) barrier_sync(freed<kSlots>(slot), kThreads);
      if (i % 2 == 0) {
        copy_rows<false, Entries, kGroupThreads>(rows, p.dim, first, some, shared.slots[slot]);
      } else {
        copy_rows<true, Entries, kGroupThreads>(rows, p.dim, first, some, shared.slots[slot]);
        first += kKeys;
      }
      slot = slot + 1 == kSlots ? 0 : slot + 1;
    }
    cp_async_commit();  // of nothing at the end, so that the wait counts on
    if (i < kLag) continue;
    cp_async_wait<kLag>();
    fence_proxy_async();
    barrier_arrive(filled(landed), kThreads);
    landed = landed + 1 == kSlots ? 0 : landed + 1;
  }
}

// A warpgroup with queries, `group` of kGroups.
template <class T, int32_t kDim, int32_t kGroups>
__device__ __forceinline__ void attend(const PrefillParams<T>& p, WgmmaShared<T, kDim, kGroups>& shared,
                                       const Visible& some) {
  using Shared = WgmmaShared<T, kDim, kGroups>;
  using Queries = typename Shared::Queries;
  using Entries = typename Shared::Entries;
  constexpr int32_t kKeys = Entries::kRows, kSlots = Shared::kSlots;
  constexpr uint32_t kThreads = (1 + kGroups) * kGroupThreads;
  [[maybe_unused]] constexpr uint32_t kTurn =
      13;  // and 14: the warpgroup may ask for products; those of slots come before
  static_assert(2 * kSlots < kTurn);
  const int32_t warp = static_cast<int32_t>(warp_idx()) - kGroupThreads / 32, group = warp / 4;
  const SeenByWarp& all = shared.ranges.warps[warp / kGroups];
  const Visible* seen = shared.ranges.seen + warp * 16;

  // Products are asked for by turns, so that one warpgroup's run beside the other's softmax.
  const auto await_turn = [&] {
    if constexpr (kGroups > 1) {
      barrier_sync(kTurn + static_cast<uint32_t>(group), kGroups * kGroupThreads);
    }
  };
  const auto give_turn = [&](bool is_last) {
    if constexpr (kGroups > 1) {
      if (group == 1 && is_last) return;
      barrier_arrive(kTurn + static_cast<uint32_t>(group ^ 1), kGroups * kGroupThreads);
    }
  };

  int32_t first = some.begin / kKeys * kKeys;  // entry of the tile
  int32_t tiles_left = count_tiles<kKeys>(some, first);
  float out[kDim / 8][4] = {};
  SoftmaxRows rows;
  if (tiles_left > 0) {
    const T* queries = shared.queries + group * kGroupQueries * 64;
    float s[kKeys / 8][4], factor[2];
    uint32_t weights[kKeys / 16][4];
    int32_t keys = 0;  // slot of the tile
    if (group == 1) give_turn(false);
    barrier_sync(filled(keys), kThreads);
    await_turn();
    wgmma_fence();
    multiply_keys<Queries, Entries>(s, queries, shared.slots[keys]);
    wgmma_commit();
    give_turn(tiles_left == 1);
    wgmma_wait<0>(s);
    if (tiles_left > kSlots / 2) barrier_arrive(freed<kSlots>(keys), kThreads);
    weigh_tile(s, p, seen, all, first, rows, factor);
    pack_weights<T>(weights, s);

#pragma unroll 1
    for (; tiles_left > 1; --tiles_left) {  // with the weights of the first of them
      first += kKeys;
      const int32_t values = keys + 1;
      keys = keys + 2 == kSlots ? 0 : keys + 2;
      barrier_sync(filled(keys), kThreads);
      barrier_sync(filled(values), kThreads);
      await_turn();
      wgmma_fence(out, weights);
      multiply_keys<Queries, Entries>(s, queries, shared.slots[keys]);
      wgmma_commit();
      multiply_values<Entries>(out, weights, shared.slots[values]);
      wgmma_commit();
      give_turn(tiles_left == 2);
      wgmma_wait<1>(s);
      if (tiles_left - 1 > kSlots / 2) barrier_arrive(freed<kSlots>(keys), kThreads);
      const bool has_changed = weigh_tile(s, p, seen, all, first, rows, factor);
      // Behind a branch, or ptxas takes the wait in front of the softmax.
      if (any(has_changed)) {
        wgmma_wait<0>(out);
        scale_rows<T>(out, factor);
      }
      wgmma_wait<0>(out);
      if (tiles_left > kSlots / 2) barrier_arrive(freed<kSlots>(values), kThreads);
      pack_weights<T>(weights, s);
    }
    barrier_sync(filled(keys + 1), kThreads);
    wgmma_fence(out, weights);
    multiply_values<Entries>(out, weights, shared.slots[keys + 1]);
    wgmma_commit();
    wgmma_wait<0>(out);
  }
  store_rows(p, BlockWork(p), warp * 16, out, rows);
}

template <class T, int32_t kDim, int32_t kGroups>
__global__ void __launch_bounds__(kMaxThreads, 1)
    prefill_wgmma_kernel(const __grid_constant__ PrefillParams<T> p) {
  wait_for_previous();
  using Shared = WgmmaShared<T, kDim, kGroups>;
  static_assert(sizeof(Shared) <= kSm90SharedBytes);
  if constexpr (kHasWgmma) {
    auto& shared = *shared_memory<Shared>();
    const bool is_copying = threadIdx.x < kGroupThreads;
    if (is_copying) {
      find_ranges(p, shared.ranges);
      for (auto& slot : shared.slots) clear_padding<typename Shared::Entries, kGroupThreads>(p.dim, slot);
    }
    sync_threads();
    const Visible some = find_some(shared.ranges);
    if (is_copying) {
      give_registers<kCopyRegisters>();
      copy_tiles<T, kDim, kGroups>(p, shared, some);
    } else {
      take_registers<kSumRegisters>();
      attend<T, kDim, kGroups>(p, shared, some);
    }
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
               {.x = plan.num_tiles * static_cast<uint32_t>(shape.num_kv_heads)},
               (1 + kGroups) * kGroupThreads, sizeof(WgmmaShared<T, kDim, kGroups>), context.ready(),
               prefill_params<T>(args, plan));
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

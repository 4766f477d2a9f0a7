// Rotates the heads of q and k in place, (a, b) -> (a cos - b sin, b cos + a sin) for pairs (i, i + D/2) or (2i, 2i + 1), and
// writes k and v to rows of layer scratch or behind the entries of the pages, with the position beside them.
// Bound by memory, and for few rows by latency. Grid: (rows, heads of q, k and v over 8). A warp owns one head of one row; a lane
// reads two pairs of neighbours at once, 4 or 8 bytes each, before the warp looks up where they go.
// Occupancy: rope_and_store_kernel 256 x 6.
#include <algorithm>

#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/paged_view.h"

namespace restkv::cuda {
namespace {

constexpr uint32_t kThreads = 256, kWarps = kThreads / kWarpSize;

// Where the rows of one segment go.
struct StoreTarget {
  int64_t row_begin;
  void* scratch_k;  // [num_rows, K*D] or null: pages
  void* scratch_v;  // [num_rows, K*D]
  int64_t k_stride, v_stride;
  int32_t tables;  // first of K * (2 + width) numbers in StoreParams::tables
  int32_t width;   // page ids of a head
};

// T: of q, k, v; C: of scratch and pages.
template <class T, class C>
struct StoreParams {
  T* q;                         // [T, H*D]
  T* k;                         // [T, K*D]
  const T* v;                   // [T, K*D]
  const float* rope;            // [T, D]
  const int32_t* positions;     // [T]
  const int32_t* segment_of;    // [T], -1: none
  const StoreTarget* segments;  // [segments]
  const int32_t* tables;        // a head's kv_len, its first page listed, then page ids from that one on
  PagedView<C> cache;
  int64_t q_stride, k_stride, v_stride, rope_stride;
  int32_t num_heads, num_kv_heads, head_dim;
  bool interleaved;
  bool is_paired;  // every row begins at a multiple of two values
};

// Two neighbours.
template <bool IsPaired, class T>
__device__ __forceinline__ float2 load_pair(const T* p) {
  if constexpr (!IsPaired) {
    return {to_f32(p[0]), to_f32(p[1])};
  } else if constexpr (kIsHalf<T>) {
    return unpack2<T>(load_vector<uint32_t>(p));
  } else {
    return load_vector<float2>(p);
  }
}

template <bool IsPaired, class T>
__device__ __forceinline__ void store_pair(T* p, float2 pair) {
  if constexpr (!IsPaired) {
    p[0] = from_f32<T>(pair.x);
    p[1] = from_f32<T>(pair.y);
  } else if constexpr (kIsHalf<T>) {
    store_vector(p, pack2<T>(pair.x, pair.y));
  } else {
    store_vector(p, pair);
  }
}

// Lane i has quads i and i + 32 of a head of D values. Quad n is two pairs of neighbours that turn into each other: values
// 2n, 2n + 1 and D/2 + 2n, D/2 + 2n + 1; or, interleaved, 4n .. 4n + 3.
constexpr int32_t kMaxQuads = 2;  // a lane's: D <= 256
struct Quad {
  float2 low, high;
};

__device__ __forceinline__ Quad rotated(const Quad& x, float2 c, float2 s, bool interleaved) {
  if (interleaved) {
    return {{x.low.x * c.x - x.low.y * s.x, x.low.y * c.x + x.low.x * s.x},
            {x.high.x * c.y - x.high.y * s.y, x.high.y * c.y + x.high.x * s.y}};
  }
  return {{x.low.x * c.x - x.high.x * s.x, x.low.y * c.y - x.high.y * s.y},
          {x.high.x * c.x + x.low.x * s.x, x.high.y * c.y + x.low.y * s.y}};
}

template <bool IsPaired, class T, class C>
__device__ __forceinline__ void rotate_and_store(const StoreParams<T, C>& p) {
  const int64_t row = blockIdx.x;
  auto head = static_cast<int32_t>(blockIdx.y * kWarps + warp_idx());
  if (head >= p.num_heads + 2 * p.num_kv_heads) return;  // a whole warp
  const bool is_query = head < p.num_heads;
  if (!is_query) head -= p.num_heads;
  const bool is_key = !is_query && head < p.num_kv_heads;
  if (!is_query && !is_key) head -= p.num_kv_heads;
  const int64_t column = int64_t{head} * p.head_dim;
  const T* from = is_query ? p.q + row * p.q_stride
                  : is_key ? p.k + row * p.k_stride
                           : p.v + row * p.v_stride;
  from += column;
  const float* rope = p.rope + row * p.rope_stride;
  const int32_t half = p.head_dim / 2, quads = p.head_dim / 4;
  const auto low_of = [&](int32_t n) { return p.interleaved ? 4 * n : 2 * n; };
  const auto high_of = [&](int32_t n) { return p.interleaved ? 4 * n + 2 : half + 2 * n; };
  const int32_t segment = p.segment_of[row], position = p.positions[row];
  Quad x[kMaxQuads] = {};
  float2 c[kMaxQuads] = {}, s[kMaxQuads] = {};
#pragma unroll
  for (int32_t i = 0; i < kMaxQuads; ++i) {
    const auto n = static_cast<int32_t>(lane_idx() + static_cast<uint32_t>(i) * kWarpSize);
    if (n >= quads) continue;
    x[i] = {load_pair<IsPaired>(from + low_of(n)), load_pair<IsPaired>(from + high_of(n))};
    if (is_query || is_key) {
      c[i] = load_pair<IsPaired>(rope + 2 * n);
      s[i] = load_pair<IsPaired>(rope + half + 2 * n);
    }
  }
  if (segment < 0) return;  // a whole warp
  if (is_query || is_key) {
    T* back = (is_query ? p.q + row * p.q_stride : p.k + row * p.k_stride) + column;
#pragma unroll
    for (int32_t i = 0; i < kMaxQuads; ++i) {
      const auto n = static_cast<int32_t>(lane_idx() + static_cast<uint32_t>(i) * kWarpSize);
      if (n >= quads) continue;
      x[i] = rotated(x[i], c[i], s[i], p.interleaved);
      store_pair<IsPaired>(back + low_of(n), x[i].low);
      store_pair<IsPaired>(back + high_of(n), x[i].high);
      // what is stored is what was written back, rounded
      x[i].low = {to_f32(from_f32<T>(x[i].low.x)), to_f32(from_f32<T>(x[i].low.y))};
      x[i].high = {to_f32(from_f32<T>(x[i].high.x)), to_f32(from_f32<T>(x[i].high.y))};
    }
    if (is_query) return;
  }
  const StoreTarget& target = p.segments[segment];
  const int64_t index = row - target.row_begin;
  C* to;
  if (target.scratch_k != nullptr) {
    to = is_key ? static_cast<C*>(target.scratch_k) + index * target.k_stride
                : static_cast<C*>(target.scratch_v) + index * target.v_stride;
    to += column;
  } else {
    const int32_t* table = p.tables + target.tables + head * (2 + target.width);
    const auto entry = static_cast<uint32_t>(table[0] + index), slots = static_cast<uint32_t>(p.cache.slots);
    const int32_t page = table[2 + static_cast<int32_t>(entry / slots) - table[1]];
    const int64_t slot = entry % slots;
    to = (is_key ? p.cache.keys(page) : p.cache.values(page)) + slot * p.head_dim;
    if (is_key && lane_idx() == 0) p.cache.positions(page)[slot] = position;
  }
#pragma unroll
  for (int32_t i = 0; i < kMaxQuads; ++i) {
    const auto n = static_cast<int32_t>(lane_idx() + static_cast<uint32_t>(i) * kWarpSize);
    if (n >= quads) continue;
    store_pair<IsPaired>(to + low_of(n), x[i].low);
    store_pair<IsPaired>(to + high_of(n), x[i].high);
  }
}

template <class T, class C>
__global__ void __launch_bounds__(kThreads, 6)
    rope_and_store_kernel(const __grid_constant__ StoreParams<T, C> p) {
  wait_for_previous();
  if (p.is_paired) {
    rotate_and_store<true>(p);
  } else {
    rotate_and_store<false>(p);
  }
}

}  // namespace

void rope_and_store(Context& context, const RopeAndStoreArgs& args) {
  const auto head_dim = static_cast<int32_t>(args.rope.cols);
  const auto num_kv_heads = static_cast<int32_t>(args.k.cols / head_dim);
  const int32_t slots = args.cache.slots;
  if (args.segments.empty() || args.q.rows == 0) return;
  CHECK(head_dim % 4 == 0 && head_dim <= kMaxQuads * 4 * static_cast<int32_t>(kWarpSize)) << head_dim;
  const auto is_paired_tensor = [](const auto& tensor) {
    return reinterpret_cast<uintptr_t>(tensor.data) % static_cast<uintptr_t>(bytes_of(tensor.dtype, 2)) ==
               0 &&
           tensor.stride % 2 == 0;
  };
  bool is_paired = is_paired_tensor(args.q) && is_paired_tensor(args.k) && is_paired_tensor(args.v) &&
                   is_paired_tensor(args.rope) &&
                   (args.cache.pool == nullptr || has_whole_pieces(args.cache));
  const Staged<int32_t> segment_of = context.stage<int32_t>(static_cast<size_t>(args.q.rows));
  std::fill(segment_of.host.begin(), segment_of.host.end(), -1);
  const size_t places = context.num_places(args.segments.size(), args.q.rows);
  const Staged<StoreTarget> targets = context.stage<StoreTarget>(places);
  // Only the pages that the new entries fall into travel.
  const auto width_of = [&](const StoreSegment& s) {
    int64_t width = 0;
    if (s.scratch_k || s.num_rows == 0) return int32_t{0};
    for (int32_t h = 0; h < num_kv_heads; ++h) {
      const int64_t begin = s.tables.kv_len[h], end = begin + s.num_rows;
      width = std::max(width, (end - 1) / slots - begin / slots + 1);
    }
    return static_cast<int32_t>(width);
  };
  size_t num_numbers = (places - args.segments.size()) * static_cast<size_t>(3 * num_kv_heads);
  for (const StoreSegment& s : args.segments)
    if (!s.scratch_k) num_numbers += static_cast<size_t>(num_kv_heads * (2 + width_of(s)));
  const Staged<int32_t> tables = context.stage<int32_t>(num_numbers);
  int32_t next = 0;
  DType type = args.q.dtype;  // of what is stored
  for (size_t i = 0; i < args.segments.size(); ++i) {
    const StoreSegment& s = args.segments[i];
    const auto begin = segment_of.host.begin() + s.row_begin;
    std::fill(begin, begin + s.num_rows, static_cast<int32_t>(i));
    StoreTarget& target = targets.host[i];
    target = {s.row_begin, s.scratch_k.data, s.scratch_v.data, s.scratch_k.stride, s.scratch_v.stride,
              next,        width_of(s)};
    const DType own = s.scratch_k ? s.scratch_k.dtype : args.cache.dtype;
    CHECK(i == 0 || own == type) << "scratch and pages differ in type";
    type = own;
    is_paired = is_paired && is_paired_tensor(s.scratch_k) && is_paired_tensor(s.scratch_v);
    if (s.scratch_k) continue;
    for (int32_t h = 0; h < num_kv_heads; ++h) {
      int32_t* numbers = tables.host.data() + next;
      const int32_t first = s.tables.kv_len[h] / slots;
      numbers[0] = s.tables.kv_len[h];
      numbers[1] = first;
      for (int32_t w = 0; w < target.width; ++w) {
        const bool is_there = first + w < s.tables.stride;
        numbers[2 + w] = is_there ? s.tables.pages[h * s.tables.stride + first + w] : -1;
      }
      next += 2 + target.width;
    }
  }
  const int32_t* positions = context.upload(args.positions);
  const auto num_heads = static_cast<int32_t>(args.q.cols / head_dim);
  const auto start = [&]<class T, class C>() {
    launch(rope_and_store_kernel<T, C>,
           {.x = static_cast<uint32_t>(args.q.rows), .y = blocks_of(num_heads + 2 * num_kv_heads, kWarps)},
           kThreads, 0, context.ready(),
           StoreParams<T, C>{static_cast<T*>(args.q.data), static_cast<T*>(args.k.data),
                             static_cast<const T*>(args.v.data), args.rope.f32(), positions,
                             segment_of.device, targets.device, tables.device, paged_view<C>(args.cache),
                             args.q.stride, args.k.stride, args.v.stride, args.rope.stride, num_heads,
                             num_kv_heads, head_dim, args.interleaved, is_paired});
  };
  // The activations' own type, or f32 activations over a smaller cache.
  dispatch_float(args.q.dtype, [&]<class T>() {
    if (type == args.q.dtype) {
      start.template operator()<T, T>();
    } else if constexpr (!kIsHalf<T>) {
      dispatch_half(type, [&]<class C>() { start.template operator()<T, C>(); });
    } else {
      CHECK(false) << dtype_info(args.q.dtype).name << " activations over a cache of "
                   << dtype_info(type).name;
    }
  });
}

}  // namespace restkv::cuda

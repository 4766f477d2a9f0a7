// Rotates the heads of q and k in place, (a, b) -> (a cos - b sin, b cos + a sin) for pairs (i, i + D/2) or (2i, 2i + 1), and
// writes k and v to rows of layer scratch or behind the entries of the pages, with the position beside them.
// Bound by memory. Grid: (rows, heads of q, k and v over 8). A warp owns one head of one row.
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
};

// Lane i rotates pairs i, i + 32, ...
template <class T>
__device__ __forceinline__ void rotate(T* x, const float* rope, int32_t head_dim, bool interleaved) {
  const int32_t half = head_dim / 2;
  for (int32_t i = static_cast<int32_t>(lane_idx()); i < half; i += static_cast<int32_t>(kWarpSize)) {
    const int32_t first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + half;
    const float a = to_f32(x[first]), b = to_f32(x[second]);
    const float c = rope[i], s = rope[half + i];
    x[first] = from_f32<T>(a * c - b * s);
    x[second] = from_f32<T>(b * c + a * s);
  }
}

template <class T, class C>
__global__ void __launch_bounds__(kThreads, 6)
    rope_and_store_kernel(const __grid_constant__ StoreParams<T, C> p) {
  const int64_t row = blockIdx.x;
  auto head = static_cast<int32_t>(blockIdx.y * kWarps + warp_idx());
  const int32_t segment = p.segment_of[row];
  if (segment < 0 || head >= p.num_heads + 2 * p.num_kv_heads) return;  // a whole warp
  const float* rope = p.rope + row * p.rope_stride;
  if (head < p.num_heads) {
    rotate(p.q + row * p.q_stride + int64_t{head} * p.head_dim, rope, p.head_dim, p.interleaved);
    return;
  }
  head -= p.num_heads;
  const bool is_key = head < p.num_kv_heads;
  if (!is_key) head -= p.num_kv_heads;
  const int64_t column = int64_t{head} * p.head_dim;
  const T* from = p.v + row * p.v_stride + column;
  if (is_key) {
    T* key = p.k + row * p.k_stride + column;
    rotate(key, rope, p.head_dim, p.interleaved);
    from = key;
    sync_warp();  // the copy below reads what other lanes have rotated
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
    const int64_t entry = table[0] + index;
    const int32_t page = table[2 + entry / p.cache.slots - table[1]];
    const int64_t slot = entry % p.cache.slots;
    to = (is_key ? p.cache.keys(page) : p.cache.values(page)) + slot * p.head_dim;
    if (is_key && lane_idx() == 0) p.cache.positions(page)[slot] = p.positions[row];
  }
  for (int32_t i = static_cast<int32_t>(lane_idx()); i < p.head_dim; i += static_cast<int32_t>(kWarpSize))
    to[i] = from_f32<C>(to_f32(from[i]));
}

}  // namespace

void rope_and_store(Context& context, const RopeAndStoreArgs& args) {
  const auto head_dim = static_cast<int32_t>(args.rope.cols);
  const auto num_kv_heads = static_cast<int32_t>(args.k.cols / head_dim);
  const int32_t slots = args.cache.slots;
  if (args.segments.empty() || args.q.rows == 0) return;
  const Staged<int32_t> segment_of = context.stage<int32_t>(static_cast<size_t>(args.q.rows));
  std::fill(segment_of.host.begin(), segment_of.host.end(), -1);
  const Staged<StoreTarget> targets = context.stage<StoreTarget>(args.segments.size());
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
  size_t num_numbers = 0;
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
                             num_kv_heads, head_dim, args.interleaved});
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

// Scratch rows of one layer go to the pages of each head behind its kv_len entries, all of them, in position order.
// Bound by memory: 4 * N * K*D values. Grid: (rows, heads over 8). A warp owns K and V of one head of one row,
// in pieces of 16 bytes.
// Occupancy: store_pages_kernel 256 x 8.
#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/paged_view.h"
#include "kernels/cuda/pieces.h"

namespace restkv::cuda {
namespace {

constexpr uint32_t kThreads = 256, kWarps = kThreads / kWarpSize;

template <class T>
struct StorePagesParams {
  const T* k;                // [N, K*D]
  const T* v;                // [N, K*D]
  const int32_t* positions;  // [N]
  const int32_t* pages;      // [K, table_stride]
  const int32_t* kv_len;     // [K]
  PagedView<T> cache;
  int64_t k_stride, v_stride;
  int32_t table_stride, num_kv_heads;
  int32_t is_whole;  // rows of scratch and pages are whole pieces
};

template <bool IsWhole, class T>
__device__ __forceinline__ void store_row(const StorePagesParams<T>& p) {
  const int64_t row = blockIdx.x;
  const auto head = static_cast<int32_t>(blockIdx.y * kWarps + warp_idx());
  if (head >= p.num_kv_heads) return;
  const auto lane = static_cast<int32_t>(lane_idx());
  const int32_t head_dim = p.cache.head_dim, pieces = (head_dim + kPiece<T> - 1) / kPiece<T>;
  const T* k = p.k + row * p.k_stride + int64_t{head} * head_dim;
  const T* v = p.v + row * p.v_stride + int64_t{head} * head_dim;
  // Pieces of K, then those of V. The first is on its way while the page is looked up.
  const auto load = [&](int32_t i) {
    const int32_t at = (i < pieces ? i : i - pieces) * kPiece<T>;
    return load_piece<IsWhole>((i < pieces ? k : v) + at, i < 2 * pieces ? head_dim - at : 0);
  };
  uint4 piece = load(lane);
  const int32_t position = p.positions[row];
  const auto entry = static_cast<uint32_t>(p.kv_len[head] + row);
  const auto slots = static_cast<uint32_t>(p.cache.slots);
  const int32_t page = p.pages[int64_t{head} * p.table_stride + entry / slots];
  const int64_t slot = entry % slots;
  T* to_k = p.cache.keys(page) + slot * head_dim;
  T* to_v = p.cache.values(page) + slot * head_dim;
  for (int32_t i = lane; i < 2 * pieces; i += static_cast<int32_t>(kWarpSize)) {
    if (i != lane) piece = load(i);
    const int32_t at = (i < pieces ? i : i - pieces) * kPiece<T>;
    store_piece<IsWhole>((i < pieces ? to_k : to_v) + at, piece, head_dim - at);
  }
  if (lane == 0) p.cache.positions(page)[slot] = position;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 8)
    store_pages_kernel(const __grid_constant__ StorePagesParams<T> p) {
  wait_for_previous();
  if (p.is_whole != 0) {
    store_row<true>(p);
  } else {
    store_row<false>(p);
  }
}

}  // namespace

void store_pages(Context& context, const StorePagesArgs& args) {
  if (args.k.rows == 0) return;
  const auto num_heads = static_cast<size_t>(args.num_kv_heads);
  const int32_t* positions = context.upload(args.positions);
  const int32_t* pages = context.page_table(args.tables, static_cast<int64_t>(num_heads));
  const int32_t* kv_len = context.upload(std::span(args.tables.kv_len, num_heads));
  const bool is_whole = has_whole_pieces(args.k) && has_whole_pieces(args.v) && has_whole_pieces(args.cache);
  dispatch_float(args.cache.dtype, [&]<class T>() {
    launch(store_pages_kernel<T>,
           {.x = static_cast<uint32_t>(args.k.rows), .y = blocks_of(args.num_kv_heads, kWarps)}, kThreads, 0,
           context.ready(),
           StorePagesParams<T>{static_cast<const T*>(args.k.data), static_cast<const T*>(args.v.data),
                               positions, pages, kv_len, paged_view<T>(args.cache), args.k.stride,
                               args.v.stride, args.tables.stride, args.num_kv_heads, is_whole ? 1 : 0});
  });
}

}  // namespace restkv::cuda

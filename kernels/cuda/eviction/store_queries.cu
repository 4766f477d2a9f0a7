// store_queries: the last W rotated queries of each segment into its ring; the query of position p and head g of the group
// becomes row (p % W) * G + g of its KV head's pages, in the cache's type.
// Grid: (row among the last W, segment, 512 values of the row); a thread has 4 of them.
// Bound: latency of four loads one behind the other (segment, position, page, and the query beside the last two). No shared
// memory.
// Occupancy: store_queries_kernel 128 x 16.
#include "kernels/cuda/eviction/item_views.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kStoreThreads = 128;

struct StoreView {
  const int32_t* ring_pages;  // [K, ring_stride]
  int64_t row_begin;          // of the segment's first row that is stored
  int32_t num_rows;           // at most W
  int32_t ring_stride;
  int32_t window;
};

struct StoreParams {
  const std::byte* q;        // [T, H*D]
  const int32_t* positions;  // [T]
  const StoreView* segments;
  PoolView pool;
  int64_t q_row_bytes;
  DType q_type;
  int32_t num_heads;
  int32_t group;
  int32_t dim;
};

__global__ void __launch_bounds__(kStoreThreads, 16)
    store_queries_kernel(const __grid_constant__ StoreParams p) {
  wait_for_previous();
  const StoreView& segment = p.segments[blockIdx.y];
  const int32_t i = static_cast<int32_t>(blockIdx.z) * kStoreThreads + static_cast<int32_t>(threadIdx.x);
  if (static_cast<int32_t>(blockIdx.x) >= segment.num_rows || i >= p.num_heads * p.dim / 4) return;
  const int64_t t = segment.row_begin + blockIdx.x;
  const int32_t* ring_pages = segment.ring_pages;
  const int32_t ring_stride = segment.ring_stride;
  const int32_t slot = p.positions[t] % segment.window;
  const float4 x = load_four(p.q + t * p.q_row_bytes + int64_t{i} * 4 * bytes_of_element(p.q_type), p.q_type);
  const int32_t rows_per_page = 2 * p.pool.slots;
  const int32_t head = i * 4 / p.dim, d = i * 4 % p.dim;
  const int32_t row = slot * p.group + head % p.group;
  const int32_t page = ring_pages[int64_t{head / p.group} * ring_stride + row / rows_per_page];
  std::byte* out = p.pool.pool + p.pool.page_bytes * page +
                   (int64_t{row % rows_per_page} * p.dim + d) * bytes_of_element(p.pool.dtype);
  store_four(out, p.pool.dtype, x);
}

}  // namespace

void store_queries(Context& context, const StoreQueriesArgs& args) {
  const size_t places = context.num_places(args.segments.size(), args.q.rows);
  const Staged<StoreView> segments = context.stage<StoreView>(places);
  const int32_t* positions = context.upload(args.positions);
  size_t count = 0;
  int32_t most = 0;
  for (const StoreQueriesSegment& segment : args.segments) {
    const int64_t rows = std::min<int64_t>(segment.num_rows, segment.ring.window);
    segments.host[count++] = {.ring_pages = context.page_table(segment.ring, args.shape.num_kv_heads),
                              .row_begin = segment.row_begin + segment.num_rows - rows,
                              .num_rows = static_cast<int32_t>(rows),
                              .ring_stride = segment.ring.stride,
                              .window = segment.ring.window};
    most = std::max(most, static_cast<int32_t>(rows));
  }
  if (most == 0) return;
  for (; count < places; ++count) segments.host[count] = {};  // of no rows
  const StoreParams params{.q = static_cast<const std::byte*>(args.q.data),
                           .positions = positions,
                           .segments = segments.device,
                           .pool = pool_view(args.cache),
                           .q_row_bytes = bytes_of(args.q.dtype, args.q.stride),
                           .q_type = args.q.dtype,
                           .num_heads = args.shape.num_heads,
                           .group = args.shape.num_heads / args.shape.num_kv_heads,
                           .dim = args.shape.head_dim};
  launch(store_queries_kernel,
         {.x = static_cast<uint32_t>(most),
          .y = static_cast<uint32_t>(count),
          .z = blocks_of(int64_t{params.num_heads} * params.dim / 4, kStoreThreads)},
         kStoreThreads, 0, context.ready(), params);
}

}  // namespace restkv::cuda

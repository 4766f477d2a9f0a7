// compact: the rows that stay, in order, to entries 0, 1, ... of the destination, which may be the source's own pages.
//   entry i of the destination comes from row kept[i] >= i
// Grid: (KV head, item); a block walks up the kept rows in tiles. It reads a whole tile into registers, waits for all of its
// threads, then writes: entries of a tile only cover rows that this or an earlier tile has read, so in place nothing is
// overwritten before it was read. Rows of pages move as raw bytes; scratch rows are converted to the cache's type.
// Bound: bandwidth, 2 * (4*D*bytes + 4) a row that moves; rows at their place are left alone. 1 KiB of shared memory,
// 256 threads with 4 x 16 bytes in flight each.
// Occupancy: compact_kernel 256 x 5.
#include "kernels/cuda/eviction/item_views.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kCompactThreads = 256;
constexpr int32_t kUnitsPerThread = 4;  // 16-byte pieces of a tile that a thread holds
constexpr int32_t kMaxTile = kCompactThreads;

struct CompactView {
  RowsView rows;
  const int32_t* kept;       // [K, kept_stride], ascending; null: row i for entry i
  const int32_t* kept_len;   // [K]
  const int32_t* pages;      // [K, stride] of the destination
  const float* scores;       // [K, score_stride], null: no sums
  const int32_t* sum_pages;  // [K, sum_stride], null: no sums
  int64_t* moved;            // [K]
  int64_t kept_stride;
  int64_t score_stride;
  int32_t stride;
  int32_t sum_stride;
};

struct CompactParams {
  const CompactView* items;
  PoolView pool;
  int32_t dim;
};

struct CompactShared {
  int32_t rows[kMaxTile];  // of the tile; -1: stays where it is
  uint32_t moved;
};

static_assert(fits_multiprocessor(sizeof(CompactShared), 5));

__global__ void __launch_bounds__(kCompactThreads, 5)
    compact_kernel(const __grid_constant__ CompactParams p) {
  wait_for_previous();
  const CompactView& item = p.items[blockIdx.y];
  const auto head = static_cast<int32_t>(blockIdx.x);
  const DeviceRows rows(item.rows, p.pool, head, p.dim);
  const int32_t* kept = item.kept ? item.kept + head * item.kept_stride : nullptr;
  const int32_t* pages = item.pages + int64_t{head} * item.stride;
  const int32_t count = item.kept_len[head];
  const int32_t slots = p.pool.slots;
  const int32_t element = bytes_of_element(p.pool.dtype);
  const int32_t row_units = p.dim * element / 16;  // of K, and of V
  const int32_t tile = min(kMaxTile, kCompactThreads * kUnitsPerThread / (2 * row_units));
  CompactShared& shared = *shared_memory<CompactShared>();
  const auto thread = static_cast<int32_t>(threadIdx.x);
  if (thread == 0) shared.moved = 0;
  sync_threads();

  for (int32_t begin = 0; begin < count; begin += tile) {
    const int32_t tile_rows = min(tile, count - begin);
    int32_t position = 0;
    if (thread < tile_rows) {
      const int32_t i = begin + thread, row = kept ? kept[i] : i;
      const bool stays =
          row < rows.num_paged && rows.pages[row / slots] == pages[i / slots] && row % slots == i % slots;
      shared.rows[thread] = stays ? -1 : row;
      if (!stays) {
        position = rows.position(row);
        atomic_add(&shared.moved, 1u);
      }
    }
    sync_threads();
    uint4 held[kUnitsPerThread];
#pragma unroll
    for (int32_t u = 0; u < kUnitsPerThread; ++u) {
      const int32_t unit = thread + u * kCompactThreads;
      const int32_t r = unit / (2 * row_units), part = unit % (2 * row_units);
      held[u] = {0, 0, 0, 0};
      if (r >= tile_rows || shared.rows[r] < 0) continue;
      const int32_t row = shared.rows[r];
      const bool is_value = part >= row_units;
      const int32_t at = is_value ? part - row_units : part;
      const std::byte* from = is_value ? rows.value(row) : rows.key(row);
      const DType dtype = rows.dtype(row);
      if (dtype == p.pool.dtype) {
        held[u] = load_vector<uint4>(from + int64_t{at} * 16);
      } else {
        const std::byte* piece = from + int64_t{at} * (16 / element) * bytes_of_element(dtype);
        alignas(16) uint32_t words[4];
        if (element == 4) {
          const float4 x = load_four(piece, dtype);
          memcpy(words, &x, sizeof words);
        } else {
          const float4 a = load_four(piece, dtype), b = load_four(piece + 4 * bytes_of_element(dtype), dtype);
          store_four(reinterpret_cast<std::byte*>(words), p.pool.dtype, a);
          store_four(reinterpret_cast<std::byte*>(words + 2), p.pool.dtype, b);
        }
        held[u] = {words[0], words[1], words[2], words[3]};
      }
    }
    sync_threads();
#pragma unroll
    for (int32_t u = 0; u < kUnitsPerThread; ++u) {
      const int32_t unit = thread + u * kCompactThreads;
      const int32_t r = unit / (2 * row_units), part = unit % (2 * row_units);
      if (r >= tile_rows || shared.rows[r] < 0) continue;
      const bool is_value = part >= row_units;
      const int32_t at = is_value ? part - row_units : part;
      const int32_t entry = begin + r;
      std::byte* page =
          p.pool.pool + p.pool.page_bytes * pages[entry / slots] + (is_value ? p.pool.value_offset : 0);
      store_vector(page + (int64_t{entry % slots} * row_units + at) * 16, held[u]);
    }
    if (thread < tile_rows && shared.rows[thread] >= 0) {
      const int32_t entry = begin + thread;
      std::byte* page = p.pool.pool + p.pool.page_bytes * pages[entry / slots] + p.pool.position_offset;
      store_vector(page + int64_t{4} * (entry % slots), position);
    }
    sync_threads();  // shared.rows and, through memory, what the next tile reads
  }

  if (item.sum_pages) {
    const int32_t per_page =
        static_cast<int32_t>(p.pool.position_offset / 4);  // floats that fit K and V of a page
    for (int32_t i = thread; i < count; i += kCompactThreads) {
      const int32_t page = item.sum_pages[int64_t{head} * item.sum_stride + i / per_page];
      store_vector(p.pool.pool + p.pool.page_bytes * page + int64_t{4} * (i % per_page),
                   item.scores[head * item.score_stride + (kept ? kept[i] : i)]);
    }
  }
  if (thread == 0 && item.moved) item.moved[head] = shared.moved;
}

}  // namespace

void compact(Context& context, const CompactArgs& args) {
  const int32_t num_kv_heads = args.shape.num_kv_heads;
  HostResults results(context,
                      static_cast<int64_t>(args.items.size()) * HostResults::bytes_of<int64_t>(num_kv_heads));
  const Staged<CompactView> items = context.stage<CompactView>(args.items.size());
  size_t count = 0;
  for (const CompactItem& item : args.items) {
    CompactView view{};
    view.rows = rows_view(context, item.rows, num_kv_heads);
    view.kept = static_cast<const int32_t*>(item.kept.data);
    view.kept_stride = item.kept.stride;
    view.kept_len = context.upload(item.kept_len, num_kv_heads);
    view.pages = context.page_table(item.destination, num_kv_heads);
    view.stride = item.destination.stride;
    if (item.sums.pages) {
      view.scores = static_cast<const float*>(item.scores.data);
      view.score_stride = item.scores.stride;
      view.sum_pages = context.page_table(item.sums, num_kv_heads);
      view.sum_stride = item.sums.stride;
    }
    if (item.moved) view.moved = results.add(item.moved, num_kv_heads);
    items.host[count++] = view;
  }
  if (count == 0) return;
  const CompactParams params{
      .items = items.device, .pool = pool_view(args.cache), .dim = args.shape.head_dim};
  launch(compact_kernel, {.x = static_cast<uint32_t>(num_kv_heads), .y = static_cast<uint32_t>(count)},
         kCompactThreads, sizeof(CompactShared), context.ready(), params);
  results.await();
}

}  // namespace restkv::cuda

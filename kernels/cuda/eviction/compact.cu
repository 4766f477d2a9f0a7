// compact: the rows that stay, in order, to entries 0, 1, ... of the destination, which may be the source's own pages.
//   entry i of the destination comes from row kept[i] >= i
// Grid: (KV head, item, slice): a slice is two of the 16-byte pieces that K and V of a row are made of, so slices have nothing to
// do with each other; the first moves the positions and counts, the last writes the sums. A block walks up the kept rows in tiles
// of 1024. It reads its slice of a whole tile into registers, waits for all of its threads, then writes: entries of a tile only
// cover rows that this or an earlier tile has read, so in place nothing is overwritten before it was read. Rows of pages move as
// raw bytes; scratch rows are converted to the cache's type.
// Bound: latency, kept rows, their pages and 8 x 16 bytes of each thread one behind the other for a tile; then bandwidth,
// 2 * (4*D*bytes + 4) a row that moves. Rows at their place are left alone. 12 KiB of shared memory.
// Occupancy: compact_kernel 256 x 3.
#include "kernels/cuda/eviction/item_views.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kCompactThreads = 256;
constexpr int32_t kSlicePieces = 2;  // 32 bytes: what memory hands out at least
constexpr int32_t kPiecesOfThread = 8;
constexpr int32_t kTile = kCompactThreads * kPiecesOfThread / kSlicePieces;  // rows
constexpr int32_t kRowsOfThread = kTile / kCompactThreads;

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
  int32_t rows[kTile];  // of the tile; -1: stays where it is, or there is none
  int32_t from[kTile];  // their pages
  int32_t to[kTile];    // those of the entries
  uint32_t moved;
};

static_assert(fits_multiprocessor(sizeof(CompactShared), 3));

// A piece of a scratch row as 16 bytes of the cache's type; it begins at value `at` of the row.
__device__ __forceinline__ uint4 convert_piece(const std::byte* row, int32_t at, DType from, DType to) {
  const std::byte* piece = row + int64_t{at} * bytes_of_element(from);
  const float4 a = load_four(piece, from);
  alignas(16) uint32_t words[4];
  if (to == DType::kF32) {
    memcpy(words, &a, sizeof words);
  } else {
    const float4 b = load_four(piece + 4 * bytes_of_element(from), from);
    store_four(reinterpret_cast<std::byte*>(words), to, a);
    store_four(reinterpret_cast<std::byte*>(words + 2), to, b);
  }
  return {words[0], words[1], words[2], words[3]};
}

// The rows of tile [begin, begin + kTile) and the pages of their entries into `shared`, and the positions of the thread's own
// ones where they are moved here. How many of those move.
__device__ __forceinline__ uint32_t look_up_tile(const DeviceRows& rows, const int32_t* kept,
                                                 const int32_t* pages, int32_t begin, int32_t count,
                                                 bool has_positions, int32_t (&positions)[kRowsOfThread],
                                                 CompactShared& shared) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t slots = rows.pool.slots;
  int32_t row_of[kRowsOfThread], from[kRowsOfThread], to[kRowsOfThread];
#pragma unroll
  for (int32_t u = 0; u < kRowsOfThread; ++u) {
    const int32_t i = begin + thread + u * kCompactThreads;
    row_of[u] = i >= count ? -1 : kept ? kept[i] : i;
    to[u] = i < count ? pages[i / slots] : 0;
  }
#pragma unroll
  for (int32_t u = 0; u < kRowsOfThread; ++u)
    from[u] = row_of[u] >= 0 && row_of[u] < rows.num_paged ? rows.pages[row_of[u] / slots] : -1;
  uint32_t moving = 0;
#pragma unroll
  for (int32_t u = 0; u < kRowsOfThread; ++u) {
    const int32_t i = thread + u * kCompactThreads;
    const bool stays = from[u] == to[u] && row_of[u] % slots == (begin + i) % slots;
    const bool moves = row_of[u] >= 0 && !stays;
    shared.rows[i] = moves ? row_of[u] : -1;
    shared.from[i] = from[u];
    shared.to[i] = to[u];
    moving += moves ? 1 : 0;
    positions[u] = 0;
    if (moves && has_positions) positions[u] = rows.position(row_of[u], from[u]);
  }
  return moving;
}

__global__ void __launch_bounds__(kCompactThreads, 3)
    compact_kernel(const __grid_constant__ CompactParams p) {
  wait_for_previous();
  const CompactView& item = p.items[blockIdx.y];
  const auto head = static_cast<int32_t>(blockIdx.x);
  const DeviceRows rows(item.rows, p.pool, head, p.dim);
  const int32_t* kept = item.kept ? item.kept + head * item.kept_stride : nullptr;
  const int32_t* pages = item.pages + int64_t{head} * item.stride;
  const int32_t count = item.kept_len[head];
  const int32_t slots = p.pool.slots;
  const int32_t values = 16 / bytes_of_element(p.pool.dtype);  // of a piece
  const int32_t row_pieces = p.dim / values;                   // of K, and of V
  CompactShared& shared = *shared_memory<CompactShared>();
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const bool is_first = blockIdx.z == 0, is_last = blockIdx.z + 1 == gridDim.z;
  const bool is_raw = item.rows.scratch_rows == 0 || item.rows.dtype == p.pool.dtype;
  const int32_t part = static_cast<int32_t>(blockIdx.z) * kSlicePieces + thread % kSlicePieces;
  const bool is_value = part >= row_pieces;
  const int32_t at = is_value ? part - row_pieces : part;  // the thread's piece of each row
  if (thread == 0) shared.moved = 0;
  uint32_t moving = 0;

  for (int32_t begin = 0; begin < count; begin += kTile) {
    int32_t positions[kRowsOfThread];
    moving += look_up_tile(rows, kept, pages, begin, count, is_first, positions, shared);
    sync_threads();
    uint4 held[kPiecesOfThread];
#pragma unroll
    for (int32_t u = 0; u < kPiecesOfThread; ++u) {
      const int32_t r = (thread + u * kCompactThreads) / kSlicePieces, row = shared.rows[r];
      held[u] = {0, 0, 0, 0};
      if (row < 0) continue;
      const std::byte* from = rows.at(row, shared.from[r], is_value);
      if (is_raw || row < rows.num_paged) {
        held[u] = load_vector<uint4>(from + int64_t{at} * 16);
      } else {
        held[u] = convert_piece(from, at * values, item.rows.dtype, p.pool.dtype);
      }
    }
    sync_threads();
#pragma unroll
    for (int32_t u = 0; u < kPiecesOfThread; ++u) {
      const int32_t r = (thread + u * kCompactThreads) / kSlicePieces;
      if (shared.rows[r] < 0) continue;
      std::byte* page = p.pool.pool + p.pool.page_bytes * shared.to[r] + (is_value ? p.pool.value_offset : 0);
      store_vector(page + (int64_t{(begin + r) % slots} * row_pieces + at) * 16, held[u]);
    }
    if (is_first) {
#pragma unroll
      for (int32_t u = 0; u < kRowsOfThread; ++u) {
        const int32_t r = thread + u * kCompactThreads;
        if (shared.rows[r] < 0) continue;
        std::byte* page = p.pool.pool + p.pool.page_bytes * shared.to[r] + p.pool.position_offset;
        store_vector(page + int64_t{4} * ((begin + r) % slots), positions[u]);
      }
    }
    sync_threads();  // shared.rows and, through memory, what the next tile reads
  }

  if (is_last && item.sum_pages) {
    const int32_t per_page =
        static_cast<int32_t>(p.pool.position_offset / 4);  // floats that fit K and V of a page
    for (int32_t i = thread; i < count; i += kCompactThreads) {
      const int32_t page = item.sum_pages[int64_t{head} * item.sum_stride + i / per_page];
      store_vector(p.pool.pool + p.pool.page_bytes * page + int64_t{4} * (i % per_page),
                   item.scores[head * item.score_stride + (kept ? kept[i] : i)]);
    }
  }
  if (!is_first || !item.moved) return;
  sync_threads();
  if (moving > 0) atomic_add(&shared.moved, moving);
  sync_threads();
  if (thread == 0) item.moved[head] = shared.moved;
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
  // 2 * row bytes / 16 pieces of K and V
  const int64_t slices = bytes_of(params.pool.dtype, params.dim) / (8 * kSlicePieces);
  launch(compact_kernel,
         {.x = static_cast<uint32_t>(num_kv_heads),
          .y = static_cast<uint32_t>(count),
          .z = static_cast<uint32_t>(slices)},
         kCompactThreads, sizeof(CompactShared), context.ready(), params);
  results.await();
}

}  // namespace restkv::cuda

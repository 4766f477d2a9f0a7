// select: which rows of a head stay. A row's key is 64 bits, larger is better, all different:
//   protected: all ones | row     scored: ordered score | row     dead (outside a layer's window): 0 | row
// NaN and inf rank first among the scored; ties: newer rows. Of each score array the `count` best rows are found: 12 bits of the
// keys are counted while they are made, what is in the bin of the threshold or above it is listed, and a radix select among
// the rows of that bin alone ends it. With one array those rows stay. With m the order is by min over i of m * rank_i + i: the
// best of each array are sorted, and a walk through them in turn takes those that no other array has earlier.
//   share_kernel   grid (item)            kShare: the heads' shares of the layer's rows by their scores
//   select_kernel  grid (unit, array)     a unit is one KV head of one item; the last of its blocks to arrive walks
// Kept rows are bits of a map, which is written out in rising order. Keys and lists lie in the workspace, as many units at a time as
// it holds. Bound: instructions of one multiprocessor for an array, some 50 a row in two passes over all rows, beside a sort of
// 55 steps for 1024 rows. Shared memory 18 KiB, and 8 bytes a key sorted there (up to 4096).
// Occupancy: select_kernel 1024 x 1, share_kernel 1024 x 1.
#include "kernels/cuda/eviction/select_rows.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kSharedList = 4096;
constexpr int32_t kRowsInFlight = 4;         // of a thread that makes keys
constexpr uint32_t kIsScored = 0x80000000u;  // in a list of ranks, beside the row

struct SelectView {
  RowsView rows;
  const float* scores[3];  // [K, score_stride[i]] each
  int64_t score_stride[3];
  const int32_t* keep;    // [K]
  int32_t* share;         // [K], kShare
  int32_t* kept;          // [K, kept_stride]
  int32_t* num_dead;      // [K] or null
  int32_t* non_finite;    // [K] or null
  int32_t* new_pins;      // [K, max_new_pins]
  int32_t* num_new_pins;  // [K]
  int64_t kept_stride;
  ProtectView protect;
  int32_t num_scores;
  int32_t floor;
  int32_t slack;
  int32_t max_new_pins;
};

struct SelectParams {
  const SelectView* items;
  PoolView pool;
  SelectScope scope;
  int32_t num_kv_heads;
  int32_t first_unit;  // of this launch; share_kernel: item
  int32_t most;        // rows of the longest head, up to the next multiple of kRowsOfThread
  int32_t max_scores;  // arrays of the item with the most
  int32_t list_size;   // keys of an array's sorted list, a power of two; 0: one array each, nothing is sorted
  uint32_t*
      highs;  // [units, max_scores, most] upper halves of the keys; the lower ones are the rows. Then orders
  uint32_t*
      rows;  // [units, max_scores, most] listed: from the front those above the bin, from the end those in it. Then by rank
  uint64_t* lists;    // [units, max_scores, list_size] where it is more than kSharedList
  uint32_t* maps;     // [units, 2, most / 32 upwards] where that is more than half of kKeyBins: bits of rows
  uint32_t* arrived;  // [units] blocks that are done; 0 between launches
};

// Keys of an array of a head, and the counts in `shared`; each(high) of each row. A barrier at its end.
template <class Each>
__device__ __forceinline__ void make_keys(const SelectParams& p, const SelectView& item,
                                          const DeviceRows& rows, int32_t array, uint32_t* highs,
                                          SelectShared& shared, Each each) {
  if (threadIdx.x == 0) shared.num_dead = shared.num_protected = shared.non_finite = 0;
  sync_threads();
  // Copies: a store to `highs` might be one to the item, as far as the compiler knows.
  const ProtectView protect = item.protect;
  const float* scores = item.scores[array];
  const int64_t stride = item.score_stride[array];
  uint32_t dead = 0, kept_anyway = 0, bad = 0;
  const auto pass = [&](auto score_of) {
    for (int32_t begin = static_cast<int32_t>(threadIdx.x); begin < rows.num_rows;
         begin += kRowsInFlight * kSelectThreads) {
      int32_t positions[kRowsInFlight];
      rows.positions(begin, kSelectThreads, positions);
      float values[kRowsInFlight];
#pragma unroll
      for (int32_t u = 0; u < kRowsInFlight; ++u) {
        const int32_t j = begin + u * kSelectThreads;
        values[u] = j < rows.num_rows ? score_of(j) : 0.0f;
      }
#pragma unroll
      for (int32_t u = 0; u < kRowsInFlight; ++u) {
        const int32_t j = begin + u * kSelectThreads;
        if (j >= rows.num_rows) continue;
        uint32_t high = place_of(protect, rows, j, positions[u]);
        dead += high == kDead;
        kept_anyway += high == kProtected;
        if (high == 1) {
          const bool is_finite = fabsf(values[u]) < kInfinity;
          high = ordered_bits(is_finite ? values[u] : kInfinity);
          bad += !is_finite;
        }
        highs[j] = high;
        each(high);
      }
    }
  };
  if (p.scope != SelectScope::kLayer) {
    const float* own = scores + rows.head * stride;
    pass([&](int32_t j) { return own[j]; });
  } else {
    pass([&](int32_t j) {  // one set for all heads, by the mean of their scores
      float sum = 0.0f;
#pragma unroll 1
      for (int32_t h = 0; h < p.num_kv_heads; ++h) sum += scores[h * stride + j];
      return sum / static_cast<float>(p.num_kv_heads);
    });
  }
  if (dead) atomic_add(&shared.num_dead, dead);
  if (kept_anyway) atomic_add(&shared.num_protected, kept_anyway);
  if (bad) atomic_add(&shared.non_finite, bad);
  sync_threads();
}

// Of the `count` best rows of an array: orders[row] = m * rank + array, all ones for the others, in place of the keys; and the rows
// by rank, with kIsScored. Barriers inside, none at the end.
__device__ __forceinline__ void rank_best(int32_t num_scores, int32_t array, int32_t num_rows, int32_t count,
                                          uint32_t* highs, uint32_t* rows, uint64_t* list,
                                          SelectShared& shared) {
  int32_t size = 2;
  while (size < count) size *= 2;
  visit_best(highs, rows, num_rows, shared, [&](uint32_t place, uint64_t key) { list[place] = key; });
  for (int32_t r = count + static_cast<int32_t>(threadIdx.x); r < size; r += kSelectThreads) list[r] = 0;
  sync_threads();
  for (int32_t j = static_cast<int32_t>(threadIdx.x); j < num_rows; j += kSelectThreads) highs[j] = ~0u;
  sort_falling(list, size);
  for (int32_t rank = static_cast<int32_t>(threadIdx.x); rank < count; rank += kSelectThreads) {
    const uint64_t key = list[rank];
    const auto row = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
    highs[row] = static_cast<uint32_t>(num_scores * rank + array);
    rows[rank] = row | (high != kProtected && high != kDead ? kIsScored : 0u);
  }
}

// Whether this is the block of the unit that has the writes of all others before it.
__device__ __forceinline__ bool is_last_block(uint32_t* arrived, int32_t num_blocks, SelectShared& shared) {
  thread_fence();  // what this block wrote is there for every block that sees the count
  sync_threads();
  if (threadIdx.x == 0) {
    shared.is_last = atomic_add(arrived, 1u) == static_cast<uint32_t>(num_blocks - 1) ? 1u : 0u;
    if (shared.is_last != 0) *arrived = 0;  // for the next launch
  }
  sync_threads();
  if (shared.is_last == 0) return false;
  thread_fence();
  return true;
}

// The `count` rows of the best order into `kept`, and of those the max_new_pins best that a later array brought in into `pinned`:
// place e of the walk is the order e. `rows` and `orders` are those of array 0, the others' lie `stride` behind each other.
__device__ __forceinline__ void walk(int32_t num_scores, int32_t count, const uint32_t* rows,
                                     const uint32_t* orders, int32_t stride, int32_t max_new_pins,
                                     uint32_t* kept, uint32_t* pinned, SelectShared& shared) {
  int32_t taken = 0, pins = 0;
  for (int32_t begin = 0; begin < num_scores * count && taken < count; begin += kSelectThreads) {
    const int32_t e = begin + static_cast<int32_t>(threadIdx.x);
    const int32_t array = e % num_scores;
    uint32_t entry = 0;
    bool is_taken = e < num_scores * count;  // no array has the row earlier
    if (is_taken) {
      entry = rows[int64_t{array} * stride + e / num_scores];
      for (int32_t i = 0; i < num_scores; ++i)
        is_taken = is_taken && orders[int64_t{i} * stride + (entry & ~kIsScored)] >= static_cast<uint32_t>(e);
    }
    int32_t total = 0;
    const int32_t before = taken + block_exclusive_sum(is_taken ? 1 : 0, shared.warp_sums, total);
    is_taken = is_taken && before < count;
    if (is_taken) set_bit(kept, entry & ~kIsScored);
    taken += total;
    if (max_new_pins == 0) continue;
    const bool is_new = is_taken && array != 0 && (entry & kIsScored) != 0;
    const int32_t pins_before = pins + block_exclusive_sum(is_new ? 1 : 0, shared.warp_sums, total);
    if (is_new && pins_before < max_new_pins) set_bit(pinned, entry & ~kIsScored);
    pins += total;
  }
  sync_threads();
}

static_assert(fits_multiprocessor(sizeof(SelectShared) + 8 * kSharedList, 1));

__global__ void __launch_bounds__(kSelectThreads, 1) select_kernel(const __grid_constant__ SelectParams p) {
  wait_for_previous();
  const int32_t unit = p.first_unit + static_cast<int32_t>(blockIdx.x);
  const int32_t array = static_cast<int32_t>(blockIdx.y);
  const SelectView& item = p.items[unit / p.num_kv_heads];
  const int32_t num_scores = item.num_scores;
  if (array >= num_scores) return;
  const int32_t head = unit % p.num_kv_heads;
  const RowsView source = item.rows;
  const DeviceRows rows(source, p.pool, head, 0);
  const int32_t n = rows.num_rows;
  SelectShared& shared = *shared_memory<SelectShared>();
  const int64_t first_array = int64_t{blockIdx.x} * p.max_scores;
  uint32_t* highs = p.highs + (first_array + array) * p.most;
  uint32_t* listed = p.rows + (first_array + array) * p.most;
  clear_map(shared.bins, kKeyBins);
  make_keys(p, item, rows, array, highs, shared,
            [&](uint32_t high) { atomic_add(&shared.bins[high >> kKeyBinShift], 1u); });
  // Not clamped to 0..n first: of `max(0, min(wanted, n)) == n` ptxas 13.0 makes one VIMNMX.RELU with a predicate, for sm_90a, and that
  // says wanted <= n.
  const int32_t count = p.scope == SelectScope::kShare ? item.share[head] - item.slack : item.keep[head];
  const bool is_empty = count <= 0 || n == 0, is_whole = count >= n;
  if (array == 0 && threadIdx.x == 0) {
    if (item.num_dead) item.num_dead[head] = static_cast<int32_t>(shared.num_dead);
    if (item.non_finite) item.non_finite[head] = static_cast<int32_t>(shared.non_finite);
    // Where nothing is cut, nothing needs to be saved.
    if (item.max_new_pins > 0 && (is_empty || is_whole)) item.num_new_pins[head] = 0;
  }
  if (is_empty) return;
  if (is_whole) {
    if (array > 0) return;
    int32_t* kept = item.kept + head * item.kept_stride;
    for (int32_t j = static_cast<int32_t>(threadIdx.x); j < n; j += kSelectThreads) kept[j] = j;
    return;
  }

  find_key_bin(count, shared);
  list_rows(highs, n, listed, shared);
  const int32_t num_words = (n + 31) / 32;
  uint32_t* kept_map = shared.bins;  // the counts have been read
  uint32_t* pin_map = shared.bins + kKeyBins / 2;
  if (num_words > kKeyBins / 2) {
    kept_map = p.maps + 2 * int64_t{blockIdx.x} * ((p.most + 31) / 32);
    pin_map = kept_map + num_words;
  }
  const int32_t max_new_pins = num_scores > 1 ? item.max_new_pins : 0;
  if (num_scores == 1) {
    clear_map(kept_map, num_words);
    sync_threads();
    visit_best(highs, listed, n, shared,
               [&](uint32_t, uint64_t key) { set_bit(kept_map, static_cast<uint32_t>(key)); });
    sync_threads();
  } else {
    uint64_t* list = p.list_size > kSharedList ? p.lists + (first_array + array) * p.list_size : shared.list;
    rank_best(num_scores, array, n, count, highs, listed, list, shared);
    if (!is_last_block(p.arrived + blockIdx.x, num_scores, shared)) return;
    clear_map(kept_map, num_words);
    if (max_new_pins > 0) clear_map(pin_map, num_words);
    sync_threads();
    walk(num_scores, count, p.rows + first_array * p.most, p.highs + first_array * p.most, p.most,
         max_new_pins, kept_map, pin_map, shared);
  }
  int32_t* kept = item.kept + head * item.kept_stride;
  write_rising(
      kept_map, num_words, [&](int32_t place, int32_t j) { kept[place] = j; }, shared);
  if (item.max_new_pins == 0) return;
  int32_t pins = 0;
  if (max_new_pins > 0) {
    int32_t* out = item.new_pins + int64_t{head} * item.max_new_pins;
    pins = write_rising(
        pin_map, num_words, [&](int32_t place, int32_t j) { out[place] = rows.position(j); }, shared);
  }
  if (threadIdx.x == 0) item.num_new_pins[head] = pins;
}

// kShare: the layer's rows go to the heads by their scores (AdaKV, arXiv 2407.11550), each head at least its protected rows
// and `floor`; ties to the lower head.
struct ShareHead {
  uint64_t threshold;  // keys from here on are the head's own already
  int32_t mandatory;
  int32_t larger_ones;  // candidates above the common threshold
  int32_t equal_ones;
  int32_t unused;
};

__global__ void __launch_bounds__(kSelectThreads, 1) share_kernel(const __grid_constant__ SelectParams p) {
  wait_for_previous();
  const SelectView& item = p.items[p.first_unit + static_cast<int32_t>(blockIdx.x)];
  SelectShared& shared = *shared_memory<SelectShared>();
  ShareHead* heads = reinterpret_cast<ShareHead*>(shared.list);  // [K]
  uint32_t* highs = p.highs + int64_t{blockIdx.x} * p.num_kv_heads * p.most;
  int64_t rest = 0, candidates = 0;
  for (int32_t h = 0; h < p.num_kv_heads; ++h) {
    const DeviceRows rows(item.rows, p.pool, h, 0);
    uint32_t* head_highs = highs + int64_t{h} * p.most;
    make_keys(p, item, rows, 0, head_highs, shared, [](uint32_t) {});
    const int32_t mandatory = min(rows.num_rows, max(item.floor, static_cast<int32_t>(shared.num_protected)));
    uint64_t threshold = mandatory == 0 ? ~uint64_t{0} : 0;
    if (mandatory > 0 && mandatory < rows.num_rows) {
      threshold =
          radix_select<uint64_t>(
              rows.num_rows, mandatory, [&](int64_t j) { return key_of(head_highs, j); }, shared.radix)
              .value;
    }
    if (threadIdx.x == 0) heads[h] = {threshold, mandatory, 0, 0, 0};
    rest += item.keep[h] - mandatory;
    candidates += rows.num_rows - mandatory;
    sync_threads();
  }
  const int64_t taken = rest < 0 ? 0 : min(rest, candidates);
  // A candidate's value; 0 for rows that are a head's own already. Scores above 2^32 hold them apart.
  const auto value = [&](int64_t i) -> uint64_t {
    const int32_t h = static_cast<int32_t>(i) / p.most, j = static_cast<int32_t>(i) % p.most;
    const int32_t n = (item.rows.kv_len ? item.rows.kv_len[h] : 0) + item.rows.scratch_rows;
    if (j >= n || (uint64_t{highs[i]} << 32 | static_cast<uint32_t>(j)) >= heads[h].threshold) return 0;
    return uint64_t{1} << 32 | highs[i];
  };
  if (taken > 0) {
    const int32_t all = p.num_kv_heads * p.most;
    const uint64_t threshold = radix_select<uint64_t>(all, taken, value, shared.radix).value;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < all; i += kSelectThreads) {
      const uint64_t v = value(i);
      if (v > threshold) atomic_add(&heads[i / p.most].larger_ones, 1);
      if (v == threshold) atomic_add(&heads[i / p.most].equal_ones, 1);
    }
    sync_threads();
  }
  if (threadIdx.x == 0) {
    int64_t equal_left = taken;
    for (int32_t h = 0; h < p.num_kv_heads; ++h) equal_left -= heads[h].larger_ones;
    for (int32_t h = 0; h < p.num_kv_heads; ++h) {
      const int64_t equal = min(equal_left, int64_t{heads[h].equal_ones});
      item.share[h] = heads[h].mandatory + heads[h].larger_ones + static_cast<int32_t>(equal);
      equal_left -= equal;
    }
  }
}

}  // namespace

void select(Context& context, const SelectArgs& args) {
  const int32_t k = args.num_kv_heads;
  const bool is_share = args.scope == SelectScope::kShare;
  int64_t result_bytes = 0;
  for (const SelectItem& item : args.items) {
    result_bytes += 3 * HostResults::bytes_of<int32_t>(k) +
                    HostResults::bytes_of<int32_t>(int64_t{k} * item.max_new_pins);
  }
  HostResults results(context, result_bytes);
  const Staged<SelectView> items = context.stage<SelectView>(args.items.size());
  // Of shared items, on the device: the second kernel reads what the first one wrote.
  int32_t* shares =
      is_share ? context.workspace<int32_t>(static_cast<int64_t>(args.items.size()) * k) : nullptr;
  size_t count = 0;
  SelectParams params{};
  int64_t most_kept = 0;
  for (const SelectItem& item : args.items) {
    SelectView view{};
    view.rows = rows_view(context, item.rows, k);
    view.num_scores = item.num_scores;
    for (size_t i = 0; i < static_cast<size_t>(item.num_scores); ++i) {
      view.scores[i] = static_cast<const float*>(item.scores[i].data);
      view.score_stride[i] = item.scores[i].stride;
    }
    const int32_t rows = most_rows(item.rows, k);
    if (args.scope == SelectScope::kLayer) {
      CHECK(item.num_scores == 1) << item.num_scores;
      for (int32_t h = 0; h < k; ++h) {
        CHECK(item.rows.num_rows(h) == rows)
            << "head " << h << " holds " << item.rows.num_rows(h) << " rows, another " << rows;
      }
    }
    if (is_share) {
      most_kept = std::max<int64_t>(most_kept, rows);
      CHECK(rows <= item.kept.cols) << "room for " << item.kept.cols << " rows, up to " << rows << " stay";
    } else {
      for (int32_t h = 0; h < k; ++h) {
        const int64_t stay = std::clamp(item.keep[h], 0, item.rows.num_rows(h));
        CHECK(stay <= item.kept.cols) << "room for " << item.kept.cols << " rows, " << stay << " stay";
        most_kept = std::max(most_kept, stay);
        item.kept_len[h] = static_cast<int32_t>(stay);
      }
    }
    view.keep = context.upload(item.keep, k);
    view.protect = protect_view(context, item.protect, k);
    view.floor = item.floor;
    view.slack = item.slack;
    if (is_share) view.share = shares + static_cast<int64_t>(count) * k;
    view.kept = static_cast<int32_t*>(item.kept.data);
    view.kept_stride = item.kept.stride;
    if (item.num_dead) view.num_dead = results.add(item.num_dead, k);
    if (item.non_finite) view.non_finite = results.add(item.non_finite, k);
    if (item.max_new_pins > 0) {
      view.max_new_pins = item.max_new_pins;
      view.new_pins = results.add(item.new_pins, int64_t{k} * item.max_new_pins);
      view.num_new_pins = results.add(item.num_new_pins, k);
    }
    items.host[count++] = view;
    params.most = std::max(params.most, rows);
    params.max_scores = std::max(params.max_scores, item.num_scores);
  }
  if (count == 0) return;
  params.items = items.device;
  params.pool = pool_view(args.cache);
  params.scope = args.scope;
  params.num_kv_heads = k;
  const auto num_items = static_cast<int64_t>(count);
  params.most = (std::max(1, params.most) + kRowsOfThread - 1) / kRowsOfThread * kRowsOfThread;
  // Both kernels use the rest of the workspace, one behind the other.
  const int64_t workspace_bytes = (context.workspace_left() - 256) / 8 * 8;
  std::byte* workspace = context.workspace<std::byte>(workspace_bytes);
  params.highs = reinterpret_cast<uint32_t*>(workspace);

  if (is_share) {
    CHECK(int64_t{k} * params.most < INT32_MAX) << k << " heads of " << params.most << " rows";
    const int64_t per_item = int64_t{k} * params.most * 4;
    const int64_t batch = std::min(num_items, workspace_bytes / per_item);
    CHECK(batch > 0) << "a workspace of " << workspace_bytes << " bytes for " << per_item;
    for (int64_t first = 0; first < num_items; first += batch) {
      params.first_unit = static_cast<int32_t>(first);
      launch(share_kernel, {.x = static_cast<uint32_t>(std::min(batch, num_items - first))}, kSelectThreads,
             static_cast<uint32_t>(sizeof(SelectShared) + sizeof(ShareHead) * static_cast<size_t>(k)),
             context.ready(), params);
    }
  }

  if (params.max_scores > 1) {
    params.list_size = 2;
    while (params.list_size < most_kept) params.list_size *= 2;
  }
  const bool is_list_shared = params.list_size <= kSharedList;
  const int64_t rows_of_unit = int64_t{params.max_scores} * params.most;
  const int64_t list_of_unit = is_list_shared ? 0 : int64_t{params.max_scores} * params.list_size;
  const int64_t words_of_map = (params.most + 31) / 32;
  const int64_t maps_of_unit = words_of_map > kKeyBins / 2 ? 2 * words_of_map : 0;
  const int64_t per_unit = 8 * list_of_unit + 4 * (2 * rows_of_unit + maps_of_unit);
  const int64_t units = num_items * k;
  const int64_t batch = std::min({units, workspace_bytes / per_unit, Context::kNumCounters});
  CHECK(batch > 0) << "a workspace of " << workspace_bytes << " bytes for " << per_unit;
  params.lists = reinterpret_cast<uint64_t*>(workspace);
  params.highs = reinterpret_cast<uint32_t*>(params.lists + batch * list_of_unit);
  params.rows = params.highs + batch * rows_of_unit;
  params.maps = params.rows + batch * rows_of_unit;
  params.arrived = context.counters();
  for (int64_t first = 0; first < units; first += batch) {
    params.first_unit = static_cast<int32_t>(first);
    launch(select_kernel,
           {.x = static_cast<uint32_t>(std::min(batch, units - first)),
            .y = static_cast<uint32_t>(params.max_scores)},
           kSelectThreads,
           static_cast<uint32_t>(sizeof(SelectShared) + (is_list_shared ? 8 * params.list_size : 0)),
           context.ready(), params);
  }
  results.await();
  if (!is_share) return;
  std::vector<int32_t> of_items(count * static_cast<size_t>(k));
  context.read_back(of_items.data(), shares, static_cast<int64_t>(of_items.size()) * 4);
  for (size_t i = 0; i < count; ++i) {
    const SelectItem& item = args.items[i];
    for (int32_t h = 0; h < k; ++h) {
      item.share[h] = of_items[i * static_cast<size_t>(k) + static_cast<size_t>(h)];
      item.kept_len[h] = std::clamp(item.share[h] - item.slack, 0, item.rows.num_rows(h));
    }
  }
}

}  // namespace restkv::cuda

// select: which rows of a head stay. A row's key is 64 bits, larger is better, all different:
//   protected: all ones | row     scored: ordered score | row     dead (outside a layer's window): 0 | row
// NaN and inf rank first among the scored; ties: newer rows. One score array: a radix select finds the threshold key. With m
// arrays the order is by min over i of m * rank_i + i; only the `count` best rows of each array can be among the kept, so
// those are sorted, ranked, and a second radix select over the order values finds the threshold. The kept rows are then
// written by a scan in rising order.
//   share_kernel   grid (item)            kShare: the heads' shares of the layer's rows by their scores
//   select_kernel  grid (unit)            a unit is one KV head of one item; 512 threads walk its rows
// Keys, orders and lists lie in the workspace, as many units at a time as it holds. Bound: latency, about ten passes over a
// head's keys in L2, four to eight loads of a thread at a time. Shared memory 33 KiB (lists of up to 4096 keys are sorted there).
// Occupancy: select_kernel 512 x 2, share_kernel 512 x 2.
#include "kernels/cuda/eviction/item_views.h"
#include "kernels/cuda/eviction/radix_select.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kSelectThreads = 512;
constexpr int32_t kSharedList = 4096;
constexpr int32_t kRowsInFlight = 4;  // of a thread that makes keys
constexpr int32_t kRowsAtOnce = 8;    // of a thread that writes the chosen ones
static_assert(kSelectThreads <= 1024 && kSelectThreads % 32 == 0, "block_exclusive_sum");

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
  int32_t most;        // rows of the longest head
  int32_t max_scores;  // arrays of the item with the most
  int32_t list_size;   // keys of a unit's list, a power of two; 0: one array each, nothing is sorted
  uint32_t* highs;     // [units, max_scores, most] upper halves of the keys; the lower ones are the rows
  uint64_t* lists;     // [units, list_size] where it is more than kSharedList
  uint32_t* orders;    // [units, most] where list_size > 0
};

struct SelectShared {
  RadixShared radix;
  int32_t warp_sums[33];
  uint32_t list_len;
  uint32_t num_dead, num_protected, non_finite, eligible;
  uint64_t list[1];  // [kSharedList], as long as the launch made it
};

__device__ __forceinline__ float score_of(const SelectParams& p, const SelectView& item, int32_t array,
                                          int32_t head, int32_t row) {
  if (p.scope != SelectScope::kLayer) return item.scores[array][head * item.score_stride[array] + row];
  float sum = 0.0f;  // one set for all heads, by the mean of their scores
  for (int32_t h = 0; h < p.num_kv_heads; ++h) sum += item.scores[0][h * item.score_stride[0] + row];
  return sum / static_cast<float>(p.num_kv_heads);
}

// Keys of all arrays of a head and the counts in `shared`. A barrier at its end.
__device__ __forceinline__ void make_keys(const SelectParams& p, const SelectView& item,
                                          const DeviceRows& rows, int32_t num_scores, uint32_t* highs,
                                          SelectShared& shared) {
  if (threadIdx.x == 0) shared.num_dead = shared.num_protected = shared.non_finite = 0;
  sync_threads();
  uint32_t dead = 0, kept_anyway = 0, bad = 0;
  for (int32_t begin = static_cast<int32_t>(threadIdx.x); begin < rows.num_rows;
       begin += kRowsInFlight * kSelectThreads) {
    int32_t positions[kRowsInFlight];
    rows.positions(begin, kSelectThreads, positions);
    uint32_t places[kRowsInFlight];
#pragma unroll
    for (int32_t u = 0; u < kRowsInFlight; ++u) {
      const int32_t j = begin + u * kSelectThreads;
      places[u] = 1;
      if (j >= rows.num_rows) continue;
      places[u] = place_of(item.protect, rows, j, positions[u]);
      dead += places[u] == kDead;
      kept_anyway += places[u] == kProtected;
    }
    for (int32_t i = 0; i < num_scores; ++i) {
      float scores[kRowsInFlight];
#pragma unroll
      for (int32_t u = 0; u < kRowsInFlight; ++u) {
        const int32_t j = begin + u * kSelectThreads;
        scores[u] = j < rows.num_rows ? score_of(p, item, i, rows.head, j) : 0.0f;
      }
#pragma unroll
      for (int32_t u = 0; u < kRowsInFlight; ++u) {
        const int32_t j = begin + u * kSelectThreads;
        if (j >= rows.num_rows) continue;
        uint32_t high = places[u];
        if (high == 1) {
          const bool is_finite = fabsf(scores[u]) < kInfinity;
          high = ordered_bits(is_finite ? scores[u] : kInfinity);
          bad += i == 0 && !is_finite;
        }
        highs[int64_t{i} * p.most + j] = high;
      }
    }
  }
  if (dead) atomic_add(&shared.num_dead, dead);
  if (kept_anyway) atomic_add(&shared.num_protected, kept_anyway);
  if (bad) atomic_add(&shared.non_finite, bad);
  sync_threads();
}

// `highs` are those of one array of a head.
__device__ __forceinline__ uint64_t key_of(const uint32_t* highs, int64_t row) {
  return uint64_t{highs[row]} << 32 | static_cast<uint32_t>(row);
}

// Sorts list [size], a power of two, falling. Barriers inside and at the end.
__device__ __forceinline__ void sort_falling(uint64_t* list, int32_t size) {
  for (int32_t width = 2; width <= size; width *= 2) {
    for (int32_t reach = width / 2; reach > 0; reach /= 2) {
      for (int32_t i = static_cast<int32_t>(threadIdx.x); i < size / 2; i += kSelectThreads) {
        const int32_t low = i / reach * 2 * reach + i % reach, high = low + reach;
        const bool is_falling = (low & width) == 0;
        const uint64_t a = list[low], b = list[high];
        if ((a < b) == is_falling) {
          list[low] = b;
          list[high] = a;
        }
      }
      sync_threads();
    }
  }
}

// orders[row] = min over the arrays of m * rank + i, for the `count` best rows of each array; all ones for the others.
__device__ __forceinline__ void make_orders(const SelectParams& p, int32_t num_scores, int32_t num_rows,
                                            int32_t count, const uint32_t* highs, uint64_t* list,
                                            uint32_t* orders, SelectShared& shared) {
  for (int32_t j = static_cast<int32_t>(threadIdx.x); j < num_rows; j += kSelectThreads)
    orders[j] = 0xFFFFFFFFu;
  int32_t size = 2;
  while (size < count) size *= 2;
  for (int32_t i = 0; i < num_scores; ++i) {
    const uint32_t* array = highs + int64_t{i} * p.most;
    uint64_t threshold = 0;
    if (count < num_rows) {
      threshold = radix_select<uint64_t>(
                      num_rows, count, [&](int64_t j) { return key_of(array, j); }, shared.radix)
                      .value;
    }
    if (threadIdx.x == 0) shared.list_len = 0;
    sync_threads();
    for (int32_t begin = 0; begin < num_rows; begin += kSelectThreads) {
      const int32_t j = begin + static_cast<int32_t>(threadIdx.x);
      const uint64_t key = j < num_rows ? key_of(array, j) : 0;
      const bool is_best = j < num_rows && key >= threshold;
      const uint32_t best = ballot(is_best);  // one atomic a warp
      uint32_t place = 0;
      if (lane_idx() == 0 && best != 0) place = atomic_add(&shared.list_len, count_bits(best));
      place = shuffle(place, 0) + count_bits(best & ((1u << lane_idx()) - 1u));
      if (is_best) list[place] = key;
    }
    for (int32_t r = count + static_cast<int32_t>(threadIdx.x); r < size; r += kSelectThreads) list[r] = 0;
    sync_threads();
    sort_falling(list, size);
    for (int32_t rank = static_cast<int32_t>(threadIdx.x); rank < count; rank += kSelectThreads) {
      uint32_t& order = orders[static_cast<uint32_t>(list[rank])];
      order = min(order, static_cast<uint32_t>(num_scores * rank + i));
    }
    sync_threads();
  }
}

// Calls put(place, row) for the rows with is_chosen(row), in rising order; returns how many. A thread has up to kRowsAtOnce
// rows side by side. Barriers inside.
template <class IsChosen, class Put>
__device__ __forceinline__ int32_t write_rising(int32_t num_rows, IsChosen is_chosen, Put put,
                                                SelectShared& shared) {
  const int32_t each = max(1, min(kRowsAtOnce, (num_rows + kSelectThreads - 1) / kSelectThreads));
  int32_t written = 0;
  for (int32_t begin = 0; begin < num_rows; begin += each * kSelectThreads) {
    const int32_t first = begin + each * static_cast<int32_t>(threadIdx.x);
    uint32_t chosen = 0;
#pragma unroll
    for (int32_t u = 0; u < kRowsAtOnce; ++u) {
      if (u < each && first + u < num_rows && is_chosen(first + u)) chosen |= 1u << u;
    }
    int32_t total = 0;
    int32_t place =
        written + block_exclusive_sum(static_cast<int32_t>(count_bits(chosen)), shared.warp_sums, total);
#pragma unroll
    for (int32_t u = 0; u < kRowsAtOnce; ++u) {
      if ((chosen >> u & 1u) != 0) put(place++, first + u);
    }
    written += total;
  }
  return written;
}

// Positions of the kept rows that a later array brought in, the best by their order, rising.
__device__ __forceinline__ void write_new_pins(const SelectView& item, const DeviceRows& rows,
                                               bool is_all_or_none, uint32_t threshold, const uint32_t* highs,
                                               const uint32_t* orders, SelectShared& shared) {
  const int32_t n = rows.num_rows, head = rows.head;
  const auto m = static_cast<uint32_t>(item.num_scores);
  const auto is_eligible = [&](int64_t j) {
    const uint32_t high = highs[j];
    return high != kProtected && high != kDead && ~orders[j] >= threshold && orders[j] % m != 0;
  };
  int32_t pins = 0;
  if (!is_all_or_none && m > 1) {  // where nothing was cut, nothing needs to be saved
    if (threadIdx.x == 0) shared.eligible = 0;
    sync_threads();
    uint32_t count = 0;
    for (int32_t j = static_cast<int32_t>(threadIdx.x); j < n; j += kSelectThreads) count += is_eligible(j);
    if (count) atomic_add(&shared.eligible, count);
    sync_threads();
    const auto eligible = static_cast<int32_t>(shared.eligible);
    pins = min(item.max_new_pins, eligible);
    uint32_t best = 1;
    if (pins > 0 && pins < eligible) {
      best = radix_select<uint32_t>(
                 n, pins, [&](int64_t j) { return is_eligible(j) ? ~orders[j] : 0u; }, shared.radix)
                 .value;
    }
    if (pins > 0) {
      int32_t* out = item.new_pins + int64_t{head} * item.max_new_pins;
      write_rising(
          n, [&](int32_t j) { return is_eligible(j) && ~orders[j] >= best; },
          [&](int32_t place, int32_t j) { out[place] = rows.position(j); }, shared);
    }
  }
  if (threadIdx.x == 0) item.num_new_pins[head] = pins;
}

static_assert(fits_multiprocessor(sizeof(SelectShared) + 8 * kSharedList, 2));

__global__ void __launch_bounds__(kSelectThreads, 2) select_kernel(const __grid_constant__ SelectParams p) {
  wait_for_previous();
  const int32_t unit = p.first_unit + static_cast<int32_t>(blockIdx.x);
  const SelectView& item = p.items[unit / p.num_kv_heads];
  const int32_t head = unit % p.num_kv_heads;
  const DeviceRows rows(item.rows, p.pool, head, 0);
  const int32_t n = rows.num_rows;
  SelectShared& shared = *shared_memory<SelectShared>();
  uint32_t* highs = p.highs + int64_t{blockIdx.x} * p.max_scores * p.most;
  uint64_t* list = p.list_size > kSharedList ? p.lists + int64_t{blockIdx.x} * p.list_size : shared.list;
  uint32_t* orders = p.orders + int64_t{blockIdx.x} * p.most;
  make_keys(p, item, rows, item.num_scores, highs, shared);
  const int32_t wanted = p.scope == SelectScope::kShare ? item.share[head] - item.slack : item.keep[head];
  const int32_t count = max(0, min(wanted, n));
  const bool is_cut = count > 0 && count < n;

  uint64_t threshold = 0;        // one array: of the keys
  uint32_t order_threshold = 0;  // several: of the complements of the orders
  if (item.num_scores == 1) {
    if (is_cut) {
      threshold = radix_select<uint64_t>(
                      n, count, [&](int64_t j) { return key_of(highs, j); }, shared.radix)
                      .value;
    }
  } else {
    if (count > 0) make_orders(p, item.num_scores, n, count, highs, list, orders, shared);
    if (is_cut) {
      order_threshold = radix_select<uint32_t>(
                            n, count, [&](int64_t j) { return ~orders[j]; }, shared.radix)
                            .value;
    }
  }
  int32_t* kept = item.kept + head * item.kept_stride;
  const int32_t written = write_rising(
      count > 0 ? n : 0,
      [&](int32_t j) {
        return item.num_scores == 1 ? key_of(highs, j) >= threshold : ~orders[j] >= order_threshold;
      },
      [&](int32_t place, int32_t j) { kept[place] = j; }, shared);
  if (threadIdx.x == 0) {
    if (item.num_dead) item.num_dead[head] = static_cast<int32_t>(shared.num_dead);
    if (item.non_finite) item.non_finite[head] = static_cast<int32_t>(shared.non_finite);
  }
  if (item.max_new_pins > 0) {
    write_new_pins(item, rows, written == n || written == 0, order_threshold, highs, orders, shared);
  }
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

__global__ void __launch_bounds__(kSelectThreads, 2) share_kernel(const __grid_constant__ SelectParams p) {
  wait_for_previous();
  const SelectView& item = p.items[p.first_unit + static_cast<int32_t>(blockIdx.x)];
  SelectShared& shared = *shared_memory<SelectShared>();
  ShareHead* heads = reinterpret_cast<ShareHead*>(shared.list);  // [K]
  uint32_t* highs = p.highs + int64_t{blockIdx.x} * p.num_kv_heads * p.most;
  int64_t rest = 0, candidates = 0;
  for (int32_t h = 0; h < p.num_kv_heads; ++h) {
    const DeviceRows rows(item.rows, p.pool, h, 0);
    uint32_t* head_highs = highs + int64_t{h} * p.most;
    make_keys(p, item, rows, 1, head_highs, shared);
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
  params.most = std::max(1, params.most);
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
  const int64_t high_bytes = (int64_t{params.max_scores} * params.most + 1) / 2 * 8;
  const int64_t list_bytes = is_list_shared ? 0 : int64_t{params.list_size} * 8;
  const int64_t order_bytes = params.list_size > 0 ? (int64_t{params.most} + 1) / 2 * 8 : 0;
  const int64_t per_unit = high_bytes + list_bytes + order_bytes;
  const int64_t units = num_items * k;
  const int64_t batch = std::min(units, workspace_bytes / per_unit);
  CHECK(batch > 0) << "a workspace of " << workspace_bytes << " bytes for " << per_unit;
  params.lists = reinterpret_cast<uint64_t*>(workspace + batch * high_bytes);
  params.orders = reinterpret_cast<uint32_t*>(workspace + batch * (high_bytes + list_bytes));
  for (int64_t first = 0; first < units; first += batch) {
    params.first_unit = static_cast<int32_t>(first);
    launch(select_kernel, {.x = static_cast<uint32_t>(std::min(batch, units - first))}, kSelectThreads,
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

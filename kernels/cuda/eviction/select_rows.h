// How select.cu finds the best rows of a head by their keys: the bin of the threshold, lists of what is above and in it, a sort, maps of
// rows. Block-wide device functions of kSelectThreads threads.
#pragma once

#include "kernels/cuda/eviction/item_views.h"
#include "kernels/cuda/eviction/radix_select.h"

namespace restkv::cuda {

inline constexpr int32_t kSelectThreads = 1024;
inline constexpr int32_t kRowsOfThread = 4;  // side by side, of one that lists rows: a load of 16 bytes
inline constexpr int32_t kKeyBins =
    1 << 12;  // of the upper bits of a key's upper half: 8 for each power of two
inline constexpr int32_t kKeyBinShift = 32 - 12;
inline constexpr uint64_t kBelowBin =
    (uint64_t{1} << (32 + kKeyBinShift)) - 1;  // the bits of a key that its bin does not tell
static_assert(kSelectThreads <= 1024 && kSelectThreads % 32 == 0, "block_exclusive_sum");
static_assert(kKeyBins == 4 * kSelectThreads, "a thread looks at four bins");

struct SelectShared {
  RadixShared radix;
  int32_t warp_sums[32];
  uint32_t num_dead, num_protected, non_finite;
  uint32_t num_above, num_in_bin,
      num_best;          // rows listed from the front and from the end; taken from those at the end
  uint32_t bin, wanted;  // of the threshold; how many rows of it are among the best
  uint32_t is_last;
  alignas(16) uint32_t bins[kKeyBins];  // rows of each; then maps of rows
  uint64_t list[1];                     // [kSharedList], as long as the launch made it
};

// `highs` are those of one array of a head.
__device__ __forceinline__ uint64_t key_of(const uint32_t* highs, int64_t row) {
  return uint64_t{highs[row]} << 32 | static_cast<uint32_t>(row);
}

// The bin of the count-th largest key, by the counts, into `shared`; 1 <= count <= their sum. Barriers inside and at the end.
__device__ __forceinline__ void find_key_bin(int32_t count, SelectShared& shared) {
  const int32_t top = kKeyBins - 1 - static_cast<int32_t>(threadIdx.x) * 4;
  const uint4 four = load_vector<uint4>(shared.bins + top - 3);
  const uint32_t own = four.x + four.y + four.z + four.w;
  int32_t total = 0;
  const auto before =
      static_cast<uint32_t>(block_exclusive_sum(static_cast<int32_t>(own), shared.warp_sums, total));
  uint32_t wanted = static_cast<uint32_t>(count) - before;
  if (before < static_cast<uint32_t>(count) && wanted <= own) {  // one thread
    int32_t bin = top;
    while (shared.bins[bin] < wanted) wanted -= shared.bins[bin--];
    shared.bin = static_cast<uint32_t>(bin);
    shared.wanted = wanted;
  }
  if (threadIdx.x == 0) shared.num_above = shared.num_in_bin = shared.num_best = 0;
  sync_threads();
}

// Lists the rows above the bin and in it, in any order. A barrier at its end.
__device__ __forceinline__ void list_rows(const uint32_t* highs, int32_t num_rows, uint32_t* list,
                                          SelectShared& shared) {
  const uint32_t bin = shared.bin;
  for (int32_t begin = 0; begin < num_rows; begin += kRowsOfThread * kSelectThreads) {
    const int32_t first = begin + kRowsOfThread * static_cast<int32_t>(threadIdx.x);
    uint32_t above = 0, in_bin = 0;  // bits of the rows
    const auto look = [&](int32_t u, uint32_t high) {
      above |= (high >> kKeyBinShift > bin ? 1u : 0u) << u;
      in_bin |= (high >> kKeyBinShift == bin ? 1u : 0u) << u;
    };
    if (first + kRowsOfThread <= num_rows) {
      const uint4 four = load_vector<uint4>(highs + first);
      look(0, four.x);
      look(1, four.y);
      look(2, four.z);
      look(3, four.w);
    } else {
      for (int32_t u = 0; first + u < num_rows; ++u) look(u, highs[first + u]);
    }
    if (!any((above | in_bin) != 0)) continue;
    const uint32_t own = count_bits(above) | count_bits(in_bin) << 16;  // both sums at once
    uint32_t sum = own;
    for (uint32_t n = 1; n < kWarpSize; n *= 2) {
      const uint32_t below = shuffle_up(sum, n);
      if (lane_idx() >= n) sum += below;
    }
    uint32_t from_front = 0, from_end = 0;
    if (lane_idx() == kWarpSize - 1) {
      from_front = atomic_add(&shared.num_above, sum & 0xFFFFu);
      from_end = atomic_add(&shared.num_in_bin, sum >> 16);
    }
    from_front = shuffle(from_front, kWarpSize - 1) + ((sum - own) & 0xFFFFu);
    from_end = static_cast<uint32_t>(num_rows - 1) - shuffle(from_end, kWarpSize - 1) - ((sum - own) >> 16);
#pragma unroll
    for (int32_t u = 0; u < kRowsOfThread; ++u) {
      if ((above >> u & 1u) != 0) list[from_front++] = static_cast<uint32_t>(first + u);
      if ((in_bin >> u & 1u) != 0) list[from_end--] = static_cast<uint32_t>(first + u);
    }
  }
  sync_threads();
}

// visit(place, key) of each of the `count` best rows, by one thread of the block, at places in any order. Barriers inside, none at
// the end.
template <class Visit>
__device__ __forceinline__ void visit_best(const uint32_t* highs, const uint32_t* list, int32_t num_rows,
                                           SelectShared& shared, Visit visit) {
  const auto above = static_cast<int32_t>(shared.num_above), in_bin = static_cast<int32_t>(shared.num_in_bin),
             wanted = static_cast<int32_t>(shared.wanted);
  const auto in_bin_key = [&](int64_t i) { return key_of(highs, list[num_rows - 1 - i]); };
  uint64_t threshold = 0;
  if (wanted < in_bin) {
    threshold = radix_select<uint64_t>(
                    in_bin, wanted, [&](int64_t i) { return in_bin_key(i) & kBelowBin; }, shared.radix,
                    32 + kKeyBinShift)
                    .value;
  }
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < above; i += kSelectThreads)
    visit(static_cast<uint32_t>(i), key_of(highs, list[i]));
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < in_bin; i += kSelectThreads) {
    const uint64_t key = in_bin_key(i);
    if ((key & kBelowBin) >= threshold)
      visit(static_cast<uint32_t>(above) + atomic_add(&shared.num_best, 1u), key);
  }
}

// The steps of sort_falling in which the places of a pair are less than a warp apart, of widths [first_width, last_width].
__device__ __forceinline__ void sort_in_warps(uint64_t* list, int32_t size, int32_t first_width,
                                              int32_t last_width) {
  for (int32_t begin = static_cast<int32_t>(warp_idx() * kWarpSize); begin < size; begin += kSelectThreads) {
    const int32_t i = begin + static_cast<int32_t>(lane_idx());
    uint64_t own = i < size ? list[i] : 0;  // a list shorter than a warp: what lies behind it stays there
    for (int32_t width = first_width; width <= last_width; width *= 2) {
      for (int32_t reach = min(width, static_cast<int32_t>(kWarpSize)) / 2; reach > 0; reach /= 2) {
        const uint64_t other = shuffle_xor(own, static_cast<uint32_t>(reach));
        const bool takes_larger = ((i & reach) == 0) == ((i & width) == 0);
        if ((other > own) == takes_larger) own = other;
      }
    }
    if (i < size) list[i] = own;
  }
  sync_threads();
}

// Sorts list [size], a power of two, falling. Barriers inside and at the end.
__device__ __forceinline__ void sort_falling(uint64_t* list, int32_t size) {
  constexpr auto kWarp = static_cast<int32_t>(kWarpSize);
  sort_in_warps(list, size, 2, min(size, kWarp));
  for (int32_t width = 2 * kWarp; width <= size; width *= 2) {
    for (int32_t reach = width / 2; reach >= kWarp; reach /= 2) {
      for (int32_t i = static_cast<int32_t>(threadIdx.x); i < size / 2; i += kSelectThreads) {
        const int32_t in_reach = i & (reach - 1), low = 2 * (i - in_reach) + in_reach, high = low + reach;
        const bool is_falling = (low & width) == 0;
        const uint64_t a = list[low], b = list[high];
        if ((a < b) == is_falling) {
          list[low] = b;
          list[high] = a;
        }
      }
      sync_threads();
    }
    sort_in_warps(list, size, width, width);
  }
}

// Maps of rows, a bit for each.
__device__ __forceinline__ void clear_map(uint32_t* map, int32_t num_words) {
  for (int32_t w = static_cast<int32_t>(threadIdx.x); w < num_words; w += kSelectThreads) map[w] = 0;
}
__device__ __forceinline__ void set_bit(uint32_t* map, uint32_t row) {
  atomic_or(&map[row / 32], 1u << (row % 32));
}
// put(place, row) for the rows of a map, in rising order; returns how many. Barriers inside.
template <class Put>
__device__ __forceinline__ int32_t write_rising(const uint32_t* map, int32_t num_words, Put put,
                                                SelectShared& shared) {
  int32_t written = 0;
  for (int32_t begin = 0; begin < num_words; begin += kSelectThreads) {
    const int32_t w = begin + static_cast<int32_t>(threadIdx.x);
    uint32_t bits = w < num_words ? map[w] : 0;
    int32_t total = 0;
    int32_t place =
        written + block_exclusive_sum(static_cast<int32_t>(count_bits(bits)), shared.warp_sums, total);
    for (; bits != 0; bits &= bits - 1)
      put(place++, 32 * w + 31 - static_cast<int32_t>(leading_zeros(bits & (0u - bits))));
    written += total;
  }
  return written;
}

}  // namespace restkv::cuda

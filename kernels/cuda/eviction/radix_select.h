// The k-th largest of n values by counting, 8 bits a pass from the top: a block-wide device function. Deterministic: counts
// are integers. Values of 32 or 64 bits. It ends as soon as all values with the prefix found so far are among the k largest.
// A thread asks for kBytesInFlight of values before it counts the first; one warp looks for the bin.
#pragma once

#include "kernels/cuda/device.h"

namespace restkv::cuda {

inline constexpr int32_t kRadixBins = 256;
inline constexpr int32_t kBytesInFlight = 32;

struct RadixShared {
  uint32_t counts[kRadixBins];
  uint64_t prefix;  // of the value sought
  int64_t wanted;   // how many values with that prefix are among the k largest
  int32_t is_done;  // all of them
};

template <class T>
struct RadixResult {
  T value;         // larger values are among the k largest, smaller ones are not
  int64_t wanted;  // how many of those equal to it are
};

// The bin of the wanted-th largest value, by the counts: one warp calls it, a lane has 8 bins. Into `shared`.
__device__ __forceinline__ void find_bin(uint64_t prefix, int32_t shift, RadixShared& shared) {
  constexpr int32_t kBinsOfLane = kRadixBins / static_cast<int32_t>(kWarpSize);
  const int32_t top = kRadixBins - 1 - static_cast<int32_t>(lane_idx()) * kBinsOfLane;
  int64_t own = 0;
#pragma unroll
  for (int32_t i = 0; i < kBinsOfLane; ++i) own += shared.counts[top - i];
  int64_t sum = own;
  for (uint32_t n = 1; n < kWarpSize; n *= 2) {
    const int64_t larger = shuffle_up(sum, n);
    if (lane_idx() >= n) sum += larger;
  }
  int64_t wanted = shared.wanted - (sum - own);
  sync_warp();  // all have read it
  if (wanted < 1 || wanted > own) return;
  int32_t bin = top;
  while (shared.counts[bin] < wanted) wanted -= shared.counts[bin--];
  shared.prefix = prefix | static_cast<uint64_t>(bin) << shift;
  shared.wanted = wanted;
  shared.is_done = shared.counts[bin] == wanted;
}

// value(i) for i < n, of unsigned type T and at most `bits` bits; 1 <= k <= n. All threads of the block call it; barriers inside and at
// the end.
template <class T, class Value>
__device__ __forceinline__ RadixResult<T> radix_select(int64_t n, int64_t k, Value value, RadixShared& shared,
                                                       int32_t bits = static_cast<int32_t>(sizeof(T)) * 8) {
  if (threadIdx.x == 0) {
    shared.prefix = 0;
    shared.wanted = k;
  }
  constexpr int32_t kInFlight = kBytesInFlight / static_cast<int32_t>(sizeof(T));
  uint64_t mask = 0;  // of the digits found
  for (int32_t shift = bits - 8;; shift = max(shift - 8, 0)) {
    for (uint32_t i = threadIdx.x; i < kRadixBins; i += blockDim.x) shared.counts[i] = 0;
    sync_threads();
    const uint64_t prefix = shared.prefix;
    for (int64_t begin = threadIdx.x; begin < n; begin += kInFlight * blockDim.x) {
      T values[kInFlight];
#pragma unroll
      for (int32_t u = 0; u < kInFlight; ++u) {
        const int64_t i = begin + int64_t{u} * blockDim.x;
        values[u] = i < n ? value(i) : T{0};
      }
#pragma unroll
      for (int32_t u = 0; u < kInFlight; ++u) {
        const uint64_t v = values[u];
        if (begin + int64_t{u} * blockDim.x < n && (v & mask) == prefix)
          atomic_add(&shared.counts[(v >> shift) & 255u], 1u);
      }
    }
    sync_threads();
    if (warp_idx() == 0) find_bin(prefix, shift, shared);
    sync_threads();
    if (shared.is_done || shift == 0) break;
    mask |= uint64_t{255} << shift;
  }
  const RadixResult<T> result{static_cast<T>(shared.prefix), shared.wanted};
  sync_threads();  // before the memory is used again
  return result;
}

// Exclusive sum of one number a thread over a block of at most 1024 threads; `total` the sum. Barriers inside.
__device__ __forceinline__ int32_t block_exclusive_sum(int32_t x, int32_t* warp_sums /* [32] */,
                                                       int32_t& total) {
  int32_t sum = x;
  for (uint32_t n = 1; n < kWarpSize; n *= 2) {
    const int32_t below = shuffle_up(sum, n);
    if (lane_idx() >= n) sum += below;
  }
  if (lane_idx() == kWarpSize - 1) warp_sums[warp_idx()] = sum;
  sync_threads();
  // Each warp adds up what all have; a sum once read is a lane's own.
  int32_t of_warps = lane_idx() < blockDim.x / kWarpSize ? warp_sums[lane_idx()] : 0;
  for (uint32_t n = 1; n < kWarpSize; n *= 2) {
    const int32_t below = shuffle_up(of_warps, n);
    if (lane_idx() >= n) of_warps += below;
  }
  total = shuffle(of_warps, kWarpSize - 1);
  const int32_t before = shuffle(of_warps, warp_idx() > 0 ? warp_idx() - 1 : 0);
  sync_threads();  // before the next call writes them
  return (warp_idx() > 0 ? before : 0) + sum - x;
}

// Order of f32 as unsigned integers: negative numbers reversed below the positive ones.
__device__ __forceinline__ uint32_t ordered_bits(float x) {
  uint32_t bits;
  static_assert(sizeof bits == sizeof x);
  memcpy(&bits, &x, sizeof bits);
  return (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
}

}  // namespace restkv::cuda

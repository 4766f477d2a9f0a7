// Sums over a row in 1024 bins, for sample.cu: of digits of weights or ids, or of parts of the row. What is added up are integers,
// counts or units of 2^-40 of a weight: the same for any order of addition, and however a row is cut into blocks.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/row_pass.h"

namespace restkv::cuda {

constexpr uint32_t kSampleThreads = 1024, kSampleWarps = kSampleThreads / kWarpSize;
constexpr uint32_t kDigitBits = 10,
                   kBins = 1u << kDigitBits;  // three digits: 1.0f is 30 bits, ids have fewer
static_assert(kBins == kSampleThreads, "a thread looks at one bin");

struct SampleShared {
  uint32_t low[kBins],
      high[kBins];           // halves of the sum of a bin: there is no fast 64-bit atomic in shared memory
  uint64_t sums[kWarpSize];  // of reductions
  uint64_t before, value;    // of the last search
  uint32_t found;
};

// A weight in 2^-40, to nearest, halves up; what (double(weight) * 2^40 + 0.5) gives. Conversions of 64-bit types
// are slow on every card.
__device__ __forceinline__ uint64_t units(uint32_t weight) {
  const uint32_t mantissa = (weight & 0x7FFFFFu) | 0x800000u,
                 exponent = weight >> 23;  // mantissa * 2^(exponent - 150)
  if (exponent >= 110) return uint64_t{mantissa} << (exponent - 110);
  const uint32_t shift = 110 - exponent < 31 ? 110 - exponent : 31;
  return (mantissa + (1u << (shift - 1))) >> shift;
}

// The sum of `own` over the threads before this one. `sums` [32] is free after the next barrier.
__device__ __forceinline__ uint64_t sum_before(uint64_t own, uint64_t* sums) {
  uint64_t sum = own;  // inclusive over the warp
  for (uint32_t step = 1; step < kWarpSize; step <<= 1) {
    const uint64_t other = shuffle_up(sum, step);
    if (lane_idx() >= step) sum += other;
  }
  if (lane_idx() == kWarpSize - 1) sums[warp_idx()] = sum;
  sync_threads();
  static_assert(kSampleWarps == kWarpSize, "a lane for each warp");
  return sum - own + warp_reduce(lane_idx() < warp_idx() ? sums[lane_idx()] : 0, Sum{});
}

// The reduction of `own` over all threads; `sums` [32] is free when this returns. Of integers: any order gives the same.
template <class Op>
__device__ __forceinline__ uint64_t reduce_all(uint64_t own, Op op, uint64_t* sums) {
  own = warp_reduce(own, op);
  if (lane_idx() == 0) sums[warp_idx()] = own;
  sync_threads();
  own = warp_reduce(sums[lane_idx()], op);
  sync_threads();
  return own;
}

// A row is cut into parts of equal size, one for each warp of its blocks: at most kBins.
__device__ __forceinline__ uint32_t part_size(uint32_t vocab, uint32_t blocks) {
  const uint32_t parts = blocks * kSampleWarps;
  return ((vocab + parts - 1) / parts + 3) / 4 * 4;
}
// [begin, begin + size) of a row.
struct Share {
  uint32_t begin, size;
  __device__ __forceinline__ bool has(uint32_t token) const { return token - begin < size; }
};
__device__ __forceinline__ Share share_of(uint32_t vocab, uint32_t index, uint32_t each) {
  const uint32_t begin = min(index * each, vocab);
  return {begin, min(each, vocab - begin)};
}
__device__ __forceinline__ PassGroup own_warp() { return {lane_idx(), kWarpSize}; }

// Adds up the values of bins in the order they come: one atomic for a run of the same bin, so that equal weights side by side
// cost no more than others.
class BinSums {
 public:
  __device__ __forceinline__ explicit BinSums(SampleShared& shared) : shared_(shared) {}
  __device__ __forceinline__ void add(uint32_t bin, uint64_t value) {
    if (bin != bin_) {
      flush();
      bin_ = bin;
      sum_ = 0;
    }
    sum_ += value;
  }
  __device__ __forceinline__ void flush() {
    if (sum_ == 0) return;
    const auto low = static_cast<uint32_t>(sum_);
    const uint32_t old = atomic_add(&shared_.low[bin_], low);
    const uint32_t high = static_cast<uint32_t>(sum_ >> 32) + (old + low < old ? 1u : 0u);  // the carry
    if (high != 0) atomic_add(&shared_.high[bin_], high);
  }

 private:
  SampleShared& shared_;
  uint32_t bin_ = 0;
  uint64_t sum_ = 0;
};

__device__ __forceinline__ void set_own_bin(uint64_t sum, SampleShared& shared) {
  shared.low[threadIdx.x] = static_cast<uint32_t>(sum);
  shared.high[threadIdx.x] = static_cast<uint32_t>(sum >> 32);
}
// Every thread calls it before the first is added to a bin.
__device__ __forceinline__ void clear_bins(SampleShared& shared) {
  set_own_bin(0, shared);
  sync_threads();
}
__device__ __forceinline__ uint64_t bin_sum(uint32_t bin, const SampleShared& shared) {
  return uint64_t{shared.high[bin]} << 32 | shared.low[bin];
}

// Where the running sum of the bins, from the first on or from the last one down, reaches `wanted`, 1 <= wanted <= the sum of all:
// shared.found, with the sum of those before it in .before and its own in .value. A bin that holds nothing is passed over.
__device__ __forceinline__ void find_bin(uint64_t wanted, bool from_last, SampleShared& shared) {
  const uint32_t bin = from_last ? kBins - 1 - threadIdx.x : threadIdx.x;
  const uint64_t own = bin_sum(bin, shared);
  const uint64_t before = sum_before(own, shared.sums);
  if (before < wanted && wanted <= before + own) {  // one thread
    shared.found = bin;
    shared.before = before;
    shared.value = own;
  }
  sync_threads();
}

}  // namespace restkv::cuda

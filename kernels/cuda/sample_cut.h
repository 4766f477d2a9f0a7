// The order of a row's tokens and its cuts, for sample.cu. Tokens are ordered by (weight descending, id ascending); a weight is
// the bits of a float in [0, 1], which rise with it. A cut is found digit by digit over the bits of the weight (radix
// select), then among the ids of equal weight. What is added up are integers, counts or units of 2^-40: the same for any
// order of addition.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/row_pass.h"

namespace restkv::cuda {

constexpr uint32_t kSampleThreads = 1024, kSampleWarps = kSampleThreads / kWarpSize;
constexpr uint32_t kDigitBits = 10, kBins = 1u << kDigitBits;  // three digits: 1.0f is 30 bits
constexpr uint32_t kNoToken = 0x7FFFFFFFu;
static_assert(kBins == kSampleThreads, "a thread looks at one bin");

struct CutShared {
  uint32_t low[kBins],
      high[kBins];  // halves of the sum of a bin: there is no fast 64-bit atomic in shared memory
  uint64_t parts[kSampleWarps];  // of sum_parts
  uint64_t sums[kWarpSize];      // of reductions
  uint64_t before, value;        // of the last search
  uint32_t found;
};

// The last token that stays in the order: those of larger weight, and of equal weight up to this id, stay.
struct Bound {
  uint32_t weight;  // bits
  uint32_t token;
};
__device__ __forceinline__ bool is_kept(uint32_t weight, uint32_t token, const Bound& bound) {
  return weight > bound.weight || (weight == bound.weight && token <= bound.token);
}

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
  sum -= own;
#pragma unroll 4  // all 32 would take all registers
  for (uint32_t w = 0; w < kSampleWarps; ++w)
    if (w < warp_idx()) sum += sums[w];
  return sum;
}

// Each warp has a part of the ids: part_size(vocab) from warp * part_size(vocab).
__device__ __forceinline__ uint32_t part_size(uint32_t vocab) {
  return ((vocab + kSampleWarps - 1) / kSampleWarps + 3) / 4 * 4;
}

// The sum of value(i, weight) over the row; shared.parts has those of the parts. Every thread gets it.
template <class Value>
__device__ __forceinline__ uint64_t sum_parts(const uint32_t* weights, uint32_t vocab, CutShared& shared,
                                              Value value) {
  const uint32_t part = part_size(vocab), begin = min(warp_idx() * part, vocab);
  uint64_t sum = 0;
  visit_row(weights + begin, min(part, vocab - begin), {lane_idx(), kWarpSize},
            [&](uint32_t i, uint32_t weight) { sum += value(begin + i, weight); });
  sum = warp_reduce(sum, Sum{});
  if (lane_idx() == 0) shared.parts[warp_idx()] = sum;
  sync_threads();
  uint64_t total = 0;
#pragma unroll 4
  for (uint32_t w = 0; w < kSampleWarps; ++w) total += shared.parts[w];
  return total;
}

// The first id in rising order at which the running sum of value(i, weight) exceeds `target` < sum_parts(... value), which
// comes before. Every thread gets it.
template <class Value>
__device__ __forceinline__ uint32_t find_id(const uint32_t* weights, uint32_t vocab, uint64_t target,
                                            CutShared& shared, Value value) {
  const uint32_t part = part_size(vocab);
  uint32_t begin = 0;
  uint64_t sum = 0, before = 0;
#pragma unroll 4
  for (uint32_t w = 0; w < kSampleWarps; ++w) {
    const uint64_t next = sum + shared.parts[w];
    if (sum <= target && target < next) {
      begin = w * part;
      before = sum;
    }
    sum = next;
  }
  target -= before;
  const uint32_t size = min(part, vocab - begin), each = (size + kSampleThreads - 1) / kSampleThreads;
  const uint32_t first = begin + min(threadIdx.x * each, size), last = min(first + each, begin + size);
  uint64_t own = 0;
  for (uint32_t i = first; i < last; ++i) own += value(i, weights[i]);
  sum = sum_before(own, shared.sums);
  if (sum <= target && target < sum + own) {  // one thread
    uint32_t i = first;
    while ((sum += value(i, weights[i])) <= target) ++i;
    shared.found = i;
  }
  sync_threads();
  return shared.found;
}

// Adds up the values of bins in the order they come: one atomic for a run of the same bin, so that equal weights side by side
// cost no more than others.
class BinSums {
 public:
  __device__ __forceinline__ explicit BinSums(CutShared& shared) : shared_(shared) {}
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
  CutShared& shared_;
  uint32_t bin_ = 0;
  uint64_t sum_ = 0;
};

enum class Measure : uint32_t { kTokens, kMass };

// Every thread calls it before the first is added to a bin.
__device__ __forceinline__ void clear_bins(CutShared& shared) {
  shared.low[threadIdx.x] = 0;
  shared.high[threadIdx.x] = 0;
  sync_threads();
}
__device__ __forceinline__ uint32_t first_digit(uint32_t weight) {
  return weight >> (2 * kDigitBits) & (kBins - 1);
}
__device__ __forceinline__ uint64_t bin_sum(uint32_t bin, const CutShared& shared) {
  return uint64_t{shared.high[bin]} << 32 | shared.low[bin];
}

// The token at which, in the order and among those within `bound`, `wanted` tokens or units are reached; 1 <= wanted <= what
// there is of them. has_bins: the bins hold what there is by first digit. shared.sums and .parts are used.
__device__ __forceinline__ Bound find_cut(const uint32_t* weights, uint32_t vocab, const Bound& bound,
                                          Measure measure, uint64_t wanted, bool has_bins,
                                          CutShared& shared) {
  const bool by_mass = measure == Measure::kMass;
  uint32_t prefix = 0, mask = 0;
  uint64_t of_bin = 0;
  for (int32_t shift = 2 * kDigitBits; shift >= 0; shift -= static_cast<int32_t>(kDigitBits)) {
    if (shift < 2 * static_cast<int32_t>(kDigitBits) || !has_bins) {
      clear_bins(shared);
      BinSums bins(shared);
      visit_row(weights, vocab, {threadIdx.x, kSampleThreads}, [&](uint32_t i, uint32_t weight) {
        if ((weight & mask) == prefix && is_kept(weight, i, bound))
          bins.add(weight >> shift & (kBins - 1), by_mass ? units(weight) : 1);
      });
      bins.flush();
      sync_threads();
    }
    // From the largest digit down; a bin whose tokens have no units is passed over, as an empty one.
    const uint32_t digit = kBins - 1 - threadIdx.x;
    const uint64_t own = bin_sum(digit, shared);
    const uint64_t before = sum_before(own, shared.sums);
    if (before < wanted && wanted <= before + own) {  // one thread
      shared.found = digit;
      shared.before = before;
      shared.value = own;
    }
    sync_threads();
    prefix |= shared.found << shift;
    mask |= (kBins - 1) << shift;
    wanted -= shared.before;
    of_bin = shared.value;
  }
  // Of equal weights the lowest ids that make up what is still wanted: mostly all.
  const uint64_t each = by_mass ? units(prefix) : 1;
  if (of_bin - wanted < each) return {prefix, prefix == bound.weight ? bound.token : kNoToken};
  const auto of_equal = [&](uint32_t i, uint32_t weight) {
    return weight == prefix && is_kept(weight, i, bound) ? each : uint64_t{0};
  };
  sum_parts(weights, vocab, shared, of_equal);
  return {prefix, find_id(weights, vocab, wanted - 1, shared, of_equal)};
}

}  // namespace restkv::cuda

// The order of a row's tokens and its cuts, for sample.cu. Tokens are ordered by (weight descending, id ascending); a weight is
// the bits of a float in [0, 1], which rise with it. A cut is found by bins of all weights, then
// digit by digit over the lower bits (radix select), then over those of the ids of equal weight.
#pragma once

#include "kernels/cuda/sample_bins.h"

namespace restkv::cuda {

constexpr uint32_t kNoToken = 0x7FFFFFFFu;
constexpr uint32_t kMostListed = 16384;  // undecided tokens

// The last token that stays in the order: those of larger weight, and of equal weight up to this id, stay.
struct Bound {
  uint32_t weight;  // bits
  uint32_t token;
};
__device__ __forceinline__ bool is_kept(uint32_t weight, uint32_t token, const Bound& bound) {
  return weight > bound.weight || (weight == bound.weight && token <= bound.token);
}

// The bin of a weight in the pass over all of a row: 32 for each power of two from 1 down to 2^-32, what is smaller in bin 0. The
// weights of the others share their upper bits.
constexpr uint32_t kBinShift = 18, kUpperOfBin0 = (0x3F800000u >> kBinShift) - (kBins - 1);
__device__ __forceinline__ uint32_t weight_bin(uint32_t weight) {
  return max(weight >> kBinShift, kUpperOfBin0) - kUpperOfBin0;
}

__device__ __forceinline__ uint32_t least_of_bin(uint32_t bin) { return (bin + kUpperOfBin0) << kBinShift; }

// Where a row's list begins that is made before the bin of its cut is known: 2^-12, the lower end of a bin. Nearly all of the mass
// of a model's logits is above it, and some thousands of tokens at most.
constexpr uint32_t kLeastListed = 0x39800000u;
static_assert(kLeastListed >> kBinShift << kBinShift == kLeastListed);

// A row's weights. They are worked out anew wherever they are looked at: that takes less than to write them and read them back.
struct Weights {
  const uint32_t* logits;  // [vocab] bits of f32
  float max;               // of them
  float temperature;       // 1 where it comes after the cuts

  __device__ __forceinline__ uint32_t of(uint32_t logit) const {
    float x = bits_to_f32(logit) - max;
    if (temperature != 1.0f) x = x / temperature;
    return f32_to_bits(expf(x));
  }
};

// The tokens of a row that the bin of a cut neither keeps nor drops: those of the bins [first, certain) and of at least the
// weight `least`, in any order. They are in a list, or (not kIsListed) there may be too many and the row is looked through for them.
template <bool kIsListed>
struct Undecided {
  const uint64_t* listed;  // [num_listed <= kMostListed] weight << 32 | id
  Weights weights;
  uint32_t num_listed, vocab;
  uint32_t first, certain, least;

  __device__ __forceinline__ bool has(uint32_t weight) const {
    const uint32_t bin = weight_bin(weight);
    return bin >= first && bin < certain && weight >= least;
  }
  // visit(id, weight) of each, by one thread of the block.
  template <class Visit>
  __device__ __forceinline__ void each(Visit visit) const {
    if (!kIsListed && num_listed > kMostListed) {
      // By warps, so that the ids of a thread lie close together: in few bins.
      const Share part = share_of(vocab, warp_idx(), part_size(vocab, 1));
      visit_row<1>(weights.logits + part.begin, part.size, own_warp(), [&](uint32_t i, uint32_t logit) {
        const uint32_t weight = weights.of(logit);
        if (has(weight)) visit(part.begin + i, weight);
      });
      return;
    }
    constexpr uint32_t kLoads = 2;
    for (uint32_t begin = threadIdx.x; begin < num_listed; begin += kLoads * kSampleThreads) {
      uint64_t values[kLoads] = {};
#pragma unroll
      for (uint32_t u = 0; u < kLoads; ++u)
        if (begin + u * kSampleThreads < num_listed) values[u] = listed[begin + u * kSampleThreads];
#pragma unroll
      for (uint32_t u = 0; u < kLoads; ++u)
        if (begin + u * kSampleThreads < num_listed)
          visit(static_cast<uint32_t>(values[u]), static_cast<uint32_t>(values[u] >> 32));
    }
  }
};

enum class Measure : uint32_t { kTokens, kMass };

// The token at which, in the order and among the undecided within `bound`, `wanted` tokens or units are reached; 1 <= wanted <= what
// there is of them. is_bin_known: it is in undecided.first, which is not 0, and `wanted` counts from there.
template <class Tokens>
__device__ __forceinline__ Bound find_cut(const Tokens& undecided, const Bound& bound, Measure measure,
                                          uint64_t wanted, bool is_bin_known, SampleShared& shared) {
  const bool by_mass = measure == Measure::kMass;
  uint32_t prefix = is_bin_known ? least_of_bin(undecided.first) : 0;
  uint32_t mask = is_bin_known ? ~0u << kBinShift : 0;
  uint32_t shift = is_bin_known ? kBinShift - kDigitBits : 2 * kDigitBits;
  uint64_t of_bin = 0;
  for (bool is_last = false; !is_last; shift = shift > kDigitBits ? shift - kDigitBits : 0) {
    is_last = shift == 0;
    clear_bins(shared);
    BinSums bins(shared);
    undecided.each([&](uint32_t i, uint32_t weight) {
      if ((weight & mask) == prefix && is_kept(weight, i, bound))
        bins.add(weight >> shift & (kBins - 1), by_mass ? units(weight) : 1);
    });
    bins.flush();
    sync_threads();
    find_bin(wanted, true, shared);  // tokens that have no units are none here
    prefix |= shared.found << shift;
    mask |= (kBins - 1) << shift;
    wanted -= shared.before;
    of_bin = shared.value;
  }
  // Of equal weights the lowest ids that make up what is still wanted: mostly all.
  const uint64_t each = by_mass ? units(prefix) : 1;
  if (of_bin - wanted < each) return {prefix, prefix == bound.weight ? bound.token : kNoToken};
  wanted = by_mass ? (wanted - 1) / each + 1 : wanted;  // tokens
  uint32_t token = 0;
  shift = undecided.vocab > kBins * kBins ? 2 * kDigitBits : kDigitBits;
  for (bool is_last = false; !is_last; shift -= kDigitBits) {
    is_last = shift == 0;
    clear_bins(shared);
    BinSums bins(shared);
    undecided.each([&](uint32_t i, uint32_t weight) {
      const bool is_near = i >> shift >> kDigitBits == token >> shift >> kDigitBits;
      if (weight == prefix && is_near && is_kept(weight, i, bound)) bins.add(i >> shift & (kBins - 1), 1);
    });
    bins.flush();
    sync_threads();
    find_bin(wanted, false, shared);
    token |= shared.found << shift;
    wanted -= shared.before;
  }
  return {prefix, token};
}

// The first id in rising order at which the running sum of value(i, weight) exceeds `uniform` times that of the row. The bins hold
// its sums over the parts of `part` ids; their total is not 0.
template <class Value>
__device__ __forceinline__ uint32_t find_id(const Weights& weights, uint32_t vocab, uint32_t part,
                                            double uniform, SampleShared& shared, Value value) {
  const uint64_t total = reduce_all(bin_sum(threadIdx.x, shared), Sum{}, shared.sums);
  auto target = static_cast<uint64_t>(uniform * static_cast<double>(total));
  target = target < total ? target : total - 1;
  find_bin(target + 1, false, shared);
  const Share share = share_of(vocab, shared.found, part);
  target -= shared.before;
  const uint32_t each = (share.size + kSampleThreads - 1) / kSampleThreads;
  const uint32_t first = share.begin + min(threadIdx.x * each, share.size);
  const uint32_t last = min(first + each, share.begin + share.size);
  uint64_t own = 0;
  for (uint32_t i = first; i < last; ++i) own += value(i, weights.of(weights.logits[i]));
  uint64_t sum = sum_before(own, shared.sums);
  if (sum <= target && target < sum + own) {  // one thread
    uint32_t i = first;
    while ((sum += value(i, weights.of(weights.logits[i]))) <= target) ++i;
    shared.found = i;
  }
  sync_threads();
  return shared.found;
}

}  // namespace restkv::cuda

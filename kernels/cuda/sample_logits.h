// A row of logits before it is weighed, for sample.cu: its largest, masks and penalties; and log probabilities. Keys rise with (logit, then lower id).
#pragma once

#include "kernels/cuda/sample_cut.h"
#include "kernels/cuda/sample_row.h"

namespace restkv::cuda {

constexpr float kInfinity = __builtin_huge_valf();

__device__ __forceinline__ PassGroup whole_block() { return {threadIdx.x, kSampleThreads}; }
__device__ __forceinline__ const uint32_t* bits_of(const float* row) {
  return reinterpret_cast<const uint32_t*>(row);
}
__device__ __forceinline__ uint32_t* bits_of(float* row) { return reinterpret_cast<uint32_t*>(row); }

// None is 0, a NaN above all; -0 counts as 0.
constexpr uint64_t kNanKey = ~uint64_t{0};
__device__ __forceinline__ uint64_t key_of(float logit, uint32_t token) {
  const uint32_t bits = f32_to_bits(logit + 0.0f);
  const uint32_t ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return uint64_t{ordered} << 32 | (0xFFFFFFFFu - token);
}
__device__ __forceinline__ uint32_t token_of(uint64_t key) {
  return 0xFFFFFFFFu - static_cast<uint32_t>(key);
}
// Of kNanKey a NaN.
__device__ __forceinline__ float logit_of(uint64_t key) {
  const auto ordered = static_cast<uint32_t>(key >> 32);
  return bits_to_f32((ordered & 0x80000000u) != 0 ? ordered & 0x7FFFFFFFu : ~ordered);
}
__device__ __forceinline__ bool is_finite(float logit) { return logit < kInfinity && logit > -kInfinity; }

// The key of the largest logit that this thread has of the block's share.
__device__ __forceinline__ uint64_t best_of(const float* logits, const Share& share) {
  float best = -kInfinity;
  uint32_t token = kNoToken;
  bool has_nan = false;
  visit_row(bits_of(logits) + share.begin, share.size, whole_block(), [&](uint32_t i, uint32_t bits) {
    const float x = bits_to_f32(bits);
    has_nan |= x != x;
    if (x > best) {  // ids rise
      best = x;
      token = share.begin + i;
    }
  });
  return has_nan ? kNanKey : key_of(best, token);
}

// Of this block's share of the row. The threads have read it.
__device__ __forceinline__ void apply_masks(float* logits, float* original, const Share& share,
                                            const DeviceRow& row) {
  const auto each = [](int32_t count, auto act) {
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += static_cast<int32_t>(kSampleThreads))
      act(i);
    sync_threads();
  };
  const auto is_own = [&](int32_t token) { return share.has(static_cast<uint32_t>(token)); };
  sync_threads();
  each(row.num_biases, [&](int32_t i) {
    const DeviceBias& bias = row.biases[i];  // each token once
    if (is_own(bias.token)) logits[bias.token] += bias.bias;
  });
  if (row.num_allowed > 0) {
    each(row.num_allowed, [&](int32_t i) {
      if (is_own(row.allowed[i])) original[row.allowed[i]] = logits[row.allowed[i]];
    });
    each(static_cast<int32_t>(share.size),
         [&](int32_t i) { logits[share.begin + static_cast<uint32_t>(i)] = -kInfinity; });
    each(row.num_allowed, [&](int32_t i) {
      if (is_own(row.allowed[i])) logits[row.allowed[i]] = original[row.allowed[i]];
    });
  }
  each(row.num_banned, [&](int32_t i) {
    if (is_own(row.banned[i])) logits[row.banned[i]] = -kInfinity;
  });
}

// Likewise.
__device__ __forceinline__ void penalise(float* logits, const Share& share, const DeviceRow& row) {
  // Copies: a store to the row might be one to `row`, as far as the compiler knows.
  const float repetition = row.repetition, frequency = row.frequency, presence = row.presence;
  const uint64_t* prompt_tokens = row.prompt_tokens;
  const uint16_t* counts = row.counts;
  uint32_t* own = bits_of(logits) + share.begin;
  map_row<2>(own, own, share.size, whole_block(), [&](uint32_t at, uint32_t bits) {
    const uint32_t i = share.begin + at;
    const bool in_prompt = prompt_tokens != nullptr && (prompt_tokens[i / 64] >> (i % 64) & 1u) != 0;
    const auto count = static_cast<float>(counts != nullptr ? counts[i] : 0);
    float x = bits_to_f32(bits);
    if (repetition != 1.0f && (in_prompt || count > 0.0f)) x = x > 0.0f ? x / repetition : x * repetition;
    if (count > 0.0f) x -= frequency * count + presence;
    return f32_to_bits(x);
  });
}

// Log probabilities of the chosen token and of the best, from the logits before penalties.
__device__ __forceinline__ void fill_logprobs(const float* logits, uint32_t vocab, float max, uint32_t token,
                                              const DeviceRow& row, SampleShared& shared,
                                              DeviceResult& result) {
  const uint32_t* values = bits_of(logits);
  const float chosen = logits[token];
  const uint64_t chosen_key = key_of(chosen, token);
  uint64_t sum = 0, own = 0;  // own: the best of this thread's ids that is not given yet
  uint32_t rank = 0;
  visit_row(values, vocab, whole_block(), [&](uint32_t i, uint32_t bits) {
    const float x = bits_to_f32(bits);
    const uint64_t key = key_of(x, i);
    sum += units(f32_to_bits(expf(x - max)));
    rank += key > chosen_key ? 1u : 0u;
    if (x != -kInfinity && key > own) own = key;  // banned tokens are not listed
  });
  sum = reduce_all(sum, Sum{}, shared.sums);
  const double lse = static_cast<double>(max) + log(static_cast<double>(sum) * 0x1p-40);
  result.logprob = static_cast<float>(static_cast<double>(chosen) - lse);
  result.rank = static_cast<int32_t>(reduce_all(uint64_t{rank}, Sum{}, shared.sums));
  int32_t held = 0;
  for (; held < row.num_logprobs; ++held) {
    const uint64_t best = reduce_all(own, Max{}, shared.sums);
    if (best == 0) break;
    if (threadIdx.x == 0)
      row.top[held] = {static_cast<int32_t>(token_of(best)),
                       static_cast<float>(static_cast<double>(logits[token_of(best)]) - lse)};
    // The thread that had it needs another: its warp looks through that thread's ids.
    const uint32_t had_it = ballot(own == best);
    if (had_it == 0) continue;
    const uint32_t lane = 31 - leading_zeros(had_it);
    uint64_t next = 0;
    visit_quads_of(values, vocab, {warp_idx() * kWarpSize + lane, kSampleThreads},
                   [&](uint32_t i, uint32_t bits) {
                     const float x = bits_to_f32(bits);
                     const uint64_t key = key_of(x, i);
                     if (x != -kInfinity && key < best && key > next) next = key;
                   });
    next = warp_reduce(next, Max{});
    if (lane_idx() == lane) own = next;
  }
  result.num_top = held;
}

}  // namespace restkv::cuda

// What the host says of a row to be sampled, and what it hears of it; for sample.cu.
#pragma once

#include "kernels/cuda/sample_bins.h"

namespace restkv::cuda {

struct DeviceBias {
  int32_t token;
  float bias;
};

struct DeviceResult {
  int32_t token, is_nan, rank, num_top;
  float logprob;
};
struct DeviceTop {
  int32_t token;
  float logprob;
};

struct DeviceRow {
  float temperature, top_p, min_p, presence, frequency, repetition;
  int32_t top_k, num_logprobs, forced;
  double uniform;  // in [0, 1)
  const DeviceBias* biases;
  const int32_t* allowed;
  const int32_t* banned;
  const uint64_t* prompt_tokens;  // [ceil(V/64)] or null
  const uint16_t* counts;         // [V] or null
  DeviceResult* result;           // memory of the host, as `top` [num_logprobs]
  DeviceTop* top;
  int32_t num_biases, num_allowed, num_banned;
  int32_t has_penalties;
  int32_t temperature_last;

  constexpr bool is_drawn() const { return forced < 0 && temperature > 0.0f; }
  constexpr bool has_top_k(int32_t vocab) const { return top_k > 0 && top_k < vocab; }
  constexpr bool has_top_p() const { return top_p < 1.0f; }
  constexpr bool has_cut(int32_t vocab) const { return has_top_k(vocab) || has_top_p(); }
  constexpr bool has_masks() const { return num_biases > 0 || num_allowed > 0 || num_banned > 0; }
  constexpr bool has_logprobs() const { return num_logprobs >= 0; }
  // The logits that log probabilities are of do not stay where they are.
  constexpr bool is_copied() const { return has_logprobs() && has_penalties != 0; }
};

// What the cuts of a row and its draw ask of a weight.
struct Draw {
  __device__ __forceinline__ Draw(const DeviceRow& row, int32_t vocab)
      : is_last(row.temperature_last != 0),
        has_top_k(row.has_top_k(vocab)),
        has_top_p(row.has_top_p()),
        temperature(row.temperature) {
    const uint32_t min_p = row.min_p > 0.0f ? f32_to_bits(row.min_p < 1.0f ? row.min_p : 1.0f) : uint32_t{0};
    least = min_p > 1 ? min_p : 1;  // a weight of 0 never takes part
    least_cut = is_last ? 1 : least;
  }
  __device__ __forceinline__ bool has_cut() const { return has_top_k || has_top_p; }
  // Units with which a token that the cuts leave takes part in the draw.
  __device__ __forceinline__ uint64_t units_of(uint32_t weight) const {
    if (weight < least) return 0;
    return units(is_last ? f32_to_bits(expf(logf(bits_to_f32(weight)) / temperature)) : weight);
  }

  bool is_last, has_top_k, has_top_p;
  float temperature;
  uint32_t least, least_cut;  // weights in the draw and in the cuts
};
__device__ __forceinline__ uint64_t top_p_units(const DeviceRow& row, uint64_t total) {
  const double share = row.top_p > 0.0f ? static_cast<double>(row.top_p) : 0.0;
  const auto mass = static_cast<uint64_t>(share * static_cast<double>(total));
  return mass > 0 ? mass : 1;
}

}  // namespace restkv::cuda

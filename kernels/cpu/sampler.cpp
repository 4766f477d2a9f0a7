// bias, allowed, banned -> log probabilities -> penalties -> temperature -> min-p -> top-k -> top-p -> draw.
// Tokens are ordered by (weight descending, id ascending). top-k and top-p only need the place of their cut in that
// order: a histogram over log weights finds the bin of the cut, that bin alone is sorted, and the draw runs over ids.
#include "kernels/cpu/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/base/philox.h"

namespace restkv::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int64_t kBins = 4096;

struct Candidate {
  float weight;
  int32_t token;
};

bool is_before(const Candidate& a, const Candidate& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
}

// Arrays of one row in the workspace.
struct Arrays {
  float* original;        // [V] logits before penalties
  Candidate* candidates;  // [V]
  double* mass;           // [kBins]
  int64_t* counts;        // [kBins]
};

Arrays lay_out(int64_t vocab, const Workspace& workspace) {
  CHECK(sampler_bytes(vocab) <= workspace.bytes) << vocab << " tokens, " << workspace.bytes << " bytes";
  std::byte* p = workspace.data;
  Arrays arrays{};
  arrays.mass = reinterpret_cast<double*>(p);
  p += kBins * 8;
  arrays.counts = reinterpret_cast<int64_t*>(p);
  p += kBins * 8;
  arrays.candidates = reinterpret_cast<Candidate*>(p);
  p += vocab * static_cast<int64_t>(sizeof(Candidate));
  arrays.original = reinterpret_cast<float*>(p);
  return arrays;
}

void apply_masks(float* logits, int64_t vocab, const SampleRow& row, const Arrays& arrays) {
  const SamplingParams& params = *row.params;
  for (const LogitBias& bias : params.logit_bias) logits[bias.token] += bias.bias;
  if (!params.allowed_tokens.empty()) {
    for (const int32_t token : params.allowed_tokens) arrays.original[token] = logits[token];
    std::fill(logits, logits + vocab, kMinusInfinity);
    for (const int32_t token : params.allowed_tokens) logits[token] = arrays.original[token];
  }
  for (const int32_t token : row.banned) logits[token] = kMinusInfinity;
}

void penalise(float* logits, int64_t vocab, const SampleRow& row) {
  const SamplingParams& params = *row.params;
  const auto repeat = [&](int64_t token) {
    float& x = logits[token];
    x = x > 0.0f ? x / params.repetition_penalty : x * params.repetition_penalty;
  };
  if (params.repetition_penalty != 1.0f) {
    for (size_t word = 0; word < row.prompt_tokens.size(); ++word) {
      for (uint64_t bits = row.prompt_tokens[word]; bits != 0; bits &= bits - 1) {
        repeat(static_cast<int64_t>(word) * 64 + std::countr_zero(bits));
      }
    }
  }
  const auto is_in_prompt = [&](size_t token) {
    return token / 64 < row.prompt_tokens.size() &&
           ((row.prompt_tokens[token / 64] >> (token % 64)) & 1) != 0;
  };
  for (size_t token = 0; token < row.counts.size() && token < static_cast<size_t>(vocab); ++token) {
    const uint16_t count = row.counts[token];
    if (count == 0) continue;
    if (params.repetition_penalty != 1.0f && !is_in_prompt(token)) repeat(static_cast<int64_t>(token));
    logits[token] -= params.frequency_penalty * static_cast<float>(count) + params.presence_penalty;
  }
}

int32_t first_of(const float* logits, int64_t vocab, float value) {
  for (int64_t i = 0; i < vocab; ++i) {
    if (logits[i] == value) return static_cast<int32_t>(i);
  }
  CHECK(false) << "the largest logit is not in its row";
  return -1;
}

int64_t bin_of(float weight) {
  // -log2 of a weight in (0, 1], from its exponent and leading mantissa bits: 32 bins an octave
  const uint32_t bits = std::bit_cast<uint32_t>(weight);
  return std::min<int64_t>(kBins - 1, static_cast<int64_t>((0x3F800000u - bits) >> 18));
}

// Cuts the order at the first token where `count` tokens or `mass` of weight are reached: the last token kept.
// weights [V] in [0, 1]; those behind `bound` do not take part.
Candidate find_cut(const float* weights, int64_t vocab, const Candidate& bound, int64_t count, double mass,
                   const Arrays& arrays) {
  const auto takes_part = [&](int64_t i) {
    return weights[i] > bound.weight || (weights[i] == bound.weight && i <= bound.token);
  };
  std::fill(arrays.mass, arrays.mass + kBins, 0.0);
  std::fill(arrays.counts, arrays.counts + kBins, int64_t{0});
  for (int64_t i = 0; i < vocab; ++i) {
    if (!takes_part(i)) continue;
    const int64_t bin = bin_of(weights[i]);
    arrays.mass[bin] += static_cast<double>(weights[i]);
    ++arrays.counts[bin];
  }
  int64_t bin = 0;
  int64_t last_bin = kBins - 1;
  while (last_bin > 0 && arrays.counts[last_bin] == 0) --last_bin;
  while (bin < last_bin && arrays.counts[bin] < count && arrays.mass[bin] < mass) {
    count -= arrays.counts[bin];
    mass -= arrays.mass[bin];
    ++bin;
  }
  int64_t size = 0;
  for (int64_t i = 0; i < vocab; ++i) {
    if (takes_part(i) && bin_of(weights[i]) == bin) {
      arrays.candidates[size++] = {weights[i], static_cast<int32_t>(i)};
    }
  }
  CHECK(size > 0) << "empty bin " << bin;
  std::sort(arrays.candidates, arrays.candidates + size, is_before);
  for (int64_t i = 0; i < size; ++i) {
    --count;
    mass -= static_cast<double>(arrays.candidates[i].weight);
    if (count <= 0 || mass <= 0.0) return arrays.candidates[i];
  }
  return arrays.candidates[size - 1];
}

// weights [V] of the tokens, the largest 1.
int32_t draw(const float* weights, int64_t vocab, const SampleRow& row, double total, const Arrays& arrays) {
  const SamplingParams& params = *row.params;
  // the last token kept; weight 0 never takes part
  Candidate bound{std::numeric_limits<float>::denorm_min(), std::numeric_limits<int32_t>::max()};
  const auto is_kept = [&](int64_t i) {
    return weights[i] > bound.weight || (weights[i] == bound.weight && i <= bound.token);
  };
  const auto kept_mass = [&] {
    double sum = 0.0;
    for (int64_t i = 0; i < vocab; ++i) sum += is_kept(i) ? static_cast<double>(weights[i]) : 0.0;
    return sum;
  };
  const auto cut_min_p = [&] {
    const float least = std::min(params.min_p, 1.0f);
    if (least <= bound.weight) return;  // also 0: off
    bound = {least, std::numeric_limits<int32_t>::max()};
    total = kept_mass();
  };
  if (!params.temperature_last) cut_min_p();
  constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
  if (params.top_k > 0 && params.top_k < vocab) {
    bound = find_cut(weights, vocab, bound, params.top_k, std::numeric_limits<double>::infinity(), arrays);
    total = kept_mass();
  }
  if (params.top_p < 1.0f) {
    const double mass = static_cast<double>(std::max(params.top_p, 0.0f)) * total;
    bound = find_cut(weights, vocab, bound, kAll, mass, arrays);
    total = kept_mass();
  }
  double power = 1.0;
  if (params.temperature_last) {
    cut_min_p();
    power = 1.0 / static_cast<double>(params.temperature);
    total = 0.0;
    for (int64_t i = 0; i < vocab; ++i)
      if (is_kept(i)) total += std::pow(static_cast<double>(weights[i]), power);
  }
  const double target = sampling_uniform(params.seed, row.choice, row.position) * total;
  double sum = 0.0;
  int32_t token = -1;
  for (int64_t i = 0; i < vocab; ++i) {
    if (!is_kept(i)) continue;
    token = static_cast<int32_t>(i);
    sum += power == 1.0 ? static_cast<double>(weights[i]) : std::pow(static_cast<double>(weights[i]), power);
    if (sum > target) break;
  }
  return token;
}

void fill_logprobs(const KernelTable& kernels, const float* logits, int64_t vocab, float max, int32_t num_top,
                   SampleResult& result, const Arrays& arrays) {
  const double sum = kernels.exp_sum(logits, vocab, max, 1.0f, nullptr);
  const double lse = static_cast<double>(max) + std::log(sum);
  const auto logprob = [&](float logit) { return static_cast<float>(static_cast<double>(logit) - lse); };
  const float chosen = logits[result.token];
  result.logprob = logprob(chosen);
  for (int64_t i = 0; i < vocab; ++i) {
    if (logits[i] > chosen || (logits[i] == chosen && i < result.token)) ++result.rank;
  }
  const int64_t size = std::min<int64_t>(num_top, vocab);
  if (size <= 0) return;
  // a heap of the best so far, the worst of them on top
  Candidate* best = arrays.candidates;
  int64_t held = 0;
  for (int64_t i = 0; i < vocab; ++i) {
    if (logits[i] == kMinusInfinity) continue;  // banned tokens are not listed
    const Candidate candidate{logits[i], static_cast<int32_t>(i)};
    if (held < size) {
      best[held++] = candidate;
      std::push_heap(best, best + held, is_before);
    } else if (is_before(candidate, best[0])) {
      std::pop_heap(best, best + held, is_before);
      best[held - 1] = candidate;
      std::push_heap(best, best + held, is_before);
    }
  }
  std::sort(best, best + held, is_before);
  for (int64_t i = 0; i < held; ++i) result.top.push_back({best[i].token, logprob(best[i].weight)});
}

}  // namespace

int64_t sampler_bytes(int64_t vocab) {
  return kBins * 16 + vocab * static_cast<int64_t>(sizeof(Candidate) + sizeof(float));
}

void sample_row(const KernelTable& kernels, float* logits, int64_t vocab, const SampleRow& row,
                SampleResult& result, const Workspace& workspace) {
  const SamplingParams& params = *row.params;
  const Arrays arrays = lay_out(vocab, workspace);
  result.token = -1;
  result.is_nan = false;
  result.logprob = 0.0f;
  result.rank = 0;
  result.top.clear();

  // a NaN anywhere is an error, also where a mask would hide it; so is +inf, which has no distribution
  const bool had_nan = std::isnan(kernels.max(logits, vocab));
  apply_masks(logits, vocab, row, arrays);
  const float plain_max = had_nan ? 0.0f : kernels.max(logits, vocab);
  if (had_nan || !std::isfinite(plain_max)) {
    result.is_nan = true;
    return;
  }
  const bool has_logprobs = params.num_logprobs >= 0;
  float max = plain_max;
  const float* before_penalties = logits;
  if (params.has_penalties()) {
    if (has_logprobs) {
      std::copy(logits, logits + vocab, arrays.original);
      before_penalties = arrays.original;
    }
    penalise(logits, vocab, row);
    max = kernels.max(logits, vocab);
    if (!std::isfinite(max)) {
      result.is_nan = true;
      return;
    }
  }
  if (row.forced >= 0 || params.temperature <= 0.0f) {
    result.token = row.forced >= 0 ? row.forced : first_of(logits, vocab, max);
    if (has_logprobs)
      fill_logprobs(kernels, before_penalties, vocab, plain_max, params.num_logprobs, result, arrays);
    return;
  }
  if (has_logprobs && before_penalties == logits) {
    std::copy(logits, logits + vocab, arrays.original);  // the weights overwrite the logits
    before_penalties = arrays.original;
  }
  const float temperature = params.temperature_last ? 1.0f : params.temperature;
  const double total = kernels.exp_sum(logits, vocab, max, temperature, logits);
  result.token = draw(logits, vocab, row, total, arrays);
  if (has_logprobs)
    fill_logprobs(kernels, before_penalties, vocab, plain_max, params.num_logprobs, result, arrays);
}

}  // namespace restkv::cpu

// One token for each row of logits [B, V]: bias, allowed, banned -> penalties -> temperature -> min-p -> top-k -> top-p -> draw
// (temperature_last: top-k -> top-p -> min-p -> temperature -> draw), with the CPU's order, ties and generator (kernels/cpu/sampler.cpp). A block of 512 threads owns a row; the few passes over V
// are bound by memory (L2 for one row).
// Tokens are ordered by (weight descending, id ascending), weight = exp((logit - max) / temperature) in (0, 1]. A cut of that
// order is found digit by digit over the bits of the weight (radix select), then among the ids of equal weight. Sums of
// weights are integers, units of 2^-40: the same for any order of addition, so a draw depends on nothing but its row.
// Shared memory 4 KiB.
// Occupancy: sample_kernel 512 x 1.
#include <algorithm>
#include <vector>

#include "kernels/base/philox.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/reduce.h"

namespace restkv::cuda {
namespace {

constexpr uint32_t kThreads = 512, kWarps = kThreads / kWarpSize;
constexpr uint32_t kBins = 256;  // of one digit
constexpr uint32_t kNoToken = 0x7FFFFFFFu;
constexpr float kInfinity = __builtin_huge_valf();

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
};

struct SampleParams {
  float* logits;          // [B, V], overwritten
  float* original;        // [B, V] logits before penalties
  const DeviceRow* rows;  // [B]
  int32_t* drawn;         // [B] or null
  int64_t stride;
  int32_t vocab;
};

struct SampleShared {
  uint64_t mass[kBins];
  uint32_t counts[kBins];
  float floats[kWarpSize];
  uint64_t sums[kWarpSize];
  uint32_t ints[kWarpSize];
  uint64_t found;  // of the last search
  uint64_t left_mass;
  uint32_t left_count;
  uint32_t digit;
};

static_assert(fits_multiprocessor(sizeof(SampleShared), 1));

// The last token that stays in the order: those of larger weight, and of equal weight up to this id, stay.
struct Bound {
  uint32_t weight;  // bits
  uint32_t token;
};
__device__ __forceinline__ bool is_kept(uint32_t weight, uint32_t token, const Bound& bound) {
  return weight > bound.weight || (weight == bound.weight && token <= bound.token);
}
__device__ __forceinline__ uint64_t units(uint32_t weight) {
  return static_cast<uint64_t>(static_cast<double>(bits_to_f32(weight)) * 1099511627776.0 + 0.5);  // 2^40
}

// NaN if any is NaN.
__device__ __forceinline__ float row_max(const float* x, int32_t vocab, SampleShared& shared) {
  float best = -kInfinity;
  uint32_t has_nan = 0;
  for (uint32_t i = threadIdx.x; i < static_cast<uint32_t>(vocab); i += kThreads) {
    has_nan |= x[i] != x[i] ? 1u : 0u;
    best = x[i] > best ? x[i] : best;
  }
  best = block_reduce(best, Max{}, shared.floats);
  has_nan = block_reduce(has_nan, Max{}, shared.ints);
  return has_nan != 0 ? bits_to_f32(0x7FC00000u) : best;
}

__device__ __forceinline__ uint64_t kept_units(const uint32_t* weights, int32_t vocab, const Bound& bound,
                                               SampleShared& shared) {
  uint64_t sum = 0;
  for (uint32_t i = threadIdx.x; i < static_cast<uint32_t>(vocab); i += kThreads)
    if (is_kept(weights[i], i, bound)) sum += units(weights[i]);
  return block_reduce(sum, Sum{}, shared.sums);
}

// The first id in rising order at which the running sum of value(i) exceeds `target`, or the last id with a value where none
// does. Every thread gets it. Tiles of kThreads ids; a thread holds one id of each.
template <class Value>
__device__ __forceinline__ uint32_t find_id(int32_t vocab, uint64_t target, SampleShared& shared,
                                            Value value) {
  uint64_t before = 0;
  uint32_t last = kNoToken;
  if (threadIdx.x == 0) shared.found = kNoToken;
  for (uint32_t base = 0; base < static_cast<uint32_t>(vocab); base += kThreads) {
    const uint32_t i = base + threadIdx.x;
    const uint64_t own = i < static_cast<uint32_t>(vocab) ? value(i) : 0;
    uint64_t sum = own;  // inclusive over the warp
    for (uint32_t step = 1; step < kWarpSize; step <<= 1) {
      const uint64_t other = shuffle_up(sum, step);
      if (lane_idx() >= step) sum += other;
    }
    if (lane_idx() == kWarpSize - 1) shared.sums[warp_idx()] = sum;
    const uint32_t has_value = ballot(own > 0);
    if (lane_idx() == 0)
      shared.ints[warp_idx()] =
          has_value == 0 ? kNoToken : base + warp_idx() * kWarpSize + 31 - leading_zeros(has_value);
    sync_threads();
    uint64_t tile = 0;
    for (uint32_t w = 0; w < kWarps; ++w) {
      if (w < warp_idx()) sum += shared.sums[w];
      tile += shared.sums[w];
      if (shared.ints[w] != kNoToken) last = shared.ints[w];
    }
    sum += before;
    if (own > 0 && sum > target && sum - own <= target) shared.found = i;  // one thread at most
    before += tile;
    sync_threads();
    if (shared.found != kNoToken) break;
  }
  const auto found = static_cast<uint32_t>(shared.found);
  sync_threads();
  return found != kNoToken ? found : last;
}

// The token at which, in the order and among those within `bound`, `count` tokens or `mass` units are reached.
__device__ __forceinline__ Bound find_cut(const uint32_t* weights, int32_t vocab, const Bound& bound,
                                          uint32_t count, uint64_t mass, SampleShared& shared) {
  uint32_t prefix = 0, mask = 0;
  for (int32_t shift = 24; shift >= 0; shift -= 8) {
    for (uint32_t b = threadIdx.x; b < kBins; b += kThreads) {
      shared.mass[b] = 0;
      shared.counts[b] = 0;
    }
    sync_threads();
    for (uint32_t i = threadIdx.x; i < static_cast<uint32_t>(vocab); i += kThreads) {
      const uint32_t w = weights[i];
      if ((w & mask) != prefix || !is_kept(w, i, bound)) continue;
      const uint32_t digit = w >> shift & 255u;
      atomic_add(&shared.counts[digit], 1u);
      atomic_add(&shared.mass[digit], units(w));
    }
    sync_threads();
    if (threadIdx.x == 0) {
      uint32_t digit = kBins - 1, lowest = 0;
      while (lowest < kBins - 1 && shared.counts[lowest] == 0) ++lowest;
      while (digit > lowest &&
             (shared.counts[digit] == 0 || (shared.counts[digit] < count && shared.mass[digit] < mass))) {
        count -= shared.counts[digit];
        mass -= shared.mass[digit];
        --digit;
      }
      shared.digit = digit;
      shared.left_count = count;
      shared.left_mass = mass;
    }
    sync_threads();
    prefix |= shared.digit << shift;
    mask |= 255u << shift;
    count = shared.left_count;
    mass = shared.left_mass;
    sync_threads();
  }
  // Equal weights: the number of ids still wanted.
  const uint64_t each = units(prefix) > 0 ? units(prefix) : 1;
  uint64_t wanted = mass / each + (mass % each != 0 ? 1 : 0);
  if (count < wanted) wanted = count;
  if (wanted == 0) wanted = 1;
  const uint32_t token = find_id(vocab, wanted - 1, shared, [&](uint32_t i) {
    return weights[i] == prefix && is_kept(prefix, i, bound) ? uint64_t{1} : uint64_t{0};
  });
  return {prefix, token};
}

__device__ __forceinline__ void apply_masks(float* logits, float* original, int32_t vocab,
                                            const DeviceRow& row) {
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < row.num_biases; i += static_cast<int32_t>(kThreads))
    logits[row.biases[i].token] += row.biases[i].bias;  // each token once
  sync_threads();
  if (row.num_allowed > 0) {
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < row.num_allowed;
         i += static_cast<int32_t>(kThreads))
      original[row.allowed[i]] = logits[row.allowed[i]];
    sync_threads();
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < vocab; i += static_cast<int32_t>(kThreads))
      logits[i] = -kInfinity;
    sync_threads();
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < row.num_allowed;
         i += static_cast<int32_t>(kThreads))
      logits[row.allowed[i]] = original[row.allowed[i]];
    sync_threads();
  }
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < row.num_banned; i += static_cast<int32_t>(kThreads))
    logits[row.banned[i]] = -kInfinity;
  sync_threads();
}

__device__ __forceinline__ void penalise(float* logits, int32_t vocab, const DeviceRow& row) {
  for (uint32_t i = threadIdx.x; i < static_cast<uint32_t>(vocab); i += kThreads) {
    const bool in_prompt = row.prompt_tokens != nullptr && (row.prompt_tokens[i / 64] >> (i % 64) & 1u) != 0;
    const auto count = static_cast<float>(row.counts != nullptr ? row.counts[i] : 0);
    float x = logits[i];
    if (row.repetition != 1.0f && (in_prompt || count > 0.0f))
      x = x > 0.0f ? x / row.repetition : x * row.repetition;
    if (count > 0.0f) x -= row.frequency * count + row.presence;
    logits[i] = x;
  }
  sync_threads();
}

// Log probabilities of the chosen token and of the best, from the logits before penalties.
__device__ __forceinline__ void fill_logprobs(const float* logits, uint32_t vocab, float max, int32_t token,
                                              const DeviceRow& row, SampleShared& shared,
                                              DeviceResult& result) {
  uint64_t sum = 0;
  for (uint32_t i = threadIdx.x; i < vocab; i += kThreads) sum += units(f32_to_bits(expf(logits[i] - max)));
  sum = block_reduce(sum, Sum{}, shared.sums);
  const double lse = static_cast<double>(max) + log(static_cast<double>(sum) * 0x1p-40);
  const float chosen = logits[token];
  uint32_t rank = 0;
  for (uint32_t i = threadIdx.x; i < vocab; i += kThreads)
    rank += logits[i] > chosen || (logits[i] == chosen && i < static_cast<uint32_t>(token)) ? 1u : 0u;
  rank = block_reduce(rank, Sum{}, shared.ints);
  result.logprob = static_cast<float>(static_cast<double>(chosen) - lse);
  result.rank = static_cast<int32_t>(rank);
  // Keys rise with (logit, then lower id); each round takes the largest below the last one.
  const auto key_of = [&](uint32_t i) {
    const uint32_t bits = f32_to_bits(logits[i] + 0.0f);  // -0 as 0
    const uint32_t ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return uint64_t{ordered} << 32 | (0xFFFFFFFFu - i);
  };
  uint64_t below = ~uint64_t{0};
  int32_t held = 0;
  for (; held < row.num_logprobs; ++held) {
    uint64_t best = 0;
    for (uint32_t i = threadIdx.x; i < vocab; i += kThreads) {
      if (logits[i] == -kInfinity) continue;  // banned tokens are not listed
      const uint64_t key = key_of(i);
      if (key < below && key > best) best = key;
    }
    best = block_reduce(best, Max{}, shared.sums);
    if (best == 0) break;
    below = best;
    const uint32_t i = 0xFFFFFFFFu - static_cast<uint32_t>(best);
    if (threadIdx.x == 0)
      row.top[held] = {static_cast<int32_t>(i), static_cast<float>(static_cast<double>(logits[i]) - lse)};
  }
  result.num_top = held;
}

// Once for each row: the host's memory is far away.
__device__ __forceinline__ void give(const SampleParams& p, const DeviceRow& row,
                                     const DeviceResult& result) {
  if (threadIdx.x != 0) return;
  *row.result = result;
  if (p.drawn != nullptr) p.drawn[blockIdx.x] = result.token < 0 ? 0 : result.token;
}

__global__ void __launch_bounds__(kThreads, 1) sample_kernel(const __grid_constant__ SampleParams p) {
  wait_for_previous();
  auto& shared = *shared_memory<SampleShared>();
  const DeviceRow& row = p.rows[blockIdx.x];
  DeviceResult result = {-1, 0, 0, 0, 0.0f};  // thread 0's counts
  float* logits = p.logits + blockIdx.x * p.stride;
  float* original = p.original + int64_t{blockIdx.x} * p.vocab;
  const auto vocab = static_cast<uint32_t>(p.vocab);
  const float first_max = row_max(logits, p.vocab, shared);
  apply_masks(logits, original, p.vocab, row);
  const float plain_max = first_max != first_max ? first_max : row_max(logits, p.vocab, shared);
  float max = plain_max;
  const bool has_logprobs = row.num_logprobs >= 0;
  const float* before_penalties = logits;
  const bool is_greedy = row.temperature <= 0.0f;
  if (has_logprobs && (row.has_penalties != 0 || !is_greedy)) {
    for (uint32_t i = threadIdx.x; i < vocab; i += kThreads) original[i] = logits[i];
    before_penalties = original;
    sync_threads();
  }
  const bool is_finite = plain_max < kInfinity && plain_max > -kInfinity;  // false for NaN
  if (is_finite && row.has_penalties != 0) {
    penalise(logits, p.vocab, row);
    max = row_max(logits, p.vocab, shared);
  }
  if (!is_finite || !(max < kInfinity && max > -kInfinity)) {
    result.is_nan = 1;
    return give(p, row, result);
  }
  uint32_t token;
  if (row.forced >= 0) {
    token = static_cast<uint32_t>(row.forced);
  } else if (is_greedy) {
    token =
        find_id(p.vocab, 0, shared, [&](uint32_t i) { return logits[i] == max ? uint64_t{1} : uint64_t{0}; });
  } else {
    auto* weights = reinterpret_cast<uint32_t*>(logits);
    const bool is_last = row.temperature_last != 0;
    const float temperature = is_last ? 1.0f : row.temperature;
    for (uint32_t i = threadIdx.x; i < vocab; i += kThreads)
      weights[i] = f32_to_bits(expf((logits[i] - max) / temperature));
    sync_threads();
    Bound bound{1, kNoToken};  // a weight of 0 never takes part
    const uint32_t least = row.min_p > 0.0f ? f32_to_bits(row.min_p < 1.0f ? row.min_p : 1.0f) : uint32_t{0};
    if (!is_last && least > bound.weight) bound.weight = least;
    if (row.top_k > 0 && row.top_k < p.vocab)
      bound = find_cut(weights, p.vocab, bound, static_cast<uint32_t>(row.top_k), ~uint64_t{0}, shared);
    uint64_t total = kept_units(weights, p.vocab, bound, shared);
    if (row.top_p < 1.0f) {
      const double share = row.top_p > 0.0f ? static_cast<double>(row.top_p) : 0.0;
      bound = find_cut(weights, p.vocab, bound, 0xFFFFFFFFu,
                       static_cast<uint64_t>(share * static_cast<double>(total)), shared);
      total = kept_units(weights, p.vocab, bound, shared);
    }
    if (is_last) {
      if (least > bound.weight) bound = {least, kNoToken};
      for (uint32_t i = threadIdx.x; i < vocab; i += kThreads) {
        const float weight = bits_to_f32(weights[i]);
        weights[i] =
            is_kept(weights[i], i, bound) ? f32_to_bits(expf(logf(weight) / row.temperature)) : uint32_t{0};
      }
      sync_threads();
      bound = {1, kNoToken};
      total = kept_units(weights, p.vocab, bound, shared);
    }
    const auto target = static_cast<uint64_t>(row.uniform * static_cast<double>(total));
    token = find_id(p.vocab, target, shared, [&](uint32_t i) {
      return is_kept(weights[i], i, bound) ? units(weights[i]) : uint64_t{0};
    });
  }
  result.token = static_cast<int32_t>(token);
  if (has_logprobs)
    fill_logprobs(before_penalties, vocab, plain_max, static_cast<int32_t>(token), row, shared, result);
  give(p, row, result);
}

template <class T>
const T* upload_or_null(Context& context, std::span<const T> values) {
  return values.empty() ? nullptr : context.upload(values);
}

// What a row brings along; counts of a large vocabulary are half a megabyte.
int64_t staged_bytes(const SampleRow& row) {
  const SamplingParams& params = *row.params;
  constexpr int64_t kAlignment = 6 * 256;
  return kAlignment + static_cast<int64_t>(sizeof(DeviceRow) + params.logit_bias.size() * sizeof(DeviceBias) +
                                           4 * (params.allowed_tokens.size() + row.banned.size()) +
                                           8 * row.prompt_tokens.size() + 2 * row.counts.size());
}

// And what it gives.
int64_t result_bytes(const SampleRow& row, int64_t vocab) {
  const int64_t num_top = std::clamp<int64_t>(row.params->num_logprobs, 0, vocab);
  return static_cast<int64_t>(sizeof(DeviceResult)) + num_top * static_cast<int64_t>(sizeof(DeviceTop));
}

void take_samples(const Awaited& awaited) {
  auto* results = static_cast<SampleResult*>(awaited.to);
  const auto* from = static_cast<const DeviceResult*>(awaited.from);
  const auto* top = static_cast<const DeviceTop*>(awaited.more);
  for (int64_t i = 0; i < awaited.count; ++i) {
    SampleResult& result = results[i];
    result.token = from[i].token;
    result.is_nan = from[i].is_nan != 0;
    result.logprob = from[i].logprob;
    result.rank = from[i].rank;
    result.top.clear();
    const DeviceTop* own = top + i * awaited.more_stride;
    for (int32_t j = 0; j < from[i].num_top; ++j) result.top.push_back({own[j].token, own[j].logprob});
  }
}

void sample_rows(Context& context, const SampleArgs& args) {
  const auto rows = static_cast<size_t>(args.logits.rows);
  const auto vocab = static_cast<int32_t>(args.logits.cols);
  int32_t max_top = 0;
  for (const SampleRow& row : args.rows)
    max_top = std::max(max_top, std::min(row.params->num_logprobs, vocab));
  const size_t num_top = rows * static_cast<size_t>(max_top);
  const std::span<DeviceTop> tops = context.host_results<DeviceTop>(num_top);
  const std::span<DeviceResult> results = context.host_results<DeviceResult>(rows);
  const Staged<DeviceRow> staged = context.stage<DeviceRow>(rows);
  for (size_t i = 0; i < rows; ++i) {
    const SampleRow& row = args.rows[i];
    const SamplingParams& params = *row.params;
    const Staged<DeviceBias> biases = context.stage<DeviceBias>(params.logit_bias.size());
    for (size_t b = 0; b < params.logit_bias.size(); ++b)
      biases.host[b] = {params.logit_bias[b].token, params.logit_bias[b].bias};
    staged.host[i] = {params.temperature,
                      params.top_p,
                      params.min_p,
                      params.presence_penalty,
                      params.frequency_penalty,
                      params.repetition_penalty,
                      params.top_k,
                      std::min(params.num_logprobs, vocab),
                      row.forced,
                      sampling_uniform(params.seed, row.choice, row.position),
                      biases.device,
                      upload_or_null(context, std::span<const int32_t>(params.allowed_tokens)),
                      upload_or_null(context, row.banned),
                      upload_or_null(context, row.prompt_tokens),
                      upload_or_null(context, row.counts),
                      results.data() + i,
                      tops.data() + i * static_cast<size_t>(max_top),
                      static_cast<int32_t>(params.logit_bias.size()),
                      static_cast<int32_t>(params.allowed_tokens.size()),
                      static_cast<int32_t>(row.banned.size()),
                      params.has_penalties() ? 1 : 0,
                      params.temperature_last ? 1 : 0};
  }
  // As many rows at once as there is room for their logits before penalties.
  const int64_t room = context.workspace_left() / (int64_t{vocab} * 4 + 256);
  const int64_t batch = std::min<int64_t>(room, args.logits.rows);
  CHECK(batch > 0) << "no workspace for one row of " << vocab << " logits";
  auto* original = context.workspace<float>(batch * vocab);
  for (int64_t begin = 0; begin < args.logits.rows; begin += batch) {
    const int64_t count = std::min(batch, args.logits.rows - begin);
    launch(sample_kernel, {.x = static_cast<uint32_t>(count)}, kThreads, sizeof(SampleShared),
           context.ready(),
           SampleParams{args.logits.f32(begin), original, staged.device + begin,
                        args.drawn ? static_cast<int32_t*>(args.drawn.data) + begin : nullptr,
                        args.logits.stride, vocab});
  }
  context.await(
      {take_samples, args.results.data(), static_cast<int64_t>(rows), results.data(), tops.data(), max_top});
}

}  // namespace

void sample(Context& context, const SampleArgs& args) {
  // As many rows at once as staging takes, and room for what they give.
  size_t begin = 0;
  while (begin < args.rows.size()) {
    size_t end = begin;
    int64_t bytes = 0, most = 0;  // most: results of a row
    do {
      const SampleRow& row = args.rows[end++];
      bytes += staged_bytes(row);
      most = std::max(most, result_bytes(row, args.logits.cols));
      if (end == args.rows.size()) break;
      most = std::max(most, result_bytes(args.rows[end], args.logits.cols));
    } while (bytes + staged_bytes(args.rows[end]) <= context.staging_bytes() / 4 &&
             static_cast<int64_t>(end - begin + 1) * most <= context.result_bytes() / 2);
    if (begin > 0) context.begin_op();
    const size_t count = end - begin;
    const auto first = static_cast<int64_t>(begin);
    sample_rows(context,
                {.logits = args.logits.row_range(first, static_cast<int64_t>(count)),
                 .rows = args.rows.subspan(begin, count),
                 .results = args.results.subspan(begin, count),
                 .drawn = args.drawn ? args.drawn.col_range(first, static_cast<int64_t>(count)) : Tensor{}});
    begin = end;
  }
}

}  // namespace restkv::cuda

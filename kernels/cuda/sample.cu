// One token for each row of logits [B, V]: bias, allowed, banned -> penalties -> temperature -> min-p -> top-k -> top-p -> draw
// (temperature_last: top-k -> top-p -> min-p -> temperature -> draw), with the CPU's order, ties and generator (kernels/cpu/sampler.cpp).
// A block of 1024 threads owns a row; its passes over V (row_pass.h) are bound by the L2: one for greedy, at most six for
// top-p. Tokens are ordered by weight = exp((logit - max) / temperature) in (0, 1] and id, and cut in that order (sample_cut.h).
// Sums of weights are integers, units of 2^-40, so a draw depends on nothing but its row.
// Shared memory 9 KiB.
// Occupancy: sample_kernel 1024 x 1.
#include <algorithm>
#include <vector>

#include "kernels/base/philox.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/sample_cut.h"

namespace restkv::cuda {
namespace {

constexpr uint32_t kThreads = kSampleThreads;
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
  float* logits;            // [B, V], overwritten
  float* original;          // [B, V] logits before penalties
  const DeviceRow* rows;    // [B]
  const int32_t* num_rows;  // B; rows behind them are nobody's
  int32_t* drawn;           // [B] or null
  int64_t stride;
  int32_t vocab;
  int32_t first_row;  // of this launch
};

static_assert(fits_multiprocessor(sizeof(CutShared), 1));

__device__ __forceinline__ PassGroup whole_block() { return {threadIdx.x, kThreads}; }
__device__ __forceinline__ const uint32_t* bits_of(const float* row) {
  return reinterpret_cast<const uint32_t*>(row);
}
__device__ __forceinline__ uint32_t* bits_of(float* row) { return reinterpret_cast<uint32_t*>(row); }

// Keys rise with (logit, then lower id). None is 0; -0 counts as 0.
__device__ __forceinline__ uint64_t key_of(float logit, uint32_t token) {
  const uint32_t bits = f32_to_bits(logit + 0.0f);
  const uint32_t ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return uint64_t{ordered} << 32 | (0xFFFFFFFFu - token);
}
__device__ __forceinline__ uint32_t token_of(uint64_t key) {
  return 0xFFFFFFFFu - static_cast<uint32_t>(key);
}
__device__ __forceinline__ float logit_of(uint64_t key) {
  const auto ordered = static_cast<uint32_t>(key >> 32);
  return bits_to_f32((ordered & 0x80000000u) != 0 ? ordered & 0x7FFFFFFFu : ~ordered);
}

// The largest logit, the lowest id among equals; NaN if any is NaN.
struct Best {
  float logit;
  uint32_t token;
  __device__ __forceinline__ bool is_finite() const { return logit < kInfinity && logit > -kInfinity; }
};
__device__ __forceinline__ Best row_best(const float* logits, uint32_t vocab, CutShared& shared) {
  Best best{-kInfinity, kNoToken};
  bool has_nan = false;
  visit_row(bits_of(logits), vocab, whole_block(), [&](uint32_t i, uint32_t bits) {
    const float x = bits_to_f32(bits);
    has_nan |= x != x;
    if (x > best.logit) best = {x, i};  // ids rise
  });
  const uint64_t key =
      block_reduce(has_nan ? ~uint64_t{0} : key_of(best.logit, best.token), Max{}, shared.sums);
  if (key == ~uint64_t{0}) return {bits_to_f32(0x7FC00000u), kNoToken};
  return {logit_of(key), token_of(key)};
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

__device__ __forceinline__ void penalise(float* logits, uint32_t vocab, const DeviceRow& row) {
  // Copies: a store to the row might be one to `row`, as far as the compiler knows.
  const float repetition = row.repetition, frequency = row.frequency, presence = row.presence;
  const uint64_t* prompt_tokens = row.prompt_tokens;
  const uint16_t* counts = row.counts;
  map_row(bits_of(logits), bits_of(logits), vocab, whole_block(), [&](uint32_t i, uint32_t bits) {
    const bool in_prompt = prompt_tokens != nullptr && (prompt_tokens[i / 64] >> (i % 64) & 1u) != 0;
    const auto count = static_cast<float>(counts != nullptr ? counts[i] : 0);
    float x = bits_to_f32(bits);
    if (repetition != 1.0f && (in_prompt || count > 0.0f)) x = x > 0.0f ? x / repetition : x * repetition;
    if (count > 0.0f) x -= frequency * count + presence;
    return f32_to_bits(x);
  });
  sync_threads();
}

// Log probabilities of the chosen token and of the best, from the logits before penalties.
__device__ __forceinline__ void fill_logprobs(const float* logits, uint32_t vocab, float max, uint32_t token,
                                              const DeviceRow& row, CutShared& shared, DeviceResult& result) {
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
  sum = block_reduce(sum, Sum{}, shared.sums);
  const double lse = static_cast<double>(max) + log(static_cast<double>(sum) * 0x1p-40);
  result.logprob = static_cast<float>(static_cast<double>(chosen) - lse);
  result.rank = static_cast<int32_t>(block_reduce(uint64_t{rank}, Sum{}, shared.sums));
  int32_t held = 0;
  for (; held < row.num_logprobs; ++held) {
    const uint64_t best = block_reduce(own, Max{}, shared.sums);
    if (best == 0) break;
    if (threadIdx.x == 0)
      row.top[held] = {static_cast<int32_t>(token_of(best)),
                       static_cast<float>(static_cast<double>(logits[token_of(best)]) - lse)};
    // The thread that had it needs another: its warp looks through that thread's ids.
    const uint32_t had_it = ballot(own == best);
    if (had_it == 0) continue;
    const uint32_t lane = 31 - leading_zeros(had_it);
    uint64_t next = 0;
    visit_quads_of(values, vocab, {warp_idx() * kWarpSize + lane, kThreads}, [&](uint32_t i, uint32_t bits) {
      const float x = bits_to_f32(bits);
      const uint64_t key = key_of(x, i);
      if (x != -kInfinity && key < best && key > next) next = key;
    });
    next = warp_reduce(next, Max{});
    if (lane_idx() == lane) own = next;
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

// A token of the weights exp((logit - max) / temperature), which overwrite the logits.
__device__ __forceinline__ uint32_t draw(uint32_t* weights, uint32_t vocab, float max, const DeviceRow& row,
                                         CutShared& shared) {
  const bool is_last = row.temperature_last != 0;
  const float temperature = is_last ? 1.0f : row.temperature;
  const bool has_top_k = row.top_k > 0 && static_cast<uint32_t>(row.top_k) < vocab;
  const bool has_top_p = row.top_p < 1.0f;
  Bound bound{1, kNoToken};  // a weight of 0 never takes part
  const uint32_t least = row.min_p > 0.0f ? f32_to_bits(row.min_p < 1.0f ? row.min_p : 1.0f) : uint32_t{0};
  if (!is_last && least > bound.weight) bound.weight = least;
  // What the first cut will cut, tokens or units, is added up by first digit on the way.
  const bool has_cut = has_top_k || has_top_p;
  uint64_t total = 0;
  clear_bins(shared);
  BinSums bins(shared);
  map_row(weights, weights, vocab, whole_block(), [&](uint32_t, uint32_t bits) {
    float x = bits_to_f32(bits) - max;
    if (temperature != 1.0f) x = x / temperature;
    const uint32_t weight = f32_to_bits(expf(x));
    if (has_cut && weight >= bound.weight)
      bins.add(first_digit(weight), has_top_k ? uint64_t{1} : units(weight));
    return weight;
  });
  bins.flush();
  sync_threads();  // the weights and bins are there
  if (has_cut) total = block_reduce(bin_sum(threadIdx.x, shared), Sum{}, shared.sums);
  const auto kept = [&](uint32_t i, uint32_t weight) {
    return is_kept(weight, i, bound) ? units(weight) : uint64_t{0};
  };
  if (has_top_k) {
    if (static_cast<uint64_t>(row.top_k) < total)
      bound =
          find_cut(weights, vocab, bound, Measure::kTokens, static_cast<uint64_t>(row.top_k), true, shared);
    if (has_top_p) total = sum_parts(weights, vocab, shared, kept);
  }
  if (has_top_p) {
    const double share = row.top_p > 0.0f ? static_cast<double>(row.top_p) : 0.0;
    const auto mass = static_cast<uint64_t>(share * static_cast<double>(total));
    bound = find_cut(weights, vocab, bound, Measure::kMass, mass > 0 ? mass : 1, !has_top_k, shared);
  }
  if (is_last) {
    if (least > bound.weight) bound = {least, kNoToken};
    const float last_temperature = row.temperature;
    map_row(weights, weights, vocab, whole_block(), [&](uint32_t i, uint32_t weight) {
      return is_kept(weight, i, bound) ? f32_to_bits(expf(logf(bits_to_f32(weight)) / last_temperature))
                                       : uint32_t{0};
    });
    sync_threads();
    bound = {1, kNoToken};
  }
  total = sum_parts(weights, vocab, shared, kept);  // not 0: that of the largest logit is 2^40
  const auto target = static_cast<uint64_t>(row.uniform * static_cast<double>(total));
  return find_id(weights, vocab, target < total ? target : total - 1, shared, kept);
}

__global__ void __launch_bounds__(kThreads, 1) sample_kernel(const __grid_constant__ SampleParams p) {
  wait_for_previous();
  auto& shared = *shared_memory<CutShared>();
  if (p.first_row + static_cast<int32_t>(blockIdx.x) >= *p.num_rows) return;
  const DeviceRow& row = p.rows[blockIdx.x];
  float* logits = p.logits + blockIdx.x * p.stride;
  float* original = p.original + int64_t{blockIdx.x} * p.vocab;
  const auto vocab = static_cast<uint32_t>(p.vocab);
  Best best = row_best(logits, vocab, shared);
  const bool has_nan = best.logit != best.logit;  // also where a mask would hide it
  if (!has_nan && (row.num_biases > 0 || row.num_allowed > 0 || row.num_banned > 0)) {
    apply_masks(logits, original, p.vocab, row);
    best = row_best(logits, vocab, shared);
  }
  const float plain_max = best.logit;
  const bool has_logprobs = row.num_logprobs >= 0;
  const bool is_drawn = row.forced < 0 && row.temperature > 0.0f;
  const float* before_penalties = logits;
  if (has_logprobs && (row.has_penalties != 0 || is_drawn)) {
    map_row(bits_of(logits), bits_of(original), vocab, whole_block(),
            [](uint32_t, uint32_t bits) { return bits; });
    before_penalties = original;
    sync_threads();
  }
  bool is_finite = best.is_finite();
  if (is_finite && row.has_penalties != 0) {
    penalise(logits, vocab, row);
    best = row_best(logits, vocab, shared);
    is_finite = best.is_finite();
  }
  if (!is_finite) return give(p, row, {-1, 1, 0, 0, 0.0f});
  uint32_t token = best.token;
  if (row.forced >= 0) token = static_cast<uint32_t>(row.forced);
  if (is_drawn) token = draw(bits_of(logits), vocab, best.logit, row, shared);
  DeviceResult result{static_cast<int32_t>(token), 0, 0, 0, 0.0f};
  if (has_logprobs) fill_logprobs(before_penalties, vocab, plain_max, token, row, shared, result);
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
  const size_t rows = args.rows.size();
  const auto vocab = static_cast<int32_t>(args.logits.cols);
  int32_t max_top = 0;
  for (const SampleRow& row : args.rows)
    max_top = std::max(max_top, std::min(row.params->num_logprobs, vocab));
  const size_t num_top = rows * static_cast<size_t>(max_top);
  // In one piece: making room for a second one would give away the place of the first, which is not awaited yet.
  auto* const tops = reinterpret_cast<DeviceTop*>(
      context.host_results<std::byte>(num_top * sizeof(DeviceTop) + rows * sizeof(DeviceResult)).data());
  auto* const results = reinterpret_cast<DeviceResult*>(tops + num_top);
  const Staged<DeviceRow> staged = context.stage<DeviceRow>(static_cast<size_t>(args.logits.rows));
  const auto num_rows = static_cast<int32_t>(rows);
  const int32_t* num_rows_there = context.upload(&num_rows, 1);
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
                      results + i,
                      tops + i * static_cast<size_t>(max_top),
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
    launch(sample_kernel, {.x = static_cast<uint32_t>(count)}, kThreads, sizeof(CutShared), context.ready(),
           SampleParams{args.logits.f32(begin), original, staged.device + begin, num_rows_there,
                        args.drawn ? static_cast<int32_t*>(args.drawn.data) + begin : nullptr,
                        args.logits.stride, vocab, static_cast<int32_t>(begin)});
  }
  context.await({take_samples, args.results.data(), static_cast<int64_t>(rows), results, tops, max_top});
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
    // Behind the last ones stand those that are nobody's.
    const int64_t num_logits =
        end == args.rows.size() ? args.logits.rows - first : static_cast<int64_t>(count);
    sample_rows(context,
                {.logits = args.logits.row_range(first, num_logits),
                 .rows = args.rows.subspan(begin, count),
                 .results = args.results.subspan(begin, count),
                 .drawn = args.drawn ? args.drawn.col_range(first, static_cast<int64_t>(count)) : Tensor{}});
    begin = end;
  }
}

}  // namespace restkv::cuda

// One token for each row of logits [B, V]: bias, allowed, banned -> penalties -> temperature -> min-p -> top-k -> top-p -> draw
// (temperature_last: top-k -> top-p -> min-p -> temperature -> draw), with the CPU's order, ties and generator (kernels/cpu/sampler.cpp).
// Tokens are ordered by weight = exp((logit - max) / temperature) in (0, 1] and id, and cut in that order (sample_cut.h). Sums
// of weights are integers, units of 2^-40, so a draw depends on nothing but its row, and not on how that is cut.
// Grid: (row, share of it): blocks of 1024 threads, as many as the card runs at once. The last block of a row to arrive goes on alone:
//   sample_best      masks, penalties; largest logit, NaN       last: what is not drawn is done
//   sample_weigh     units or tokens by weight's bin; lists     last: the bin of the cut. Where nothing is cut, or all that may
//                    what weighs 2^-12 and more                 stay is in the list, the token
//   sample_draw      of the other rows: units of what is above  last: the rest of the cut among those, the token
//                    the bin; lists what is in it
//   sample_logprobs  one block a row
// A launch that no row needs is left out: one for greedy, three for top-p. Each is one pass over V, bound by the L2 where blocks are
// many and by arithmetic where they are few (best 14 instructions a logit, weigh some 70, draw some 80). A model's logits are
// peaked, so that sample_draw has nothing to do as a rule. The block that goes on alone sees listed tokens only, hundreds or some
// thousands of 128k; all of the row if they are more than the list takes. Shared memory 9 KiB.
// Occupancy: sample_best_kernel 1024 x 1, sample_weigh_kernel 1024 x 1, sample_draw_kernel 1024 x 1, sample_logprobs_kernel 1024 x 1.
#include <algorithm>
#include <vector>

#include "kernels/base/philox.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/sample_cut.h"
#include "kernels/cuda/sample_logits.h"
#include "kernels/cuda/sample_row.h"

namespace restkv::cuda {
namespace {

constexpr uint32_t kThreads = kSampleThreads;
constexpr uint32_t kMinShare = 4096;                    // tokens of a block: one load of a thread
constexpr uint32_t kMostBlocks = kBins / kSampleWarps;  // of a row, so that there is a bin for each part

// What the launches of a row hand on.
struct RowState {
  uint64_t wanted;  // tokens or units, from the bin of the cut on; 0: the first cut cuts nothing
  float max;        // of what is drawn from; NaN: the token is there, or soon is
  float plain_max;  // before penalties
  uint32_t first, certain, num_listed;  // Undecided
  int32_t token;                        // -1: a NaN, or no finite logit
};
struct RowKeys {
  uint64_t plain, best;  // before and after penalties
};

struct SampleParams {
  float* logits;            // [B, V], masks and penalties are written there
  float* original;          // [B, V] logits before penalties
  const DeviceRow* rows;    // [B]
  const int32_t* num_rows;  // B; rows behind them are nobody's
  int32_t* drawn;           // [B] or null
  RowState* states;         // [B]
  RowKeys* keys;            // [B, blocks]
  uint64_t* sums;           // [B, kBins] of weights' bins, then of parts
  uint64_t* listed;         // [B, num_listed] weight << 32 | id
  uint32_t* arrived;        // [B] blocks that are done; 0 between launches
  int64_t stride;
  int64_t num_listed;  // min(V, kMostListed)
  int32_t vocab;
  int32_t first_row;  // of this launch
};

static_assert(fits_multiprocessor(sizeof(SampleShared), 1));

__device__ __forceinline__ bool is_nobodys(const SampleParams& p) {
  return p.first_row + static_cast<int32_t>(blockIdx.x) >= *p.num_rows;
}
__device__ __forceinline__ Weights weights_of(const SampleParams& p, const Draw& draw, float max) {
  return {bits_of(p.logits + blockIdx.x * p.stride), max, draw.is_last ? 1.0f : draw.temperature};
}
__device__ __forceinline__ uint64_t* sums_of(const SampleParams& p) {
  return p.sums + int64_t{blockIdx.x} * kBins;
}
__device__ __forceinline__ uint32_t own_part_idx() { return blockIdx.y * kSampleWarps + warp_idx(); }

// Whether this is the block of the row that has the writes of all others before it.
__device__ __forceinline__ bool is_last_block(const SampleParams& p, SampleShared& shared) {
  thread_fence();  // what this block wrote is there for every block that sees the count
  sync_threads();
  if (threadIdx.x == 0) {
    uint32_t* arrived = p.arrived + blockIdx.x;
    shared.found = atomic_add(arrived, 1u) == gridDim.y - 1u ? 1u : 0u;
    if (shared.found != 0) *arrived = 0;  // for the next launch
  }
  sync_threads();
  if (shared.found == 0) return false;
  thread_fence();
  return true;
}

// Once for each row: the host's memory is far away. Results with log probabilities are given with those.
__device__ __forceinline__ void give(const SampleParams& p, const DeviceRow& row, int32_t token) {
  if (threadIdx.x != 0) return;
  p.states[blockIdx.x].token = token;
  if (p.drawn != nullptr) p.drawn[blockIdx.x] = token < 0 ? 0 : token;
  if (token < 0 || !row.has_logprobs()) *row.result = {token, token < 0 ? 1 : 0, 0, 0, 0.0f};
}

__global__ void __launch_bounds__(kThreads, 1) sample_best_kernel(const __grid_constant__ SampleParams p) {
  wait_for_previous();
  auto& shared = *shared_memory<SampleShared>();
  if (is_nobodys(p)) return;
  const DeviceRow& row = p.rows[blockIdx.x];
  float* logits = p.logits + blockIdx.x * p.stride;
  const auto vocab = static_cast<uint32_t>(p.vocab);
  const Share share = share_of(vocab, blockIdx.y, kSampleWarps * part_size(vocab, gridDim.y));
  uint64_t plain = best_of(logits, share);
  float* original = p.original + int64_t{blockIdx.x} * p.vocab;
  if (row.has_masks()) {
    apply_masks(logits, original, share, row);
    const uint64_t masked = best_of(logits, share);
    plain = plain == kNanKey ? plain : masked;  // also where a mask hides it
  }
  // From here on a thread reads what it read or wrote itself.
  if (row.is_copied())
    map_row(bits_of(logits) + share.begin, bits_of(original) + share.begin, share.size, whole_block(),
            [](uint32_t, uint32_t bits) { return bits; });
  RowKeys* keys = p.keys + blockIdx.x * gridDim.y;
  plain = reduce_all(plain, Max{}, shared.sums);
  if (threadIdx.x == 0) keys[blockIdx.y] = {plain, plain};
  if (row.has_penalties != 0) {
    penalise(logits, share, row);
    const uint64_t best = reduce_all(best_of(logits, share), Max{}, shared.sums);
    if (threadIdx.x == 0) keys[blockIdx.y].best = best;
  }
  if (row.is_drawn() && blockIdx.y == 0) sums_of(p)[threadIdx.x] = 0;
  if (!is_last_block(p, shared)) return;

  const RowKeys other = lane_idx() < gridDim.y ? keys[lane_idx()] : RowKeys{0, 0};
  static_assert(kMostBlocks <= kWarpSize, "a lane for each block");
  plain = warp_reduce(other.plain, Max{});
  const uint64_t best = warp_reduce(other.best, Max{});
  const bool has_token = is_finite(logit_of(plain)) && is_finite(logit_of(best));
  const bool is_drawn = has_token && row.is_drawn();
  if (threadIdx.x == 0) {
    RowState& state = p.states[blockIdx.x];
    state.max = is_drawn ? logit_of(best) : bits_to_f32(0x7FC00000u);
    state.plain_max = logit_of(plain);
    state.num_listed = 0;
  }
  if (is_drawn) return;
  give(p, row, !has_token ? -1 : row.forced >= 0 ? row.forced : static_cast<int32_t>(token_of(best)));
}

// The cut and the token of a row, by one block: all that may stay is among `undecided`, or in the sums of parts of `part` ids, of
// which each thread has that of its own part: `certain`. wanted: as RowState says.
template <class Tokens>
__device__ __forceinline__ uint32_t draw_token(const DeviceRow& row, const Draw& draw, Tokens undecided,
                                               uint64_t wanted, uint32_t part, uint64_t certain,
                                               SampleShared& shared) {
  Bound bound{draw.least_cut, kNoToken};
  bool is_bin_known = undecided.first > 0;
  Measure measure = draw.has_top_k ? Measure::kTokens : Measure::kMass;
  const uint32_t num_cuts = draw.has_top_k && draw.has_top_p ? 2 : 1;
#pragma unroll 1  // a cut is much code
  for (uint32_t cut = 0; cut < num_cuts; ++cut) {
    if (cut > 0) {  // of what top-k keeps: the bin, then the token in it
      clear_bins(shared);
      BinSums bins(shared);
      undecided.each([&](uint32_t i, uint32_t weight) {
        if (is_kept(weight, i, bound)) bins.add(weight_bin(weight), units(weight));
      });
      bins.flush();
      sync_threads();
      wanted = top_p_units(row, reduce_all(bin_sum(threadIdx.x, shared), Sum{}, shared.sums));
      find_bin(wanted, true, shared);
      undecided.first = shared.found;
      is_bin_known = shared.found > 0;
      if (is_bin_known) wanted -= shared.before;
      measure = Measure::kMass;
    }
    if (wanted > 0) bound = find_cut(undecided, bound, measure, wanted, is_bin_known, shared);
  }
  const auto kept_units = [&](uint32_t i, uint32_t weight) {
    return is_kept(weight, i, bound) ? draw.units_of(weight) : uint64_t{0};
  };
  clear_bins(shared);
  BinSums bins(shared);
  undecided.each([&](uint32_t i, uint32_t weight) { bins.add(i / part, kept_units(i, weight)); });
  bins.flush();
  sync_threads();
  set_own_bin(bin_sum(threadIdx.x, shared) + certain, shared);
  return find_id(undecided.weights, undecided.vocab, part, row.uniform, shared, kept_units);
}

__global__ void __launch_bounds__(kThreads, 1) sample_weigh_kernel(const __grid_constant__ SampleParams p) {
  wait_for_previous();
  auto& shared = *shared_memory<SampleShared>();
  if (is_nobodys(p)) return;
  RowState& state = p.states[blockIdx.x];
  const float largest = state.max;
  if (largest != largest) return;
  const DeviceRow& row = p.rows[blockIdx.x];
  const auto vocab = static_cast<uint32_t>(p.vocab);
  const Draw draw(row, p.vocab);
  const bool has_cut = draw.has_cut();
  const Weights weights = weights_of(p, draw, largest);
  uint64_t* sums = sums_of(p);
  uint64_t* listed = p.listed + blockIdx.x * p.num_listed;
  const uint32_t part = part_size(vocab, gridDim.y);
  const Share own = share_of(vocab, own_part_idx(), part);
  // What the first cut will cut, tokens or units, is added up by bins of weights; without one what is drawn from.
  uint64_t sum = 0;
  clear_bins(shared);
  BinSums bins(shared);
  if (!has_cut) {
    visit_row<2>(weights.logits + own.begin, own.size, own_warp(),
                 [&](uint32_t, uint32_t logit) { sum += draw.units_of(weights.of(logit)); });
  } else {
    const uint32_t least_listed = max(draw.least_cut, kLeastListed);
    visit_in_step(
        weights.logits + own.begin, own.size, f32_to_bits(-kInfinity),
        [&](uint32_t logit) {
          const uint32_t weight = weights.of(logit);
          if (weight >= draw.least_cut)
            bins.add(weight_bin(weight), draw.has_top_k ? uint64_t{1} : units(weight));
          return weight >= least_listed;
        },
        [&](uint32_t all) { return atomic_add(&state.num_listed, all); },
        [&](uint32_t place, uint32_t i, uint32_t logit) {
          if (place < p.num_listed) listed[place] = uint64_t{weights.of(logit)} << 32 | (own.begin + i);
        });
  }
  if (has_cut) {
    bins.flush();
    sync_threads();
    const uint64_t of_bin = bin_sum(threadIdx.x, shared);
    if (of_bin != 0) atomic_add(sums + threadIdx.x, of_bin);
  } else {
    sum = warp_reduce(sum, Sum{});
    if (lane_idx() == 0) sums[own_part_idx()] = sum;
  }
  if (!is_last_block(p, shared)) return;

  set_own_bin(sums[threadIdx.x], shared);
  if (!has_cut) {
    const uint32_t token = find_id(weights, vocab, part, row.uniform, shared,
                                   [&](uint32_t, uint32_t weight) { return draw.units_of(weight); });
    return give(p, row, static_cast<int32_t>(token));
  }
  const uint64_t total = reduce_all(bin_sum(threadIdx.x, shared), Sum{}, shared.sums);
  const bool has_both = draw.has_top_k && draw.has_top_p;
  uint64_t wanted = draw.has_top_k ? static_cast<uint64_t>(row.top_k) : top_p_units(row, total);
  uint32_t first = 0, certain = 0;  // top-k of fewer tokens than that: all are certain
  if (draw.has_top_k && wanted >= total) {
    wanted = 0;
  } else {
    find_bin(wanted, true, shared);
    first = shared.found;
    certain = first + 1;
    if (first > 0 || !has_both) wanted -= shared.before;
  }
  if (has_both) certain = kBins;  // what top-p keeps of those that top-k keeps is known when they all are
  const uint32_t num_listed = state.num_listed,
                 least = max(draw.least_cut, first > 0 ? least_of_bin(first) : 0);
  const bool is_all_listed = num_listed <= kMostListed && least >= kLeastListed;
  sync_threads();  // all have read it
  if (threadIdx.x == 0) {
    state.wanted = wanted;
    state.first = first;
    state.certain = certain;
    state.num_listed = 0;
    if (is_all_listed) state.max = bits_to_f32(0x7FC00000u);
  }
  if (!is_all_listed) return;
  const Undecided<true> undecided{listed, weights, num_listed, vocab, first, kBins, draw.least_cut};
  const uint32_t token = draw_token(row, draw, undecided, wanted, part_size(vocab, kMostBlocks), 0, shared);
  give(p, row, static_cast<int32_t>(token));
}

__global__ void __launch_bounds__(kThreads, 1) sample_draw_kernel(const __grid_constant__ SampleParams p) {
  wait_for_previous();
  auto& shared = *shared_memory<SampleShared>();
  if (is_nobodys(p)) return;
  RowState& state = p.states[blockIdx.x];
  if (state.max != state.max) return;
  const DeviceRow& row = p.rows[blockIdx.x];
  const auto vocab = static_cast<uint32_t>(p.vocab);
  const Draw draw(row, p.vocab);
  if (!draw.has_cut()) return;
  const Weights weights = weights_of(p, draw, state.max);
  uint64_t* sums = sums_of(p);
  uint64_t* listed = p.listed + blockIdx.x * p.num_listed;
  const uint32_t part = part_size(vocab, gridDim.y);
  const Share own = share_of(vocab, own_part_idx(), part);
  Undecided<false> undecided{listed, weights, 0, vocab, state.first, state.certain, draw.least_cut};

  uint64_t sum = 0;
  visit_in_step(
      weights.logits + own.begin, own.size, f32_to_bits(-kInfinity),
      [&](uint32_t logit) {
        const uint32_t weight = weights.of(logit);
        if (weight_bin(weight) >= undecided.certain) sum += draw.units_of(weight);
        return undecided.has(weight);
      },
      [&](uint32_t all) { return atomic_add(&state.num_listed, all); },
      [&](uint32_t place, uint32_t i, uint32_t logit) {
        if (place < p.num_listed) listed[place] = uint64_t{weights.of(logit)} << 32 | (own.begin + i);
      });
  sum = warp_reduce(sum, Sum{});
  if (lane_idx() == 0) sums[own_part_idx()] = sum;
  if (!is_last_block(p, shared)) return;

  undecided.num_listed = state.num_listed;
  // Behind the parts of this cut stand sums of bins.
  const uint64_t certain = threadIdx.x < gridDim.y * kSampleWarps ? sums[threadIdx.x] : 0;
  const uint32_t token = draw_token(row, draw, undecided, state.wanted, part, certain, shared);
  give(p, row, static_cast<int32_t>(token));
}

__global__ void __launch_bounds__(kThreads, 1)
    sample_logprobs_kernel(const __grid_constant__ SampleParams p) {
  wait_for_previous();
  auto& shared = *shared_memory<SampleShared>();
  if (is_nobodys(p)) return;
  const DeviceRow& row = p.rows[blockIdx.x];
  const RowState& state = p.states[blockIdx.x];
  if (state.token < 0 || !row.has_logprobs()) return;
  const float* before_penalties =
      row.is_copied() ? p.original + int64_t{blockIdx.x} * p.vocab : p.logits + blockIdx.x * p.stride;
  DeviceResult result{state.token, 0, 0, 0, 0.0f};
  fill_logprobs(before_penalties, static_cast<uint32_t>(p.vocab), state.plain_max,
                static_cast<uint32_t>(state.token), row, shared, result);
  if (threadIdx.x == 0) *row.result = result;
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
  bool is_any_drawn = false, is_any_cut = false, has_logprobs = false;
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
    const DeviceRow& given = staged.host[i];
    is_any_drawn |= given.is_drawn();
    is_any_cut |= given.is_drawn() && given.has_cut(vocab);
    has_logprobs |= given.has_logprobs();
  }
  // As many rows at once as there is room for what is kept of them.
  const int64_t num_listed = std::min<int64_t>(vocab, kMostListed);
  const int64_t row_bytes =
      int64_t{vocab} * 4 + num_listed * 8 +
      static_cast<int64_t>(kBins * 8 + kMostBlocks * sizeof(RowKeys) + sizeof(RowState));
  const int64_t room = std::min((context.workspace_left() - 5 * 256) / row_bytes, Context::kNumCounters);
  const int64_t batch = std::min<int64_t>(room, args.logits.rows);
  CHECK(batch > 0) << "no workspace for one row of " << vocab << " logits";
  SampleParams params{.logits = nullptr,
                      .original = context.workspace<float>(batch * vocab),
                      .rows = nullptr,
                      .num_rows = num_rows_there,
                      .drawn = nullptr,
                      .states = context.workspace<RowState>(batch),
                      .keys = context.workspace<RowKeys>(batch * kMostBlocks),
                      .sums = context.workspace<uint64_t>(batch * kBins),
                      .listed = context.workspace<uint64_t>(batch * num_listed),
                      .arrived = context.counters(),
                      .stride = args.logits.stride,
                      .num_listed = num_listed,
                      .vocab = vocab,
                      .first_row = 0};
  for (int64_t begin = 0; begin < args.logits.rows; begin += batch) {
    const int64_t count = std::min(batch, args.logits.rows - begin);
    params.logits = args.logits.f32(begin);
    params.rows = staged.device + begin;
    params.drawn = args.drawn ? static_cast<int32_t*>(args.drawn.data) + begin : nullptr;
    params.first_row = static_cast<int32_t>(begin);
    const int64_t blocks = std::clamp<int64_t>(
        std::min<int64_t>(context.limits().num_multiprocessors / count, vocab / kMinShare), 1, kMostBlocks);
    const auto run = [&](auto kernel, int64_t blocks_of_row) {
      launch(kernel, {.x = static_cast<uint32_t>(count), .y = static_cast<uint32_t>(blocks_of_row)}, kThreads,
             sizeof(SampleShared), context.ready(), params);
    };
    run(sample_best_kernel, blocks);
    if (is_any_drawn) run(sample_weigh_kernel, blocks);
    if (is_any_cut) run(sample_draw_kernel, blocks);
    if (has_logprobs) run(sample_logprobs_kernel, 1);
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

// Batches to ops. A step runs all its rows layer by layer; a unit runs one layer over some rows of a long
// prompt.
#include "engine/executor.h"

#include <algorithm>
#include <numeric>

#include "engine/model/weight_placement.h"
#include "kernels/base/device_error.h"

namespace restkv {
namespace {

template <class Visit>
void for_group(Sequence& leader, Visit visit) {
  visit(leader);
  for (Sequence* follower : leader.followers) visit(*follower);
}

// The ops of a step as one for the backend. Prompts and their cuts are never the same twice and go one by one.
class StepScope {
 public:
  StepScope(Backend& backend, bool is_on) : backend_(backend), is_on_(is_on) {
    if (is_on_) backend_.begin_step();
  }
  ~StepScope() {
    if (is_on_) backend_.drop_step();
  }
  StepScope(const StepScope&) = delete;
  StepScope& operator=(const StepScope&) = delete;
  void finish() {
    if (is_on_) backend_.end_step();
    is_on_ = false;
  }

 private:
  Backend& backend_;
  bool is_on_;
};

template <class Work>
void timed(double& seconds, Work work) {
  const Clock::time_point start = Clock::now();
  work();
  seconds += seconds_between(start, Clock::now());
}

// Last queries of the prompt that the group needs: the most that one of it does.
int64_t group_tail_queries(Sequence& leader) {
  int64_t rows = 0;
  for_group(leader, [&](const Sequence& s) { rows = std::max(rows, Evictor::tail_queries(s)); });
  return rows;
}

bool group_sums_queries(const Evictor& evictor, Sequence& leader, int64_t layer) {
  bool any = false;
  for_group(leader, [&](const Sequence& s) { any = any || evictor.sums_queries(s, layer); });
  return any;
}

WeightViews placed_weights(const Model& model, Backend& backend, DeviceBuffer* memory) {
  Arena arena(memory != nullptr ? memory->data() : nullptr, memory != nullptr ? memory->bytes() : 0);
  return place_weights(model.weights, backend, arena);
}

}  // namespace

Executor::Executor(const Model& model, Backend& backend, const EngineOptions& options, const MemoryPlan& plan)
    : model_(model),
      backend_(backend),
      weights_memory_(plan.weights_copy > 0 ? backend.allocate_for("the weights", plan.weights_copy)
                                            : nullptr),
      weights_(placed_weights(model, backend, weights_memory_.get())),
      allocation_(options.allocation),
      cache_(backend, cache_shape(model.config, options.cache_dtype), plan.pages),
      workspace_memory_(backend.allocate_for("the work space", plan.workspace)),
      workspace_(workspace_memory_->data(), plan.workspace),
      transformer_(model.config, weights_, backend, workspace_, options.max_num_batched_tokens,
                   logit_rows(options)),
      buffers_(StepBuffers::make(workspace_, model.config, options, backend.activation_type(),
                                 plan.max_model_len)),
      evictor_(model, weights_, backend, cache_, buffers_.cuts, plan.max_model_len),
      feed_(transformer_, backend, cache_, evictor_),
      prefixes_(backend, cache_, options.prefix_fraction, options.prefix_max_tokens),
      scratch_memory_(backend.allocate_for("prompts in prefill", plan.scratch)),
      scratch_(ScratchArena::plan_blocks(plan.max_model_len),
               ScratchArena::plans_small_part(plan.max_model_len)) {
  CHECK(workspace_.used() == plan.workspace) << workspace_.used() << " planned " << plan.workspace;
  CHECK(scratch_.total() * kScratchBlockRows *
            scratch_row_bytes(model.config, backend.activation_type(), options.cache_dtype) ==
        plan.scratch);
  sequence_positions_.resize(static_cast<size_t>(plan.max_model_len));
  std::iota(sequence_positions_.begin(), sequence_positions_.end(), 0);
  const auto batch = static_cast<size_t>(logit_rows(options));
  for (StepInFlight& step : steps_) {
    step.samples.resize(batch);
    step.cache.resize(batch);
  }
  banned_.resize(batch);
}

Executor::~Executor() {
  try {
    backend_.synchronize();
  } catch (const DeviceError&) {  // it is not at work any more, or never will be done
    backend_.drop_step();
  }
}

Executor::ScratchRows Executor::scratch_rows(const SequenceMemory& memory) const {
  const ModelConfig& c = model_.config;
  const DType dtype = cache_.view().dtype;
  const int64_t rows = memory.scratch.blocks * kScratchBlockRows;
  Arena arena(scratch_memory_->data() + memory.scratch.begin * kScratchBlockRows *
                                            scratch_row_bytes(c, backend_.activation_type(), dtype),
              rows * scratch_row_bytes(c, backend_.activation_type(), dtype));
  ScratchRows scratch;
  scratch.residual = arena.tensor(backend_.activation_type(), rows, c.hidden_size);
  scratch.k = arena.tensor(dtype, rows, c.num_kv_heads * c.head_dim);
  scratch.v = arena.tensor(dtype, rows, c.num_kv_heads * c.head_dim);
  return scratch;
}

CacheCounters Executor::cache_counters(const Sequence& sequence) const { return evictor_.counters(sequence); }

void Executor::cut_layer(Sequence& leader, int64_t layer, ConstTensor k, ConstTensor v, ConstTensor tail,
                         Tensor sums) {
  const RowSource rows = {.pages = prefixes_.tables(leader.memory->prefix, layer),
                          .k = k,
                          .v = v,
                          .first_position = leader.first_row};
  prefixes_.store_layer(leader, leader.memory->prefix, layer, k, v, sequence_positions_);
  for_group(leader, [&](Sequence& sequence) {
    CHECK(sequence.prefill_len == leader.prefill_len)
        << "a group of prompts with " << leader.prefill_len << " and " << sequence.prefill_len << " tokens";
    CHECK(sequence.probe_len == 0 || sequence.memory->probe == leader.memory->probe)
        << "a group has its leader's probe or none";
    ConstTensor own_tail = tail;
    own_tail.rows = Evictor::tail_queries(sequence) + leader.probe_len;
    own_tail.data = tail.row(tail.rows - own_tail.rows);
    timed(eviction_seconds_.prefill, [&] {
      evictor_.finish_layer(sequence, layer, rows, own_tail,
                            evictor_.sums_queries(sequence, layer) ? sums : Tensor{});
    });
  });
}

void Executor::finish_prompt_layer(Sequence& sequence, int64_t layer, int64_t row, ConstTensor k,
                                   ConstTensor v) {
  const int64_t num_rows = k.rows;  // without the probe's
  const int64_t tail_rows = group_tail_queries(sequence);
  Tensor sums;
  if (group_sums_queries(evictor_, sequence, layer)) {
    sums = buffers_.sums.back().col_range(0, num_rows);
    backend_.zero(sums);
    timed(eviction_seconds_.prefill,
          [&] { evictor_.add_queries(layer, k, v, transformer_.queries(row, num_rows), 0, sums); });
  }
  cut_layer(sequence, layer, k, v,
            transformer_.queries(row + num_rows - tail_rows, tail_rows + sequence.probe_len), sums);
}

void Executor::finish_prefill(Sequence& leader, int32_t row, StepInFlight& step) {
  for_group(leader, [&](Sequence& sequence) {
    sequence.position = sequence.prefill_len;
    if (&sequence != &leader && !sequence.memory->prompt_logprobs.empty()) {
      CHECK(sequence.request().prompt_logprobs == leader.request().prompt_logprobs)
          << "a prefill group asks for one number of prompt_logprobs";
      sequence.memory->prompt_logprobs = leader.memory->prompt_logprobs;
    }
    if (sequence.position < sequence.prompt_len) return;  // the rest of the prompt comes first
    step.drawing.push_back(&sequence);
    rows_.push_back(row);
  });
}

void Executor::append_prefill_ids(const Sequence& sequence, int64_t begin, int64_t count) {
  const std::vector<int32_t>& probe = sequence.memory->probe;
  for (int64_t i = begin; i < begin + count; ++i) {
    ids_.push_back(i < sequence.prefill_len ? sequence.tokens[static_cast<size_t>(i)]
                                            : probe[static_cast<size_t>(i - sequence.prefill_len)]);
  }
}

Executor::StepInFlight& Executor::open_step() {
  CHECK(num_steps_ < 2) << "two steps are in flight";
  StepInFlight& step = steps_[static_cast<size_t>((first_step_ + num_steps_) % 2)];
  ++num_steps_;
  step.drawing.clear();
  step.cuts.due.clear();
  step.is_whole = false;
  return step;
}

// Its draw needs nothing of the host that the token before decides.
bool Executor::draws_alone(const Sequence& sequence) {
  const Request& request = sequence.request();
  return !request.sampling.has_penalties() && !sequence.memory->trace &&
         std::all_of(request.bad_words.begin(), request.bad_words.end(),
                     [](const std::vector<int32_t>& word) { return word.size() == 1; });
}

bool Executor::can_run_ahead(const StepBatch& batch) const {
  if (!runs_beside() || !batch.prompts.empty() || batch.decodes.empty() || observer_ || draw_observer_)
    return false;
  return std::all_of(batch.decodes.begin(), batch.decodes.end(), [](const StepBatch::Decode& decode) {
    return decode.sequence->phase == SequencePhase::kDecode && draws_alone(*decode.sequence);
  });
}

void Executor::append_in_flight(std::vector<Sequence*>& sequences) const {
  for (int32_t i = 0; i < num_steps_; ++i) {
    for (Sequence* sequence : steps_[static_cast<size_t>((first_step_ + i) % 2)].drawing) {
      if (sequence && std::find(sequences.begin(), sequences.end(), sequence) == sequences.end())
        sequences.push_back(sequence);
    }
  }
}

void Executor::forget_steps() {
  num_steps_ = 0;
  for (StepInFlight& step : steps_) {
    step.drawing.clear();
    step.cuts.due.clear();
  }
  evictor_.forget_prefill();
  backend_.drop_step();
}

// Rows of token 0 at position 0 that nothing is stored or drawn for.
void Executor::fill_up_step() {
  const auto count = static_cast<int64_t>(ids_.size());
  const int64_t room = std::min(transformer_.max_rows(), transformer_.max_logit_rows());
  const auto rows = static_cast<size_t>(std::max(count, std::min(backend_.step_rows(count), room)));
  ids_.resize(rows, 0);
  positions_.resize(rows, 0);
}

void Executor::start_step(const StepBatch& batch) {
  StepInFlight& step = open_step();
  ids_.clear();
  positions_.clear();
  decoding_.clear();
  decode_rows_.clear();
  feed_.clear();
  for (const auto& [sequence, num_rows] : batch.decodes) {
    const auto row = static_cast<int64_t>(ids_.size());
    if (num_rows == 1) {
      decode_rows_.push_back({sequence, row, num_rows});
    } else {
      feed_.add(*sequence, row, num_rows, buffers_.k.row_range(row, num_rows),
                buffers_.v.row_range(row, num_rows));
    }
    decoding_.push_back(sequence);
    const auto known = static_cast<int32_t>(sequence->tokens.size());
    CHECK(sequence->position + num_rows <= known || (num_rows == 1 && sequence->position == known))
        << "rows of tokens that nobody has drawn";
    for (int32_t i = sequence->position; i < sequence->position + num_rows; ++i) {
      ids_.push_back(i < known ? sequence->tokens[static_cast<size_t>(i)] : ~sequence->drawn_row);
      positions_.push_back(i);
    }
  }
  const auto num_decode_rows = static_cast<int64_t>(ids_.size());
  for (const Sequence* sequence : batch.prompts) {
    append_prefill_ids(*sequence, sequence->first_row, sequence->prefill_rows() - sequence->first_row);
    for (int32_t i = sequence->first_row; i < sequence->prefill_rows(); ++i) positions_.push_back(i);
  }
  step.is_whole = batch.prompts.empty() && feed_.empty();
  if (step.is_whole) fill_up_step();
  const auto num_rows = static_cast<int64_t>(ids_.size());
  const Tensor residual = buffers_.residual.row_range(0, num_rows);
  StepScope scope(backend_, step.is_whole);
  transformer_.embed(ids_, buffers_.drawn, residual);
  transformer_.prepare(positions_);

  for (int64_t layer = 0; layer < model_.config.num_layers; ++layer) {
    stores_.clear();
    prefills_.clear();
    decodes_.clear();
    for (const auto& [sequence, row, count] : decode_rows_) {
      const HeadTables tables = cache_.tables(sequence->memory->cache, layer);
      stores_.push_back({row, count, {}, {}, tables});
      decodes_.push_back({row, count, tables});
    }
    feed_.append_stores(stores_);
    int64_t row = num_decode_rows;
    for (const Sequence* sequence : batch.prompts) {
      const int64_t count = sequence->prefill_rows() - sequence->first_row;
      const Tensor k = buffers_.k.row_range(row, count);
      const Tensor v = buffers_.v.row_range(row, count);
      stores_.push_back({row, count, k, v, {}});
      prefills_.push_back(
          {row, count, prefixes_.tables(sequence->memory->prefix, layer), k, v, sequence->first_row});
      row += count;
    }
    const LayerRows rows = {residual, positions_, stores_, prefills_, decodes_, cache_.view()};
    transformer_.run_layer(layer, rows, [&] {
      for (const auto& [sequence, begin, count] : decode_rows_)
        cache_.advance(sequence->memory->cache, layer, count);
      timed(eviction_seconds_.decode, [&] {
        evictor_.store_queries(layer, transformer_.queries(0, num_rows), positions_, decode_rows_);
      });
      feed_.run_layer(layer, positions_);
    });
    row = num_decode_rows;
    for (Sequence* sequence : batch.prompts) {
      const int64_t count = sequence->prefill_len - sequence->first_row;
      finish_prompt_layer(*sequence, layer, row, buffers_.k.row_range(row, count),
                          buffers_.v.row_range(row, count));
      row += sequence->prefill_rows() - sequence->first_row;
    }
  }

  transformer_.settle(residual);
  rows_.clear();
  int64_t row = 0;
  for (const auto& [sequence, count] : batch.decodes) {
    look_at_rows(*sequence, sequence->position, residual.row_range(row, count));
    row += count;
    sequence->position += count;
    if (sequence->position < sequence->prompt_len) continue;
    step.drawing.push_back(sequence);
    rows_.push_back(static_cast<int32_t>(row - 1));
  }
  for (Sequence* sequence : batch.prompts) {
    const int32_t count = sequence->prefill_len - sequence->first_row;
    look_at_rows(*sequence, sequence->first_row, residual.row_range(row, count));
    finish_prefill(*sequence, static_cast<int32_t>(row + count - 1), step);
    row += sequence->prefill_rows() - sequence->first_row;
  }
  draw(residual, step);
  scope.finish();
  backend_.at_layer(-1);
  timed(eviction_seconds_.decode, [&] { evictor_.start_cuts(decoding_, step.cuts); });
  for (size_t i = 0; i < step.drawing.size(); ++i) step.cache[i] = cache_counters(*step.drawing[i]);
}

void Executor::finish_step(std::vector<StepResult>& results) {
  results.clear();
  CHECK(num_steps_ > 0) << "no step is in flight";
  StepInFlight& step = steps_[static_cast<size_t>(first_step_)];
  if (step.is_whole && !step.drawing.empty()) {
    backend_.wait_step();
  } else {
    backend_.synchronize();
    evictor_.count_prefill();
  }
  evictor_.count_cuts(step.cuts);
  for (size_t i = 0; i < step.drawing.size(); ++i) {
    if (step.drawing[i] == nullptr) continue;
    // The lengths are those behind this step, whatever was enqueued since; what its cuts have counted is known only now.
    const CacheCounters& counted = step.drawing[i]->memory->counters;
    step.cache[i].evicted = counted.evicted;
    step.cache[i].events = counted.events;
    step.cache[i].nan_rows = counted.nan_rows;
  }
  for (size_t i = 0; i < step.drawing.size(); ++i)
    if (step.drawing[i]) results.push_back({step.drawing[i], &step.samples[i], &step.cache[i]});
  end_prefixes(step);
  step.drawing.clear();
  first_step_ = 1 - first_step_;
  --num_steps_;
}

void Executor::end_prefixes(const StepInFlight& step) {
  for (size_t i = 0; i < step.drawing.size(); ++i) {
    if (!step.drawing[i]) continue;
    PrefixUse& prefix = step.drawing[i]->memory->prefix;
    if (!prefix.keys.empty()) prefixes_.finish(prefix, !step.samples[i].is_nan);
  }
}

void Executor::finish_units(std::vector<StepResult>& results) {
  results.clear();
  // How long they took is what the scheduler plans the next ones by.
  if (num_steps_ > 0) return finish_step(results);
  backend_.synchronize();
  evictor_.count_prefill();
}

void Executor::prefill(Sequence& leader, std::vector<StepResult>& results) {
  const auto most = static_cast<int32_t>(transformer_.max_rows());
  if (leader.prefill_rows() <= most) {
    StepBatch batch;
    batch.prompts.push_back(&leader);
    return run_step(batch, results);
  }
  start_prefill(leader, /*may_use_open=*/true);
  for (int32_t layer = 0; layer < model_.config.num_layers; ++layer) {
    for (int32_t row = 0; row < leader.prefill_rows(); row += most)
      run_unit({&leader, layer, row, std::min(most, leader.prefill_rows() - row)}, results);
  }
}

void Executor::start_unit(const PrefillUnit& unit) {
  CHECK(num_steps_ == 0) << "a unit behind a step in flight";
  Sequence& sequence = *unit.sequence;
  const ScratchRows scratch = scratch_rows(*sequence.memory);
  // Scratch row 0 is the first one that is computed.
  const int64_t first_row = sequence.first_row, begin = unit.row_begin - first_row;
  const Tensor residual = scratch.residual.row_range(begin, unit.num_rows);
  const std::span<const int32_t> positions =
      std::span(sequence_positions_)
          .subspan(static_cast<size_t>(unit.row_begin), static_cast<size_t>(unit.num_rows));
  if (unit.layer == 0) {
    ids_.clear();
    append_prefill_ids(sequence, unit.row_begin, unit.num_rows);
    transformer_.embed(ids_, {}, residual);
  }
  transformer_.prepare(positions);
  const int64_t rows_so_far = unit.row_begin + unit.num_rows;
  const StoreSegment store = {0,
                              unit.num_rows,
                              scratch.k.row_range(begin, unit.num_rows),
                              scratch.v.row_range(begin, unit.num_rows),
                              {}};
  const PrefillSegment prefill = {0,
                                  unit.num_rows,
                                  prefixes_.tables(sequence.memory->prefix, unit.layer),
                                  scratch.k.row_range(0, rows_so_far - first_row),
                                  scratch.v.row_range(0, rows_so_far - first_row),
                                  sequence.first_row};
  transformer_.run_layer(unit.layer, {residual, positions, {&store, 1}, {&prefill, 1}, {}, cache_.view()},
                         [] {});
  transformer_.settle(residual);
  const bool layer_done = rows_so_far == sequence.prefill_rows();
  const ConstTensor queries = transformer_.queries(0, unit.num_rows);
  // The last rows' queries, and the probe's behind them, are kept until the layer is done.
  const auto slot = static_cast<size_t>(sequence.memory->scratch.slot);
  const Tensor& tail = buffers_.tails[slot];
  const int64_t tail_rows = group_tail_queries(sequence) + sequence.probe_len;
  const int64_t tail_begin = sequence.prefill_rows() - tail_rows;
  const int64_t from = std::max<int64_t>(unit.row_begin, tail_begin);
  if (from < rows_so_far) {
    rows_.resize(static_cast<size_t>(rows_so_far - from));
    std::iota(rows_.begin(), rows_.end(), static_cast<int32_t>(from - unit.row_begin));
    backend_.gather({.table = queries,
                     .ids = rows_,
                     .scale = 1.0f,
                     .out = tail.row_range(from - tail_begin, rows_so_far - from)});
  }
  const Tensor sums = buffers_.sums[slot].col_range(0, sequence.prefill_len);
  if (group_sums_queries(evictor_, sequence, unit.layer)) {
    if (unit.row_begin == 0) backend_.zero(sums);
    timed(eviction_seconds_.prefill, [&] {
      evictor_.add_queries(unit.layer, scratch.k.row_range(0, rows_so_far),
                           scratch.v.row_range(0, rows_so_far), queries, unit.row_begin, sums);
    });
  }
  if (layer_done) {
    const int64_t count = sequence.prefill_len - first_row;
    cut_layer(sequence, unit.layer, scratch.k.row_range(0, count), scratch.v.row_range(0, count),
              tail.row_range(0, tail_rows), sums);
  }
  if (unit.layer + 1 < model_.config.num_layers) return;
  const int64_t own_rows = std::min<int64_t>(rows_so_far, sequence.prefill_len) - unit.row_begin;
  if (own_rows > 0) look_at_rows(sequence, unit.row_begin, residual.row_range(0, own_rows));
  if (!layer_done) return;
  StepInFlight& step = open_step();
  rows_.clear();
  // With a probe the prompt's last row may be one of an earlier unit.
  finish_prefill(sequence, static_cast<int32_t>(sequence.prefill_len - 1 - first_row), step);
  draw(scratch.residual.row_range(0, rows_so_far - first_row), step);
  for (size_t i = 0; i < step.drawing.size(); ++i) step.cache[i] = cache_counters(*step.drawing[i]);
  scratch_.give_back(sequence.memory->scratch);
}

}  // namespace restkv

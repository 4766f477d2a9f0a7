// Batches to ops. A step runs all its rows layer by layer; a unit runs one layer over some rows of a long
// prompt.
#include "engine/executor.h"

#include <algorithm>
#include <numeric>

namespace restkv {
namespace {

CacheShape cache_shape(const ModelConfig& config, DType dtype) {
  return {config.num_layers, config.num_kv_heads, config.head_dim, dtype};
}

int64_t blocks_for(int64_t rows) {
  return (rows + Executor::kScratchBlockRows - 1) / Executor::kScratchBlockRows;
}

int64_t scratch_row_bytes(const ModelConfig& config, DType cache_dtype) {
  return bytes_of(DType::kF32, config.hidden_size) +
         2 * bytes_of(cache_dtype, config.num_kv_heads * config.head_dim);
}

int64_t logit_rows(const EngineOptions& options) { return std::max(options.max_num_seqs, 16); }

// The buffers of a step beside the transformer's own.
struct StepBuffers {
  Tensor residual, k, v;
};
StepBuffers step_buffers(Arena& arena, const ModelConfig& config, const EngineOptions& options) {
  const int64_t rows = options.max_num_batched_tokens;
  const int64_t kv_cols = config.num_kv_heads * config.head_dim;
  StepBuffers buffers;
  buffers.residual = arena.tensor(DType::kF32, rows, config.hidden_size);
  buffers.k = arena.tensor(options.cache_dtype, rows, kv_cols);
  buffers.v = arena.tensor(options.cache_dtype, rows, kv_cols);
  return buffers;
}

}  // namespace

void SequenceMemoryDeleter::operator()(SequenceMemory* memory) const { delete memory; }

Result<MemoryPlan> Executor::plan(const Model& model, Backend& backend, const EngineOptions& options,
                                  int64_t available_bytes) {
  const ModelConfig& config = model.config;
  if (options.max_num_batched_tokens <= options.max_num_seqs) {
    return invalid_argument("max_num_batched_tokens (" + std::to_string(options.max_num_batched_tokens) +
                            ") must be greater than max_num_seqs (" + std::to_string(options.max_num_seqs) +
                            "), or no prompt could join a full batch");
  }
  if (options.max_model_len > config.context_len) {
    return invalid_argument("max_model_len " + std::to_string(options.max_model_len) + " is beyond the " +
                            std::to_string(config.context_len) + " tokens the model was trained for");
  }
  const CacheShape shape = cache_shape(config, options.cache_dtype);
  Arena arena = Arena::counting();
  const Transformer transformer(model, backend, arena, options.max_num_batched_tokens, logit_rows(options));
  step_buffers(arena, config, options);

  MemoryPlan plan;
  plan.weights = model.weights.num_bytes;
  plan.workspace = arena.used();
  plan.page_bytes = KvCache::page_bytes(backend, shape);
  const int64_t slots = backend.page_slots();
  const auto pages_of = [&](int64_t tokens) {
    return shape.num_layers * shape.num_kv_heads * ((tokens + slots - 1) / slots);
  };
  // One prompt of max_model_len, and a seventh of that again which only prompts up to 8k may take.
  const auto scratch_of = [&](int64_t tokens) {
    const int64_t rows = tokens <= 8192 ? tokens : tokens + tokens / 7;
    return blocks_for(rows) * kScratchBlockRows * scratch_row_bytes(config, options.cache_dtype);
  };
  const auto bytes_with = [&](int64_t tokens) {
    return scratch_of(tokens) + pages_of(tokens) * plan.page_bytes;
  };

  const int64_t budget =
      static_cast<int64_t>(options.memory_fraction *
                           static_cast<double>(std::max<int64_t>(0, available_bytes - plan.weights))) -
      plan.workspace;
  plan.max_model_len = options.max_model_len > 0 ? options.max_model_len : config.context_len;
  if (bytes_with(plan.max_model_len) > budget) {
    int64_t fits = 0;
    for (int64_t step = int64_t{1} << 40; step > 0; step /= 2)
      if (fits + step <= plan.max_model_len && bytes_with(fits + step) <= budget) fits += step;
    if (options.max_model_len > 0 || fits < 256) {
      return Status(StatusCode::kFailedPrecondition,
                    "one sequence of " + std::to_string(plan.max_model_len) + " tokens needs " +
                        std::to_string(bytes_with(plan.max_model_len) >> 20) + " MiB of cache and scratch, " +
                        std::to_string(std::max<int64_t>(0, budget) >> 20) +
                        " MiB are left; lower --max-model-len to " + std::to_string(fits) +
                        " or raise --memory-fraction");
    }
    plan.max_model_len = fits;
  }
  plan.scratch = scratch_of(plan.max_model_len);
  const int64_t pages_each = pages_of(plan.max_model_len);
  plan.pages = std::min<int64_t>(
      {(budget - plan.scratch) / plan.page_bytes, pages_each * options.max_num_seqs, int64_t{INT32_MAX}});
  plan.pool = plan.pages * plan.page_bytes;
  plan.max_sequences = plan.pages / pages_each;
  return plan;
}

Executor::Executor(const Model& model, Backend& backend, const EngineOptions& options, const MemoryPlan& plan)
    : model_(model),
      backend_(backend),
      cache_(backend, cache_shape(model.config, options.cache_dtype), plan.pages),
      workspace_memory_(backend.allocate(plan.workspace)),
      workspace_(workspace_memory_->data(), plan.workspace),
      transformer_(model, backend, workspace_, options.max_num_batched_tokens, logit_rows(options)),
      scratch_memory_(backend.allocate(plan.scratch)) {
  const StepBuffers buffers = step_buffers(workspace_, model.config, options);
  residual_ = buffers.residual;
  step_k_ = buffers.k;
  step_v_ = buffers.v;
  CHECK(workspace_.used() == plan.workspace) << workspace_.used() << " planned " << plan.workspace;
  const int64_t row_bytes = scratch_row_bytes(model.config, options.cache_dtype);
  scratch_used_.assign(static_cast<size_t>(plan.scratch / (row_bytes * kScratchBlockRows)), false);
  sequence_positions_.resize(static_cast<size_t>(plan.max_model_len));
  std::iota(sequence_positions_.begin(), sequence_positions_.end(), 0);
  const auto batch = static_cast<size_t>(logit_rows(options));
  sample_results_.resize(batch);
  banned_.resize(batch);
}

bool Executor::can_admit(const Sequence& sequence) const { return cache_.can_admit(sequence.max_entries()); }

void Executor::admit(Sequence& sequence) {
  sequence.memory.reset(new SequenceMemory);
  SequenceMemory& memory = *sequence.memory;
  memory.cache = cache_.admit(sequence.max_entries());
  if (sequence.request().sampling.has_penalties()) {
    const auto vocab = static_cast<size_t>(model_.config.vocab_size);
    memory.prompt_tokens.assign((vocab + 63) / 64, 0);
    for (const int32_t token : sequence.request().prompt)
      memory.prompt_tokens[static_cast<size_t>(token) / 64] |= uint64_t{1} << (token % 64);
    memory.counts.assign(vocab, 0);
  }
  if (sequence.request().prompt_logprobs >= 0 && sequence.prompt_len > 1)
    memory.prompt_logprobs.resize(static_cast<size_t>(sequence.prompt_len - 1));
}

void Executor::release(Sequence& sequence) {
  SequenceMemory& memory = *sequence.memory;
  cache_.release(memory.cache);
  for (int64_t i = 0; i < memory.scratch_blocks; ++i)
    scratch_used_[static_cast<size_t>(memory.scratch_begin + i)] = false;
  sequence.memory.reset();
}

int64_t Executor::find_scratch(int64_t blocks) const {
  int64_t run = 0;
  for (size_t i = 0; i < scratch_used_.size(); ++i) {
    run = scratch_used_[i] ? 0 : run + 1;
    if (run == blocks) return static_cast<int64_t>(i) + 1 - blocks;
  }
  return -1;
}

bool Executor::can_start_prefill(const Sequence& sequence) const {
  return find_scratch(blocks_for(sequence.prompt_len)) >= 0;
}

void Executor::start_prefill(Sequence& sequence) {
  SequenceMemory& memory = *sequence.memory;
  memory.scratch_blocks = blocks_for(sequence.prompt_len);
  memory.scratch_begin = find_scratch(memory.scratch_blocks);
  CHECK(memory.scratch_begin >= 0) << "no scratch for " << sequence.prompt_len << " rows";
  for (int64_t i = 0; i < memory.scratch_blocks; ++i)
    scratch_used_[static_cast<size_t>(memory.scratch_begin + i)] = true;
}

void Executor::end_prefill(SequenceMemory& memory) {
  for (int64_t i = 0; i < memory.scratch_blocks; ++i)
    scratch_used_[static_cast<size_t>(memory.scratch_begin + i)] = false;
  memory.scratch_blocks = 0;
}

Executor::ScratchRows Executor::scratch_rows(const SequenceMemory& memory) const {
  const ModelConfig& c = model_.config;
  const DType dtype = cache_.view().dtype;
  const int64_t rows = memory.scratch_blocks * kScratchBlockRows;
  Arena arena(
      scratch_memory_->data() + memory.scratch_begin * kScratchBlockRows * scratch_row_bytes(c, dtype),
      rows * scratch_row_bytes(c, dtype));
  ScratchRows scratch;
  scratch.residual = arena.tensor(DType::kF32, rows, c.hidden_size);
  scratch.k = arena.tensor(dtype, rows, c.num_kv_heads * c.head_dim);
  scratch.v = arena.tensor(dtype, rows, c.num_kv_heads * c.head_dim);
  return scratch;
}

void Executor::store_prompt(Sequence& sequence, int64_t layer, ConstTensor k, ConstTensor v) {
  SequenceMemory& memory = *sequence.memory;
  backend_.store_pages({.k = k,
                        .v = v,
                        .positions = std::span(sequence_positions_).first(static_cast<size_t>(k.rows)),
                        .tables = cache_.tables(memory.cache, layer),
                        .num_kv_heads = static_cast<int32_t>(model_.config.num_kv_heads),
                        .cache = cache_.view()});
  cache_.advance(memory.cache, layer, k.rows);
}

void Executor::run_step(const StepBatch& batch, std::vector<StepResult>& results) {
  ids_.clear();
  positions_.clear();
  for (const auto& [sequence, num_rows] : batch.decodes) {
    const auto begin = sequence->tokens.begin() + sequence->position;
    ids_.insert(ids_.end(), begin, begin + num_rows);
    for (int32_t i = 0; i < num_rows; ++i) positions_.push_back(sequence->position + i);
  }
  const auto num_decode_rows = static_cast<int64_t>(ids_.size());
  for (const Sequence* sequence : batch.prompts) {
    ids_.insert(ids_.end(), sequence->tokens.begin(), sequence->tokens.end());
    for (int32_t i = 0; i < sequence->prompt_len; ++i) positions_.push_back(i);
  }
  const auto num_rows = static_cast<int64_t>(ids_.size());
  const Tensor residual = residual_.row_range(0, num_rows);
  transformer_.embed(ids_, residual);
  transformer_.prepare(positions_);

  for (int64_t layer = 0; layer < model_.config.num_layers; ++layer) {
    stores_.clear();
    prefills_.clear();
    decodes_.clear();
    int64_t row = 0;
    for (const auto& [sequence, count] : batch.decodes) {
      const HeadTables tables = cache_.tables(sequence->memory->cache, layer);
      stores_.push_back({row, count, {}, {}, tables});
      decodes_.push_back({row, count, tables});
      row += count;
    }
    for (const Sequence* sequence : batch.prompts) {
      const Tensor k = step_k_.row_range(row - num_decode_rows, sequence->prompt_len);
      const Tensor v = step_v_.row_range(row - num_decode_rows, sequence->prompt_len);
      stores_.push_back({row, sequence->prompt_len, k, v, {}});
      prefills_.push_back({row, sequence->prompt_len, {}, k, v, 0});
      row += sequence->prompt_len;
    }
    const LayerRows rows = {residual, positions_, stores_, prefills_, decodes_, cache_.view()};
    transformer_.run_layer(layer, rows, [&] {
      for (const auto& [sequence, count] : batch.decodes)
        cache_.advance(sequence->memory->cache, layer, count);
    });
    row = 0;
    for (Sequence* sequence : batch.prompts) {
      store_prompt(*sequence, layer, step_k_.row_range(row, sequence->prompt_len),
                   step_v_.row_range(row, sequence->prompt_len));
      row += sequence->prompt_len;
    }
  }

  drawing_.clear();
  rows_.clear();
  int64_t row = 0;
  const auto finish = [&](Sequence& sequence, int32_t count) {
    look_at_rows(sequence, sequence.position, residual.row_range(row, count));
    row += count;
    sequence.position += count;
    drawing_.push_back(&sequence);
    rows_.push_back(static_cast<int32_t>(row - 1));
  };
  for (const auto& [sequence, count] : batch.decodes) finish(*sequence, count);
  for (Sequence* sequence : batch.prompts) finish(*sequence, sequence->prompt_len);
  draw(residual, results);
}

void Executor::run_unit(const PrefillUnit& unit, std::vector<StepResult>& results) {
  results.clear();
  Sequence& sequence = *unit.sequence;
  const ScratchRows scratch = scratch_rows(*sequence.memory);
  const Tensor residual = scratch.residual.row_range(unit.row_begin, unit.num_rows);
  const std::span<const int32_t> positions =
      std::span(sequence_positions_)
          .subspan(static_cast<size_t>(unit.row_begin), static_cast<size_t>(unit.num_rows));
  if (unit.layer == 0) {
    transformer_.embed(std::span(sequence.tokens)
                           .subspan(static_cast<size_t>(unit.row_begin), static_cast<size_t>(unit.num_rows)),
                       residual);
  }
  transformer_.prepare(positions);
  const int64_t rows_so_far = unit.row_begin + unit.num_rows;
  const StoreSegment store = {0,
                              unit.num_rows,
                              scratch.k.row_range(unit.row_begin, unit.num_rows),
                              scratch.v.row_range(unit.row_begin, unit.num_rows),
                              {}};
  const PrefillSegment prefill = {
      0, unit.num_rows, {}, scratch.k.row_range(0, rows_so_far), scratch.v.row_range(0, rows_so_far), 0};
  transformer_.run_layer(unit.layer, {residual, positions, {&store, 1}, {&prefill, 1}, {}, cache_.view()},
                         [] {});
  const bool layer_done = rows_so_far == sequence.prompt_len;
  if (layer_done) {
    store_prompt(sequence, unit.layer, scratch.k.row_range(0, sequence.prompt_len),
                 scratch.v.row_range(0, sequence.prompt_len));
  }
  if (unit.layer + 1 < model_.config.num_layers) return;
  look_at_rows(sequence, unit.row_begin, residual);
  if (!layer_done) return;
  sequence.position = sequence.prompt_len;
  drawing_.assign(1, &sequence);
  rows_.assign(1, unit.num_rows - 1);
  draw(residual, results);
  end_prefill(*sequence.memory);
}

void Executor::look_at_rows(Sequence& sequence, int64_t first_row, const Tensor& residual) {
  const bool wants_logprobs = sequence.request().prompt_logprobs >= 0 && first_row + 1 < sequence.prompt_len;
  if (!wants_logprobs && !observer_) return;
  SamplingParams params;
  params.num_logprobs = sequence.request().prompt_logprobs;
  std::vector<int32_t> rows;
  std::vector<SampleRow> targets;
  for (int64_t begin = 0; begin < residual.rows; begin += transformer_.max_logit_rows()) {
    const int64_t count = std::min(transformer_.max_logit_rows(), residual.rows - begin);
    rows.resize(static_cast<size_t>(count));
    std::iota(rows.begin(), rows.end(), static_cast<int32_t>(begin));
    const Tensor logits = transformer_.logits(residual, rows);
    if (observer_) observer_(sequence, first_row + begin, logits);
    if (!wants_logprobs) continue;
    // Row r predicts prompt token r + 1; the last row predicts the answer.
    const int64_t first = first_row + begin;
    const int64_t last = std::min<int64_t>(first + count, sequence.prompt_len - 1);
    if (last <= first) continue;
    targets.assign(static_cast<size_t>(last - first), SampleRow{.params = &params});
    for (int64_t r = first; r < last; ++r)
      targets[static_cast<size_t>(r - first)].forced = sequence.tokens[static_cast<size_t>(r + 1)];
    backend_.sample({.logits = logits.row_range(0, last - first),
                     .rows = targets,
                     .results = std::span(sequence.memory->prompt_logprobs)
                                    .subspan(static_cast<size_t>(first), static_cast<size_t>(last - first))});
  }
}

void Executor::collect_banned(const Sequence& sequence, std::vector<int32_t>& banned) const {
  banned.clear();
  const Request& request = sequence.request();
  if (sequence.num_generated() < request.min_tokens) {
    for (const int64_t token : model_.config.eos_token_ids) banned.push_back(static_cast<int32_t>(token));
    banned.insert(banned.end(), request.stop_token_ids.begin(), request.stop_token_ids.end());
  }
  for (const std::vector<int32_t>& word : request.bad_words) {
    const size_t prefix = word.size() - 1;
    if (static_cast<size_t>(sequence.num_generated()) < prefix) continue;
    if (std::equal(word.begin(), word.end() - 1, sequence.tokens.end() - static_cast<int64_t>(prefix)))
      banned.push_back(word.back());
  }
}

void Executor::count_token(Sequence& sequence, int32_t token) {
  uint16_t& count = sequence.memory->counts[static_cast<size_t>(token)];
  if (count < UINT16_MAX) ++count;
}

void Executor::draw(const Tensor& residual, std::vector<StepResult>& results) {
  results.clear();
  sample_rows_.clear();
  const size_t count = drawing_.size();
  CHECK(count <= sample_results_.size()) << count << " sequences";
  const Tensor logits = transformer_.logits(residual, rows_);
  for (size_t i = 0; i < count; ++i) {
    const Sequence& sequence = *drawing_[i];
    collect_banned(sequence, banned_[i]);
    sample_rows_.push_back({.params = &sequence.request().sampling,
                            .choice = static_cast<uint32_t>(sequence.choice),
                            .position = static_cast<uint32_t>(sequence.position),
                            .prompt_tokens = sequence.memory->prompt_tokens,
                            .counts = sequence.memory->counts,
                            .banned = banned_[i]});
  }
  backend_.sample(
      {.logits = logits, .rows = sample_rows_, .results = std::span(sample_results_).first(count)});
  backend_.synchronize();
  for (size_t i = 0; i < count; ++i) results.push_back({drawing_[i], &sample_results_[i]});
}

}  // namespace restkv

// The five steps for the live path. The trigger is kv_len == C_lh, always; kv_len <= C_lh at every moment under `evict`.
#include "engine/evictor.h"

#include <algorithm>
#include <numeric>

namespace restkv {
namespace {

// A windowed layer that can hold its whole window needs no scores: what left the window goes.
bool holds_window(const SequenceMemory& memory, int32_t window) {
  return window > 0 && (memory.settings.policy == PolicyKind::kFull ||
                        memory.budget.budget >= window + memory.budget.stride);
}

std::vector<ConstTensor> output_weights(const WeightViews& weights) {
  std::vector<ConstTensor> list;
  for (const LayerWeights& layer : weights.layers) list.push_back(layer.o);
  return list;
}

ConstTensor rows_of(ConstTensor tensor, int64_t begin, int64_t count) {
  tensor.data = tensor.row(begin);
  tensor.rows = count;
  return tensor;
}

}  // namespace

Evictor::Evictor(const Model& model, const WeightViews& weights, Backend& backend, KvCache& cache,
                 Tensor workspace, int64_t max_model_len)
    : model_(model),
      backend_(backend),
      cache_(cache),
      cutter_(backend, attention_shape(model.config), cache.view(), workspace),
      projections_(backend, output_weights(weights), model.config.num_heads, model.config.head_dim) {
  all_positions_.resize(static_cast<size_t>(max_model_len));
  std::iota(all_positions_.begin(), all_positions_.end(), 0);
}

int64_t Evictor::workspace_bytes(const ModelConfig& config, int64_t max_model_len) {
  const AttentionShape shape = attention_shape(config);
  int64_t most = 0;
  for (const ScoreKind kind :
       {ScoreKind::kAttention, ScoreKind::kIndicatorQuery, ScoreKind::kIndicatorAfter}) {
    PolicyRecipe recipe;
    recipe.score.kind = kind;
    recipe.pool = PoolKind::kForward;
    most = std::max(most, Cutter::workspace_bytes(recipe, shape, max_model_len,
                                                  std::min<int64_t>(kMaxWindow, max_model_len),
                                                  kind == ScoreKind::kAttention ? 0 : kMaxProbeTokens));
  }
  return most;
}

void Evictor::plan(const ModelConfig& config, const AllocationTables* tables, const CacheSettings& settings,
                   int64_t prompt_len, int64_t max_tokens, SequenceMemory& memory) {
  const int64_t answer = std::max<int64_t>(0, max_tokens - 1);
  const int64_t max_entries = prompt_len + answer;
  memory.settings = settings;
  // `full` is bounded by the answer alone; its budget only gives windowed layers their stride.
  if (settings.policy == PolicyKind::kFull)
    memory.settings.budget = static_cast<int32_t>(prompt_len + std::max<int64_t>(1, max_tokens));
  std::vector<int32_t> windows;
  for (const LayerConfig& layer : config.layers) windows.push_back(layer.window);
  memory.budget = plan_budget(
      memory.settings,
      {static_cast<int32_t>(config.num_layers), static_cast<int32_t>(config.num_kv_heads), windows},
      tables ? &tables->of(settings.decode) : nullptr, prompt_len, max_tokens);
  memory.recipe = make_recipe(memory.settings, memory.budget.budget, static_cast<int32_t>(config.num_layers));
  memory.window_recipe = streamingllm_recipe();
  memory.window_recipe.sinks = 0;

  const auto num_layers = static_cast<size_t>(config.num_layers);
  const auto num_heads = static_cast<size_t>(config.num_kv_heads);
  CacheReservation& r = memory.reservation;
  r = CacheReservation{};
  const bool is_grow = settings.decode == DecodeMode::kGrow && settings.policy != PolicyKind::kFull;
  const bool evicts = !memory.budget.is_exact;
  const int64_t prefill_len = evicts ? prefill_tokens(settings, prompt_len) : prompt_len;
  memory.prefill_len = static_cast<int32_t>(prefill_len);
  r.shared_layer.assign(num_layers, false);
  r.ring_layer.assign(num_layers, false);
  r.has_sums = evicts && !is_grow && memory.recipe.needs_sums();
  const bool has_ring = evicts && !is_grow && memory.recipe.needs_queries();
  for (size_t layer = 0; layer < num_layers; ++layer) {
    const bool is_scored = evicts && !holds_window(memory, windows[layer]);
    r.ring_layer[layer] = has_ring && is_scored;
    if (r.ring_layer[layer]) r.ring_window = memory.settings.window;
    r.shared_layer[layer] =
        is_scored && memory.recipe.scope == SelectScope::kShare && prefill_len >= memory.budget.budget;
    for (size_t head = 0; head < num_heads; ++head) {
      const int64_t c = memory.budget.c_lh[layer * num_heads + head];
      // Windowed layers under `grow` keep to their window all the same.
      const int64_t entries = is_grow && windows[layer] == 0
                                  ? std::min<int64_t>(c, prefill_len) + (prompt_len - prefill_len) + answer
                                  : std::min<int64_t>(c, max_entries);
      r.entries.push_back(static_cast<int32_t>(entries));
    }
  }
  memory.may_share = !evicts && std::all_of(windows.begin(), windows.end(), [](int32_t w) { return w == 0; });
  memory.pin_stride = evicts ? pin_rows(memory.settings, memory.budget.budget) : 0;
  // A probe has a say in the cut after prefill alone.
  const bool is_cut =
      evicts && prefill_len >= *std::min_element(memory.budget.c_lh.begin(), memory.budget.c_lh.end());
  if (is_cut && memory.recipe.takes_probe) memory.probe = probe_for_prompt(settings, prompt_len).tokens;
}

void Evictor::admit(SequenceMemory& memory, int32_t prompt_len) const {
  const auto heads = static_cast<size_t>(model_.config.num_layers * model_.config.num_kv_heads);
  memory.was_cut.assign(heads, false);
  memory.pins.assign(heads * static_cast<size_t>(memory.pin_stride), 0);
  memory.num_pins.assign(heads, 0);
  if (memory.settings.trace != TraceMode::kOff) {
    CacheTrace header;
    header.num_layers = static_cast<int32_t>(model_.config.num_layers);
    header.num_kv_heads = static_cast<int32_t>(model_.config.num_kv_heads);
    header.policy = memory.settings.policy;
    header.budget = memory.budget.budget;
    header.prompt_len = prompt_len;
    memory.trace =
        std::make_unique<TraceWriter>(header, memory.settings.trace == TraceMode::kBins, trace_room_);
  }
  const auto layers = static_cast<size_t>(model_.config.num_layers);
  memory.summed_until.assign(layers, 0);
  memory.layer_longest.assign(layers, 0);
  memory.full_at.resize(layers);
  for (size_t layer = 0; layer < layers; ++layer)
    memory.full_at[layer] = rows_until_full(memory, static_cast<int64_t>(layer));
}

int32_t Evictor::rows_until_full(const SequenceMemory& memory, int64_t layer) const {
  const bool is_grow =
      memory.settings.decode == DecodeMode::kGrow && memory.settings.policy != PolicyKind::kFull;
  if ((memory.budget.is_exact || is_grow) && window_of(layer) == 0) return INT32_MAX;
  const int64_t k = model_.config.num_kv_heads;
  int32_t rows = INT32_MAX;
  for (int64_t i = layer * k; i < (layer + 1) * k; ++i) {
    const auto index = static_cast<size_t>(i);
    rows = std::min(rows, memory.budget.c_lh[index] - memory.cache.kv_len[index]);
  }
  return rows;
}

void Evictor::note_lengths(const Due& due) {
  SequenceMemory& memory = *due.sequence->memory;
  const auto layer = static_cast<size_t>(due.layer);
  const int32_t rows = rows_until_full(memory, due.layer);
  memory.full_at[layer] = rows == INT32_MAX ? INT32_MAX : due.tokens + rows;
  const int64_t k = model_.config.num_kv_heads;
  const auto first = memory.cache.kv_len.begin() + due.layer * k;
  memory.layer_longest[layer] = *std::max_element(first, first + k) - due.tokens;
  memory.longest = *std::max_element(memory.layer_longest.begin(), memory.layer_longest.end());
}

int64_t Evictor::tail_queries(const Sequence& sequence) {
  const SequenceMemory& memory = *sequence.memory;
  if (memory.budget.is_exact) return 0;
  switch (memory.recipe.queries) {
    case QueryNeed::kNone: return 0;
    case QueryNeed::kNewest:
      return memory.reservation.ring_window > 0 ? std::min(memory.settings.window, sequence.prefill_len) : 1;
    case QueryNeed::kWindow:
    case QueryNeed::kAll: return std::min(memory.settings.window, sequence.prefill_len);
  }
  return 0;
}

bool Evictor::scores_layer(const SequenceMemory& memory, int64_t layer) const {
  return !memory.budget.is_exact && !holds_window(memory, window_of(layer));
}

void Evictor::add_queries(int64_t layer, ConstTensor k, ConstTensor v, ConstTensor q, int64_t first,
                          Tensor sums) {
  const RowSource rows = {.pages = {}, .k = k, .v = v, .first_position = 0};
  cutter_.add_queries(rows, {.rows = q, .ring = {}, .positions = positions(first, first + q.rows)},
                      window_of(layer), sums);
}

Cut Evictor::make_cut(const Due& due, int32_t* numbers, int64_t* moved, bool is_prefill) {
  const Sequence& sequence = *due.sequence;
  const int64_t layer = due.layer;
  SequenceMemory& memory = *sequence.memory;
  const auto k = static_cast<size_t>(model_.config.num_kv_heads);
  // A windowed layer under `grow` keeps no ring: its oldest rows go.
  const bool is_scored = scores_layer(memory, layer) &&
                         (is_prefill || memory.reservation.ring_layer[static_cast<size_t>(layer)] ||
                          !memory.recipe.needs_queries());
  const int32_t window = window_of(layer);
  Cut cut;
  cut.recipe = is_scored ? &memory.recipe : &memory.window_recipe;
  cut.is_prefill = is_prefill;
  cut.layer = static_cast<int32_t>(layer);
  cut.window = window;
  cut.keep = numbers + kKeep * k;
  cut.kept_len = numbers + kKeptLen * k;
  cut.num_dead = numbers + kNumDead * k;
  cut.non_finite = numbers + kNonFinite * k;
  cut.moved = moved;
  cut.destination = cache_.tables(memory.cache, layer);
  cut.protect = protection_of(*cut.recipe, memory.settings, sequence.prompt_len, window > 0);
  if (window > 0) cut.protect.dead_before = std::max(0, due.tokens - window + 1);
  if (memory.pin_stride > 0 && window == 0) {
    const size_t first = static_cast<size_t>(layer) * k;
    cut.protect.pins = memory.pins.data() + first * static_cast<size_t>(memory.pin_stride);
    cut.protect.pin_stride = memory.pin_stride;
    cut.protect.num_pins = memory.num_pins.data() + first;
  }
  if (cut.recipe->uses_projection) cut.projection = projections_.layer(layer);
  return cut;
}

void Evictor::set_lengths(const Due& due, const Cut& cut, int32_t* gone) {
  SequenceMemory& memory = *due.sequence->memory;
  const auto k = static_cast<size_t>(model_.config.num_kv_heads);
  const auto first = static_cast<size_t>(due.layer) * k;
  // Before any length changes: `cut.rows` reads those of the pages.
  for (size_t h = 0; h < k; ++h) {
    gone[h] = cut.rows.num_rows(static_cast<int32_t>(h)) - cut.kept_len[h];
    CHECK(gone[h] >= 0) << cut.kept_len[h] << " rows are kept of fewer";
  }
  for (size_t h = 0; h < k; ++h) {
    const size_t index = first + h;
    memory.num_gone += gone[h];
    memory.was_cut[index] = memory.was_cut[index] || gone[h] > 0;
    memory.cache.kv_len[index] = cut.kept_len[h];
    if (!memory.cache.sums_len.empty()) memory.cache.sums_len[index] = cut.kept_len[h];
    CHECK(memory.cache.kv_len[index] <= memory.cache.capacity[index])
        << memory.cache.kv_len[index] << " entries, room for " << memory.cache.capacity[index];
  }
  note_lengths(due);
}

void Evictor::count_cut(const Due& due, const Cut& cut, const int32_t* gone) {
  SequenceMemory& memory = *due.sequence->memory;
  bool is_event = false;
  const CacheCounters was = memory.counters;
  for (size_t h = 0; h < static_cast<size_t>(model_.config.num_kv_heads); ++h) {
    CHECK(cut.moved[h] <= cut.kept_len[h]) << cut.moved[h] << " of " << cut.kept_len[h];
    // The newest rows stay, so a head that gave up rows has moved some: nothing is counted that did not happen.
    CHECK(gone[h] == 0 || cut.moved[h] > 0) << gone[h] << " rows went and none moved";
    // Dead rows go first; where there is room beside the living, some stay until the next cut.
    const int32_t num_evicted = std::max(0, gone[h] - cut.num_dead[h]);
    memory.counters.evicted += num_evicted;
    // Of heads that gave up rows: those of the others decide nothing, and not every backend makes them.
    if (gone[h] > 0) memory.counters.nan_rows += cut.non_finite[h];
    is_event |= num_evicted > 0;
  }
  memory.counters.events += is_event;
  totals_.evicted[static_cast<size_t>(memory.settings.policy)] += memory.counters.evicted - was.evicted;
  totals_.events += is_event;
  totals_.nan_rows += memory.counters.nan_rows - was.nan_rows;
  if (cut.max_new_pins == 0) return;
  const auto k = model_.config.num_kv_heads, first = due.layer * k;
  std::copy_n(cut.new_pins, k * cut.max_new_pins, memory.pins.begin() + first * cut.max_new_pins);
  std::copy_n(cut.num_new_pins, k, memory.num_pins.begin() + first);
}

void Evictor::keep_all(SequenceMemory& memory, int64_t layer, const RowSource& rows) {
  const auto num_heads = static_cast<size_t>(model_.config.num_kv_heads);
  const auto prefill_len = rows.first_position + static_cast<int32_t>(rows.k.rows);
  // Those that another choice has written are there.
  const int32_t shared = memory.cache.shared_entries;
  if (rows.first_position > shared) {
    CHECK(shared == 0) << "a prefix of " << rows.first_position << " tokens and " << shared
                       << " shared entries";
    const std::vector<int32_t> kept_len(num_heads, prefill_len);
    const CompactItem item = {
        .rows = rows, .kept_len = kept_len.data(), .destination = cache_.tables(memory.cache, layer)};
    backend_.compact({.shape = attention_shape(model_.config), .items = {&item, 1}, .cache = cache_.view()});
  } else {
    if (shared > 0) cache_.advance(memory.cache, layer, shared);
    const int64_t skip = shared - rows.first_position;
    backend_.store_pages({.k = rows_of(rows.k, skip, rows.k.rows - skip),
                          .v = rows_of(rows.v, skip, rows.v.rows - skip),
                          .positions = positions(shared, prefill_len),
                          .tables = cache_.tables(memory.cache, layer),
                          .num_kv_heads = static_cast<int32_t>(num_heads),
                          .cache = cache_.view()});
  }
  cache_.advance(memory.cache, layer, prefill_len - shared);
}

void Evictor::finish_layer(Sequence& sequence, int64_t layer, const RowSource& rows, ConstTensor tail,
                           ConstTensor sums) {
  SequenceMemory& memory = *sequence.memory;
  const auto num_heads = static_cast<size_t>(model_.config.num_kv_heads);
  const auto layer_index = static_cast<size_t>(layer);
  const auto prefill_len = rows.first_position + static_cast<int32_t>(rows.k.rows);
  const Due due = {&sequence, layer, prefill_len};
  const bool is_grow = memory.settings.decode == DecodeMode::kGrow && window_of(layer) == 0;
  const bool is_scored = scores_layer(memory, layer);
  const int64_t tail_rows = tail_queries(sequence);
  if (memory.reservation.ring_layer[layer_index] && tail_rows > 0) {
    const StoreQueriesSegment segment = {0, tail_rows, cache_.ring(memory.cache, layer)};
    backend_.store_queries({.shape = attention_shape(model_.config),
                            .q = rows_of(tail, 0, tail_rows),
                            .positions = positions(prefill_len - tail_rows, prefill_len),
                            .segments = {&segment, 1},
                            .cache = cache_.view()});
  }
  CutBatch& batch = next_waiting();
  batch.numbers.assign(kNumbers * num_heads, 0);
  batch.moved.assign(num_heads, 0);
  int32_t* const numbers = batch.numbers.data();
  bool is_due = memory.reservation.has_sums && is_scored;  // the sums of the rows have to be stored
  for (size_t h = 0; h < num_heads; ++h) {
    const int32_t c = memory.budget.c_lh[layer_index * num_heads + h];
    int32_t keep = prefill_len;
    if (prefill_len >= c && (is_scored || window_of(layer) > 0))
      keep = is_grow ? c : rows_after_cut(c, memory.budget.stride, layer, model_.config.num_layers, true);
    is_due |= keep < prefill_len;
    numbers[kKeep * num_heads + h] = keep;
  }
  if (!is_due) {
    if (memory.reservation.shared_layer[layer_index])
      cache_.share_layer(memory.cache, layer, memory.reservation.entries.data() + layer_index * num_heads);
    keep_all(memory, layer, rows);
    note_lengths(due);
    return;
  }
  batch.due.assign(1, due);
  batch.cuts.assign(1, make_cut(due, numbers, batch.moved.data(), true));
  Cut& cut = batch.cuts[0];
  cut.rows = rows;
  if (is_scored && tail_rows > 0) {
    const int64_t count = memory.recipe.queries == QueryNeed::kNewest ? 1 : tail_rows;
    cut.queries = {.rows = rows_of(tail, tail_rows - count, count),
                   .ring = {},
                   .positions = positions(prefill_len - count, prefill_len)};
    const int32_t probe_len = sequence.probe_len;
    if (probe_len > 0) {
      cut.probe = {.rows = rows_of(tail, tail_rows, probe_len),
                   .ring = {},
                   .positions = positions(prefill_len, prefill_len + probe_len)};
    }
  }
  if (memory.recipe.needs_sums() && is_scored) {
    cut.attention_sums = sums;
    if (memory.reservation.has_sums) cut.sums = cache_.sums(memory.cache, layer);
    memory.summed_until[layer_index] = prefill_len;
  }
  if (memory.pin_stride > 0 && window_of(layer) == 0) {
    const size_t count = num_heads * static_cast<size_t>(memory.pin_stride);
    batch.pins.assign(count + num_heads, 0);
    cut.protect.pins = nullptr;
    cut.protect.num_pins = nullptr;
    cut.max_new_pins = memory.pin_stride;
    cut.new_pins = batch.pins.data();
    cut.num_new_pins = batch.pins.data() + count;
  }
  if (memory.reservation.shared_layer[layer_index]) {
    const int32_t slack = is_grow ? 0 : memory.budget.budget - numbers[kKeep * num_heads];
    for (size_t h = 0; h < num_heads; ++h) numbers[kKeep * num_heads + h] = memory.budget.budget;
    cut.share = numbers + kShareOut * num_heads;
    cut.share_slack = slack;
    cut.share_floor = share_floor(memory.settings, memory.budget.budget, is_grow);
  }
  if (cut.share != nullptr || memory.trace) {
    cutter_.set_observer([&](const Cut& done, ConstTensor kept, ConstTensor scores) {
      if (memory.trace) trace_cut(due, done, kept, scores);
      if (done.share == nullptr) return;
      // The shares are known, the rows have not moved: the heads get their pages.
      std::vector<int32_t> room(num_heads);
      const int32_t later = sequence.max_entries() - prefill_len;
      for (size_t h = 0; h < num_heads; ++h) {
        memory.budget.c_lh[layer_index * num_heads + h] = done.share[h];
        room[h] = is_grow ? std::min(done.share[h], prefill_len) + later
                          : std::min(done.share[h], sequence.max_entries());
      }
      cache_.share_layer(memory.cache, layer, room.data());
    });
  }
  cutter_.run(batch.cuts);
  cutter_.set_observer(nullptr);
  set_lengths(due, cut, numbers + kGone * num_heads);
  ++num_waiting_;
}

void Evictor::trace_cut(const Due& due, const Cut& cut, ConstTensor kept, ConstTensor scores) {
  if (due.sequence->memory->trace->has_ended()) return;
  // Positions and hashes are no scores.
  const bool has_scores = cut.recipe->needs_queries();
  traced_kept_.resize(static_cast<size_t>(kept.rows * kept.cols));
  backend_.read_back(kept, traced_kept_.data());
  if (has_scores) {
    traced_scores_.resize(static_cast<size_t>(scores.rows * scores.cols));
    backend_.read_back(scores, traced_scores_.data());
  }
  traced_.clear();
  for (int64_t h = 0; h < model_.config.num_kv_heads; ++h) {
    const auto count = static_cast<size_t>(cut.rows.num_rows(static_cast<int32_t>(h)));
    TraceWriter::HeadRows& rows = traced_.emplace_back();
    rows.kept = {traced_kept_.data() + h * kept.cols, static_cast<size_t>(cut.kept_len[h])};
    if (has_scores) rows.scores = {traced_scores_.data() + h * scores.cols, count};
  }
  due.sequence->memory->trace->add_cut(static_cast<int32_t>(due.layer), due.tokens, traced_);
}

void Evictor::store_queries(int64_t layer, ConstTensor q, std::span<const int32_t> positions,
                            std::span<const Rows> rows) {
  segments_.clear();
  for (const Rows& r : rows) {
    if (!r.sequence->memory->reservation.ring_layer[static_cast<size_t>(layer)]) continue;
    segments_.push_back({r.row_begin, r.num_rows, cache_.ring(r.sequence->memory->cache, layer)});
  }
  if (segments_.empty()) return;
  backend_.store_queries({.shape = attention_shape(model_.config),
                          .q = q,
                          .positions = positions,
                          .segments = segments_,
                          .cache = cache_.view()});
}

void Evictor::start_cuts(std::span<Sequence* const> sequences, CutBatch& batch) {
  batch.due.clear();
  for (Sequence* sequence : sequences) {
    for (int64_t layer = 0; layer < model_.config.num_layers; ++layer)
      if (room(*sequence, layer, sequence->position) == 0)
        batch.due.push_back({sequence, layer, sequence->position});
  }
  run(batch);
}

void Evictor::count_cuts(CutBatch& batch) {
  const auto num_heads = static_cast<size_t>(model_.config.num_kv_heads);
  for (size_t i = 0; i < batch.due.size(); ++i) {
    if (batch.due[i].sequence == nullptr) continue;
    count_cut(batch.due[i], batch.cuts[i], batch.numbers.data() + (i * kNumbers + kGone) * num_heads);
  }
  batch.due.clear();
}

Evictor::CutBatch& Evictor::next_waiting() {
  if (num_waiting_ == waiting_.size()) waiting_.emplace_back();
  return waiting_[num_waiting_];
}

void Evictor::cut(std::span<const Due> due) {
  if (due.empty()) return;
  CutBatch& batch = next_waiting();
  batch.due.assign(due.begin(), due.end());
  run(batch);
  ++num_waiting_;
}

void Evictor::count_prefill() {
  for (size_t i = 0; i < num_waiting_; ++i) count_cuts(waiting_[i]);
  num_waiting_ = 0;
}

void Evictor::forget(const Sequence& sequence) {
  for (size_t i = 0; i < num_waiting_; ++i) {
    for (Due& due : waiting_[i].due)
      if (due.sequence == &sequence) due.sequence = nullptr;
  }
}

void Evictor::run(CutBatch& batch) {
  batch.cuts.clear();
  const std::span<const Due> due = batch.due;
  if (due.empty()) return;
  const auto num_heads = static_cast<size_t>(model_.config.num_kv_heads);
  batch.numbers.assign(due.size() * kNumbers * num_heads, 0);
  batch.moved.assign(due.size() * num_heads, 0);
  for (size_t i = 0; i < due.size(); ++i) {
    const int64_t layer = due[i].layer;
    SequenceMemory& memory = *due[i].sequence->memory;
    const auto layer_index = static_cast<size_t>(layer);
    int32_t* const numbers = batch.numbers.data() + i * kNumbers * num_heads;
    Cut cut = make_cut(due[i], numbers, batch.moved.data() + i * num_heads, false);
    cut.rows = {.pages = cache_.tables(memory.cache, layer), .k = {}, .v = {}, .first_position = 0};
    for (size_t h = 0; h < num_heads; ++h) {
      const auto index = layer_index * num_heads + h;
      const int32_t c = memory.budget.c_lh[index];
      const int32_t len = memory.cache.kv_len[index];
      int32_t& keep = numbers[kKeep * num_heads + h];
      keep = len != c ? len
                      : rows_after_cut(c, memory.budget.stride, layer, model_.config.num_layers,
                                       !memory.was_cut[index]);
    }
    if (scores_layer(memory, layer) && memory.reservation.ring_layer[layer_index]) {
      const int64_t end = due[i].tokens;
      int64_t begin = std::max<int64_t>(0, end - memory.settings.window);
      if (memory.recipe.queries == QueryNeed::kNewest) begin = end - 1;
      if (memory.recipe.queries == QueryNeed::kAll) {
        begin = std::max<int64_t>(begin, memory.summed_until[layer_index]);
        memory.summed_until[layer_index] = due[i].tokens;
      }
      cut.queries = {
          .rows = {}, .ring = cache_.ring(memory.cache, layer), .positions = positions(begin, end)};
      if (memory.reservation.has_sums) cut.sums = cache_.sums(memory.cache, layer);
    }
    batch.cuts.push_back(cut);
  }
  const bool is_traced =
      std::any_of(due.begin(), due.end(), [](const Due& d) { return d.sequence->memory->trace != nullptr; });
  if (is_traced) {
    cutter_.set_observer([&](const Cut& done, ConstTensor kept, ConstTensor scores) {
      const Due& traced = due[static_cast<size_t>(&done - batch.cuts.data())];
      if (traced.sequence->memory->trace) trace_cut(traced, done, kept, scores);
    });
  }
  cutter_.run(batch.cuts);
  if (is_traced) cutter_.set_observer(nullptr);
  for (size_t i = 0; i < due.size(); ++i)
    set_lengths(due[i], batch.cuts[i], batch.numbers.data() + (i * kNumbers + kGone) * num_heads);
}

CacheCounters Evictor::counters(const Sequence& sequence) const {
  const SequenceMemory& memory = *sequence.memory;
  CacheCounters counters = memory.counters;
  const int64_t heads = model_.config.num_layers * model_.config.num_kv_heads;
  // Before the end of prefill some layers hold rows and others none: nothing is said.
  if (sequence.position > 0) {
    const int64_t rows = heads * sequence.position - memory.num_gone;
    counters.kept = static_cast<int32_t>((rows + heads - 1) / heads);
    counters.kept_max = sequence.position + memory.longest;
  }
  counters.bytes = memory.cache.num_pages * cache_.view().page_bytes +
                   static_cast<int64_t>(memory.cache.ids.size() + memory.cache.kv_len.size()) * 4;
  return counters;
}

}  // namespace restkv

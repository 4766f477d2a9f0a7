// Cuts that share a recipe and a window run as one batch of each op; the workspace, and what an op may have on the host, decide how
// many.
#include "engine/eviction/cut.h"

#include <algorithm>

namespace restkv {
namespace {

// The memory of one cut's steps; the same code counts and allocates.
struct CutMemory {
  Observation observation, probe_observation;
  Tensor scores;     // [K, N]
  Tensor smoothed;   // [K, N] where the recipe pools
  Tensor probe_raw;  // [K, N]
  Tensor probe;      // [K, N]
  Tensor kept;       // [K, cap] i32

  static CutMemory make(Arena& arena, const PolicyRecipe& recipe, const AttentionShape& shape, int64_t rows,
                        int64_t keep, int64_t queries, int64_t probe_queries, bool is_pooled,
                        bool with_logits) {
    CutMemory m;
    const int64_t k = shape.num_kv_heads;
    m.observation = Observation::make(arena, shape, recipe.score.kind, queries, rows, with_logits);
    m.scores = arena.tensor(DType::kF32, k, rows);
    if (is_pooled) m.smoothed = arena.tensor(DType::kF32, k, rows);
    if (probe_queries > 0) {
      m.probe_observation = Observation::make(arena, shape, ScoreKind::kIndicatorQuery, probe_queries, rows);
      m.probe_raw = arena.tensor(DType::kF32, k, rows);
      m.probe = arena.tensor(DType::kF32, k, rows);
    }
    m.kept = arena.tensor(DType::kI32, k, std::max<int64_t>(1, keep));
    return m;
  }
};

bool is_pooled(const Cut& cut) { return cut.is_prefill && cut.recipe->pool != PoolKind::kNone; }
bool has_probe(const Cut& cut) { return cut.is_prefill && !cut.probe.positions.empty(); }

int64_t max_rows(const Cut& cut, int32_t num_kv_heads) {
  int32_t most = 0;
  for (int32_t h = 0; h < num_kv_heads; ++h) most = std::max(most, cut.rows.num_rows(h));
  return most;
}

int64_t max_kept(const Cut& cut, int32_t num_kv_heads) {
  if (cut.share != nullptr) return max_rows(cut, num_kv_heads);
  return std::min<int64_t>(*std::max_element(cut.keep, cut.keep + num_kv_heads), max_rows(cut, num_kv_heads));
}

// The removal error of the probe's queries: their largest.
ScoreSpec probe_spec(const ScoreSpec& spec) {
  ScoreSpec out = spec;
  out.kind = ScoreKind::kIndicatorQuery;
  out.reduce = QueryReduce::kMax;
  return out;
}

CutMemory memory_of(Arena& arena, const Cut& cut, const AttentionShape& shape, bool with_logits) {
  return CutMemory::make(
      arena, *cut.recipe, shape, max_rows(cut, shape.num_kv_heads), max_kept(cut, shape.num_kv_heads),
      static_cast<int64_t>(cut.queries.positions.size()),
      has_probe(cut) ? static_cast<int64_t>(cut.probe.positions.size()) : 0, is_pooled(cut), with_logits);
}

int64_t memory_bytes(std::span<const Cut> cuts, const AttentionShape& shape, bool with_logits) {
  Arena arena = Arena::counting();
  for (const Cut& cut : cuts) memory_of(arena, cut, shape, with_logits);
  return arena.used();
}

// Heads share the layer once; from then on each is cut to its share.
SelectScope scope_of(const Cut& cut) {
  const SelectScope scope = cut.recipe->scope;
  return scope == SelectScope::kShare && cut.share == nullptr ? SelectScope::kHead : scope;
}

bool run_together(const Cut& a, const Cut& b) {
  return *a.recipe == *b.recipe && a.window == b.window && a.is_prefill == b.is_prefill &&
         scope_of(a) == scope_of(b) && has_probe(a) == has_probe(b);
}

}  // namespace

int64_t Cutter::workspace_bytes(const PolicyRecipe& recipe, const AttentionShape& shape, int64_t rows,
                                int64_t queries, int64_t probe) {
  Arena arena = Arena::counting();
  CutMemory::make(arena, recipe, shape, rows, rows, queries, probe, /*is_pooled=*/true,
                  /*with_logits=*/false);
  return arena.used();
}

int64_t Cutter::host_bytes(const Cut& cut, int32_t num_kv_heads) {
  constexpr int64_t kItemBytes =
      640;  // what an op says of an item beside its arrays, and what aligning these takes
  constexpr int64_t kArrays = 12;  // of K numbers, lengths and results
  int64_t numbers = kArrays * num_kv_heads;
  const auto add_table = [&](const auto& table) {
    if (table.pages != nullptr && table.resident == nullptr) numbers += int64_t{num_kv_heads} * table.stride;
  };
  add_table(cut.rows.pages);
  add_table(cut.destination);
  add_table(cut.queries.ring);
  add_table(cut.sums);
  numbers += static_cast<int64_t>(std::max(cut.queries.positions.size(), cut.probe.positions.size()));
  numbers += int64_t{num_kv_heads} * (cut.protect.pin_stride + cut.max_new_pins);
  return kItemBytes + 4 * numbers;
}

void Cutter::run(std::span<const Cut> cuts) {
  const int64_t max_host_bytes = backend_.max_op_bytes();
  size_t begin = 0;
  while (begin < cuts.size()) {
    Arena arena = Arena::counting();
    memory_of(arena, cuts[begin], shape_, false);
    int64_t on_host = host_bytes(cuts[begin], shape_.num_kv_heads);
    size_t end = begin + 1;
    for (; end < cuts.size() && run_together(cuts[begin], cuts[end]); ++end) {
      memory_of(arena, cuts[end], shape_, false);
      on_host += host_bytes(cuts[end], shape_.num_kv_heads);
      if (arena.used() > workspace_.cols || on_host > max_host_bytes) break;
    }
    run_group(cuts.subspan(begin, end - begin));
    begin = end;
  }
}

void Cutter::run_group(std::span<const Cut> cuts) {
  const PolicyRecipe& recipe = *cuts[0].recipe;
  const int32_t num_kv_heads = shape_.num_kv_heads;
  AttentionShape shape = shape_;
  shape.window = cuts[0].window;
  // What observe knows already score does not make again, where a cut between decode steps leaves room for it.
  const bool with_logits =
      backend_.keeps_logits() && !cuts[0].is_prefill && memory_bytes(cuts, shape_, true) <= workspace_.cols;
  Arena arena(static_cast<std::byte*>(workspace_.data), workspace_.cols);
  observes_.clear();
  probe_observes_.clear();
  scores_.clear();
  probe_scores_.clear();
  smooths_.clear();
  probe_smooths_.clear();
  selects_.clear();
  compacts_.clear();
  drift_rows_.resize(cuts.size() * static_cast<size_t>(num_kv_heads));
  for (size_t i = 0; i < cuts.size(); ++i) {
    const Cut& cut = cuts[i];
    const CutMemory memory = memory_of(arena, cut, shape_, with_logits);
    int32_t* drift_rows = drift_rows_.data() + i * static_cast<size_t>(num_kv_heads);
    for (int32_t h = 0; h < num_kv_heads; ++h) drift_rows[h] = std::max(1, cut.keep[h] - recipe.recent);
    const bool with_drift = recipe.needs_drift && cut.is_prefill;
    const ConstTensor projection = recipe.uses_projection ? cut.projection : ConstTensor{};
    const bool has_sums = cut.sums.pages != nullptr;
    // Heads of a layer need not be full at the same time. Those that keep their rows are scored for who looks at the scores.
    const bool by_head = !cut.is_prefill && !has_sums && !observer_ && scope_of(cut) == SelectScope::kHead;
    const int32_t* scored_keep = by_head ? cut.keep : nullptr;
    observes_.push_back({.rows = cut.rows,
                         .queries = cut.queries,
                         .projection = projection,
                         .window_rows = recipe.recent,
                         .drift_rows = with_drift ? drift_rows : nullptr,
                         .keep = scored_keep,
                         .out = memory.observation});
    const ConstTensor raw = cut.attention_sums ? cut.attention_sums : ConstTensor(memory.scores);
    scores_.push_back({.rows = cut.rows,
                       .queries = cut.queries,
                       .projection = projection,
                       .window_rows = recipe.recent,
                       .head_rows = recipe.sinks,
                       .layer = cut.layer,
                       .sums = has_sums && !cut.is_prefill ? &cut.sums : nullptr,
                       .protect = is_pooled(cut) ? ProtectedRows{} : cut.protect,
                       .keep = scored_keep,
                       .observation = memory.observation,
                       .out = memory.scores});
    SelectItem select{.rows = cut.rows,
                      .scores = {raw, {}, {}},
                      .num_scores = 1,
                      .keep = cut.keep,
                      .protect = cut.protect,
                      .floor = cut.share_floor,
                      .slack = cut.share_slack,
                      .share = cut.share,
                      .kept = memory.kept,
                      .kept_len = cut.kept_len,
                      .num_dead = cut.num_dead,
                      .non_finite = cut.non_finite,
                      .max_new_pins = cut.max_new_pins,
                      .new_pins = cut.new_pins,
                      .num_new_pins = cut.num_new_pins};
    if (is_pooled(cut)) {
      smooths_.push_back({.rows = cut.rows,
                          .in = raw,
                          .out = memory.smoothed,
                          .window_rows = recipe.recent,
                          .num_queries = static_cast<int32_t>(cut.queries.positions.size()),
                          .observation = memory.observation});
      if (recipe.interleave) {
        select.scores[static_cast<size_t>(select.num_scores++)] = memory.smoothed;
      } else {
        select.scores[0] = memory.smoothed;
      }
    }
    if (has_probe(cut)) {
      probe_observes_.push_back({.rows = cut.rows,
                                 .queries = cut.probe,
                                 .projection = projection,
                                 .out = memory.probe_observation});
      probe_scores_.push_back({.rows = cut.rows,
                               .queries = cut.probe,
                               .projection = projection,
                               .layer = cut.layer,
                               .observation = memory.probe_observation,
                               .out = memory.probe_raw});
      probe_smooths_.push_back({.rows = cut.rows, .in = memory.probe_raw, .out = memory.probe});
      select.scores[static_cast<size_t>(select.num_scores++)] = memory.probe;
    }
    selects_.push_back(select);
    compacts_.push_back({.rows = cut.rows,
                         .kept = memory.kept,
                         .kept_len = cut.kept_len,
                         .destination = cut.destination,
                         .scores = raw,
                         .sums = cut.sums,
                         .moved = cut.moved});
  }

  const bool given = static_cast<bool>(cuts[0].attention_sums);
  if (needs_observation(recipe.score.kind) && !given) {
    backend_.observe({.shape = shape, .spec = recipe.score, .items = observes_, .cache = cache_});
  }
  if (!given) backend_.score({.shape = shape, .spec = recipe.score, .items = scores_, .cache = cache_});
  if (!smooths_.empty()) {
    backend_.smooth({.shape = shape,
                     .kind = recipe.pool,
                     .kernel = recipe.kernel,
                     .scale = recipe.scale,
                     .items = smooths_});
  }
  if (!probe_observes_.empty()) {
    const ScoreSpec spec = probe_spec(recipe.score);
    backend_.observe({.shape = shape, .spec = spec, .items = probe_observes_, .cache = cache_});
    backend_.score({.shape = shape, .spec = spec, .items = probe_scores_, .cache = cache_});
    backend_.smooth(
        {.shape = shape, .kind = PoolKind::kForward, .kernel = recipe.kernel, .items = probe_smooths_});
  }
  backend_.select(
      {.num_kv_heads = num_kv_heads, .scope = scope_of(cuts[0]), .items = selects_, .cache = cache_});
  if (observer_) {
    backend_.synchronize();
    for (size_t i = 0; i < cuts.size(); ++i) observer_(cuts[i], selects_[i].kept, selects_[i].scores[0]);
  }
  backend_.compact({.shape = shape, .items = compacts_, .cache = cache_});
}

void Cutter::add_queries(const RowSource& rows, const QuerySource& queries, int32_t window, Tensor sums) {
  AttentionShape shape = shape_;
  shape.window = window;
  Arena arena(static_cast<std::byte*>(workspace_.data), workspace_.cols);
  int64_t most = 0;
  for (int32_t h = 0; h < shape.num_kv_heads; ++h) most = std::max<int64_t>(most, rows.num_rows(h));
  const Observation observation = Observation::make(arena, shape, ScoreKind::kAttention,
                                                    static_cast<int64_t>(queries.positions.size()), most);
  const ScoreSpec spec{.kind = ScoreKind::kAttention};
  const ObserveItem observe{.rows = rows, .queries = queries, .out = observation};
  backend_.observe({.shape = shape, .spec = spec, .items = {&observe, 1}, .cache = cache_});
  const ScoreItem score{
      .rows = rows, .queries = queries, .accumulate = true, .observation = observation, .out = sums};
  backend_.score({.shape = shape, .spec = spec, .items = {&score, 1}, .cache = cache_});
}

ProtectedRows protection_of(const PolicyRecipe& recipe, const CacheSettings& settings, int64_t prompt_len,
                            bool is_windowed_layer) {
  ProtectedRows protect;
  protect.recent = recipe.recent;
  if (is_windowed_layer) return protect;
  protect.head_end = std::max(recipe.sinks, settings.pin_head);
  if (settings.pin_tail > 0) {
    protect.tail_end = static_cast<int32_t>(prompt_len);
    protect.tail_begin = static_cast<int32_t>(std::max<int64_t>(0, prompt_len - settings.pin_tail));
  }
  return protect;
}

}  // namespace restkv

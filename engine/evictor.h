// Keeps every sequence within its budget: says what a sequence reserves, cuts a prompt's layers as prefill finishes them,
// keeps the query rings, and cuts what became full between two steps. Which rows stay is the recipe's business
// (eviction/policy.h); when, is a pure function of the sequence's own numbers.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "engine/eviction/allocation_file.h"
#include "engine/eviction/cut.h"
#include "engine/eviction/projections.h"
#include "engine/model/weights.h"
#include "engine/sequence.h"
#include "engine/sequence_memory.h"

namespace restkv {

struct EvictionTotals {
  std::array<int64_t, kNumPolicies> evicted{};  // rows, by PolicyKind
  int64_t events = 0, nan_rows = 0;
};

class Evictor {
 public:
  // `weights`: where the backend's ops find them. `workspace` [1, workspace_bytes] u8.
  Evictor(const Model& model, const WeightViews& weights, Backend& backend, KvCache& cache, Tensor workspace,
          int64_t max_model_len);
  static int64_t workspace_bytes(const ModelConfig& config, int64_t max_model_len);
  // The longest window a request may ask for, and so the most queries that observe at once beside a prefill unit's.
  static constexpr int32_t kMaxWindow = 1024;

  // Budget, recipe and reservation of a sequence with these numbers. `tables`: not null where `settings` are calibrated.
  static void plan(const ModelConfig& config, const AllocationTables* tables, const CacheSettings& settings,
                   int64_t prompt_len, int64_t max_tokens, SequenceMemory& memory);
  // Where traces take their memory; null: nothing bounds them together.
  void set_trace_room(TraceRoom* room) { trace_room_ = room; }
  // Counters and flags of a sequence that was just admitted.
  void admit(SequenceMemory& memory, int32_t prompt_len) const;

  // How many of a prompt's last queries `finish_layer` needs; those of the probe's rows follow them.
  static int64_t tail_queries(const Sequence& sequence);
  // Whether all of a prompt's queries have to be summed in this layer (h2o).
  bool sums_queries(const Sequence& sequence, int64_t layer) const {
    return sequence.memory->recipe.needs_sums() && scores_layer(*sequence.memory, layer);
  }
  // Adds the attention of prompt rows [first, first + q.rows) to sums [K, >= first + q.rows].
  void add_queries(int64_t layer, ConstTensor k, ConstTensor v, ConstTensor q, int64_t first, Tensor sums);
  // All rows of a prompt's prefill stand in scratch (k, v without the probe's), behind those read from the prefix cache: the
  // survivors go to the pages. Enqueued, as `cut` is: count_prefill.
  // tail [tail_queries + probe_len, H*D]: the last rows' queries and the probe's; sums: h2o's.
  void finish_layer(Sequence& sequence, int64_t layer, const RowSource& rows, ConstTensor tail,
                    ConstTensor sums);

  // Queries of decode rows [T, H*D] go to the rings of sequences that have one.
  struct Rows {
    Sequence* sequence;
    int64_t row_begin, num_rows;
  };
  void store_queries(int64_t layer, ConstTensor q, std::span<const int32_t> positions,
                     std::span<const Rows> rows);
  // One layer that is full once `tokens` tokens of the sequence have their entries there.
  struct Due {
    Sequence* sequence;
    int64_t layer;
    int32_t tokens;
  };
  // Cuts from start to count.
  struct CutBatch {
    std::vector<Due> due;  // sequence null: it was released since
    std::vector<Cut> cuts;
    std::vector<int32_t> numbers;  // [cuts, kNumbers, K]
    std::vector<int64_t> moved;    // [cuts, K]
    std::vector<int32_t> pins;     // of the one cut of a prompt's layer: [K, pin_stride], then [K] how many
  };
  // Cuts every head that is full, in one batch, enqueued. How long heads are is known at once (but where heads share a layer's
  // rows out, and where a trace is written: these wait); what went, what was not a number and the pins are counted and taken
  // when the backend has been waited for.
  void cut(std::span<const Due> due);
  // The backend has been waited for: counts all that finish_layer and cut have enqueued.
  void count_prefill();
  // A failure: nothing of it comes any more, and nobody looks at the cut that was in work.
  void forget_prefill() {
    num_waiting_ = 0;
    cutter_.set_observer(nullptr);
  }
  // It is released, and what is enqueued for it counts no more.
  void forget(const Sequence& sequence);
  // After a step: the same for every layer of `sequences` that is full; counted by the caller.
  void start_cuts(std::span<Sequence* const> sequences, CutBatch& batch);
  void count_cuts(CutBatch& batch);
  // Rows that every head of the layer still takes, when `tokens` tokens are there.
  static int32_t room(const Sequence& sequence, int64_t layer, int32_t tokens) {
    return sequence.memory->full_at[static_cast<size_t>(layer)] - tokens;
  }

  CacheCounters counters(const Sequence& sequence) const;
  // Of all sequences, since the start; counted where rows moved.
  const EvictionTotals& totals() const { return totals_; }

 private:
  // A layer of which every row stays.
  void keep_all(SequenceMemory& memory, int64_t layer, const RowSource& rows);
  bool scores_layer(const SequenceMemory& memory, int64_t layer) const;
  // Arrays of K in CutBatch::numbers, kNumbers for each cut.
  enum Number { kKeep, kKeptLen, kNumDead, kNonFinite, kShareOut, kGone, kNumbers };

  // Where the next cuts of prefill go; num_waiting_ counts them when they are enqueued.
  CutBatch& next_waiting();
  void run(CutBatch& batch);
  // The parts of a cut that prefill and decode share. numbers [kNumbers, K], moved [K]: its own.
  Cut make_cut(const Due& due, int32_t* numbers, int64_t* moved, bool is_prefill);
  // The heads are as long as the cut leaves them.
  void set_lengths(const Due& due, const Cut& cut, int32_t* gone);
  void count_cut(const Due& due, const Cut& cut, const int32_t* gone);
  int32_t rows_until_full(const SequenceMemory& memory, int64_t layer) const;
  // Before its rows move.
  void trace_cut(const Due& due, const Cut& cut, ConstTensor kept, ConstTensor scores);
  // What follows from the lengths of a layer after a cut (full_at, longest).
  void note_lengths(const Due& due);
  int32_t window_of(int64_t layer) const { return model_.config.layers[static_cast<size_t>(layer)].window; }
  std::span<const int32_t> positions(int64_t begin, int64_t end) const {
    return std::span(all_positions_).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  }

  const Model& model_;
  Backend& backend_;
  KvCache& cache_;
  Cutter cutter_;
  Projections projections_;
  std::vector<int32_t> all_positions_;  // 0 .. max_model_len - 1

  // Of prefill, and of rows that are fed: the first num_waiting_ are enqueued and not counted. Their arrays stay where they are.
  std::deque<CutBatch> waiting_;
  size_t num_waiting_ = 0;
  std::vector<StoreQueriesSegment> segments_;
  TraceRoom* trace_room_ = nullptr;
  std::vector<TraceWriter::HeadRows> traced_;
  std::vector<int32_t> traced_kept_;
  std::vector<float> traced_scores_;
  EvictionTotals totals_;
};

}  // namespace restkv

// Turns batches into ops: assembles rows and segments, runs the transformer, moves K and V into pages,
// samples. Owns the page pool, the workspace and the scratch arena; the sequences' memory hangs on them but
// is only looked into here.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/batch.h"
#include "engine/cache/kv_cache.h"
#include "engine/engine.h"
#include "engine/evictor.h"
#include "engine/model/transformer.h"
#include "engine/prompt_feed.h"
#include "engine/prompt_prefix.h"
#include "engine/scheduler.h"
#include "engine/sequence_memory.h"
#include "engine/step_buffers.h"

namespace restkv {

struct StepResult {
  Sequence* sequence = nullptr;
  const SampleResult* sample = nullptr;  // its next token
  const CacheCounters* cache = nullptr;  // behind that step
};

// Rows [first_row, first_row + logits.rows) of a sequence as they are computed; all rows are computed while
// it is set.
using LogitsObserver = std::function<void(const Sequence& sequence, int64_t first_row, ConstTensor logits)>;

// Before tokens are drawn: logits [B, V] of the sequences that draw, as the model gave them.
using DrawObserver = std::function<void(std::span<Sequence* const> sequences, ConstTensor logits)>;

// Time spent in observe ... compact and in filling rings, in seconds: of an asynchronous backend what it takes to enqueue them,
// else to the end.
struct EvictionSeconds {
  double prefill = 0, decode = 0;
};

class Executor final : public SequenceHost {
 public:
  Executor(const Model& model, Backend& backend, const EngineOptions& options, const MemoryPlan& plan);
  // Waits for what is enqueued: it reads and writes this memory.
  ~Executor() override;

  // What the parts take; the same code as the construction. Errors name the setting to change.
  static Result<MemoryPlan> plan(const Model& model, Backend& backend, const EngineOptions& options,
                                 int64_t available_bytes);

  // Budget and reservation of a sequence that was just queued; before can_admit.
  void prepare(Sequence& sequence) const;
  // Pages a request with these numbers reserves; any thread.
  int64_t pages_for(const CacheSettings& settings, int64_t prompt_len, int64_t max_tokens) const;
  // And each further choice.
  int64_t pages_for_more(const CacheSettings& settings, int64_t prompt_len, int64_t max_tokens) const;
  bool can_admit(const Choices& choices) const override;
  bool can_admit(const Sequence& sequence) const;
  void admit(const Choices& choices) override;
  void admit(Sequence& sequence);
  void release(Sequence& sequence) override;
  bool can_start_prefill(const Sequence& sequence, bool may_use_open) const override;
  void start_prefill(Sequence& sequence, bool may_use_open) override;
  void hand_over(Sequence& from, Sequence& to) override;
  // Rows that may still be fed.
  int32_t max_feed_rows(const Sequence& sequence) const { return sequence.max_entries() - sequence.position; }
  CacheCounters cache_counters(const Sequence& sequence) const;

  // A step in two halves. start_step enqueues it, and behind it the cuts of what it fills; finish_step waits for the oldest that
  // was started.
  // `results` has one entry for each sequence whose next token was drawn (not while its prompt is still fed) and that was not
  // released since; valid until the second start_step from now.
  void start_step(const StepBatch& batch);
  void finish_step(std::vector<StepResult>& results);
  void run_step(const StepBatch& batch, std::vector<StepResult>& results) {
    start_step(batch);
    finish_step(results);
  }
  bool runs_beside() const { return backend_.is_asynchronous(); }  // the host may go on while it computes
  int32_t num_steps() const { return num_steps_; }                 // started and not finished
  // Whether a step of `batch` can be enqueued behind one in flight, and be left in flight itself: nothing of its draw depends
  // on a token that the host has not seen.
  bool can_run_ahead(const StepBatch& batch) const;
  // Those whose tokens steps in flight draw, appended.
  void append_in_flight(std::vector<Sequence*>& sequences) const;
  // After a failure: steps in flight have no results.
  void forget_steps();
  // One unit; the last unit of the last layer draws the first token, if that was the whole prompt. start_unit enqueues it behind
  // others, as long as none of them has drawn (num_steps() == 0); finish_units waits for all.
  void start_unit(const PrefillUnit& unit);
  void finish_units(std::vector<StepResult>& results);
  void run_unit(const PrefillUnit& unit, std::vector<StepResult>& results) {
    start_unit(unit);
    finish_units(results);
  }

  // A prompt by itself, without a scheduler: in one step where it fits, else in units as long as a step may be.
  void prefill(Sequence& leader, std::vector<StepResult>& results);

  // Where a row of logits gave no token (SampleResult::is_nan): the model's fault, or the request's that bans all.
  Status why_not_drawn(const Sequence& sequence) const;
  // The token joins the counts that the penalties use.
  void count_token(Sequence& sequence, int32_t token);

  void set_logits_observer(LogitsObserver observer) { observer_ = std::move(observer); }
  void set_trace_room(TraceRoom* room) { evictor_.set_trace_room(room); }
  void set_draw_observer(DrawObserver observer) { draw_observer_ = std::move(observer); }
  const EvictionSeconds& eviction_seconds() const { return eviction_seconds_; }
  const PagePool& pool() const { return cache_.pool(); }
  int32_t page_slots() const { return cache_.view().slots; }
  const PrefixCache& prefixes() const { return prefixes_.cache(); }
  void clear_prefixes() { prefixes_.clear(); }
  const KvCache& cache() const { return cache_; }
  const EvictionTotals& eviction_totals() const { return evictor_.totals(); }
  const ScratchArena& scratch() const { return scratch_; }

 private:
  // A step from start_step to finish_step.
  struct StepInFlight {
    std::vector<Sequence*> drawing;     // null: released since
    std::vector<SampleResult> samples;  // [logit_rows], by drawing
    std::vector<CacheCounters> cache;   // by drawing
    Evictor::CutBatch cuts;
    bool is_whole = false;  // enqueued as one and can be waited for alone
  };
  struct ScratchRows {
    Tensor residual;  // [T, M]
    Tensor k, v;      // [T, K*D]
  };
  int64_t pages_of(const Choices& choices) const;
  // Entries of the first choice's prompt that the others hold too.
  int32_t shared_entries(const SequenceMemory& memory) const;
  void begin(Sequence& sequence);
  // Prompts whose first token this step or unit drew: what they wrote for the prefix cache is there, unless it is NaN.
  void end_prefixes(const StepInFlight& step);
  ScratchRows scratch_rows(const SequenceMemory& memory) const;
  // A layer of a whole short prompt is done: rows [row, ..) of the step.
  void finish_prompt_layer(Sequence& sequence, int64_t layer, int64_t row, ConstTensor k, ConstTensor v);
  // All rows of a layer are done: cut for every sequence of the prefill group. tail: at least the rows they need,
  // and the leader's probe.
  void cut_layer(Sequence& leader, int64_t layer, ConstTensor k, ConstTensor v, ConstTensor tail,
                 Tensor sums);  // k, v from first_row on
  // Prefill is done: of the group, those whose whole prompt it was draw from `row` of the residual.
  void finish_prefill(Sequence& leader, int32_t row, StepInFlight& step);
  // Tokens that must not be drawn behind `num_drawn` others: end tokens before min_tokens, the last tokens of bad words.
  void collect_banned(const Sequence& sequence, int32_t num_drawn, std::vector<int32_t>& banned) const;
  // Ids of prefill rows [begin, begin + count): prompt tokens, then the probe's. Appended to ids_.
  void append_prefill_ids(const Sequence& sequence, int64_t begin, int64_t count);
  // Prompt log probabilities and the observer: logits of rows [first_row, +residual.rows) of `sequence`.
  void look_at_rows(Sequence& sequence, int64_t first_row, const Tensor& residual);
  StepInFlight& open_step();
  // As many rows as the backend likes in a step of decode rows (ids_, positions_).
  void fill_up_step();
  // Draws for the sequences in `step.drawing` from the rows rows_ of `residual`.
  void draw(const Tensor& residual, StepInFlight& step);
  static bool draws_alone(const Sequence& sequence);

  const Model& model_;
  Backend& backend_;
  std::unique_ptr<DeviceBuffer> weights_memory_;  // null where the mapped files serve
  WeightViews weights_;
  const std::shared_ptr<const AllocationTables> allocation_;
  KvCache cache_;
  std::unique_ptr<DeviceBuffer> workspace_memory_;
  Arena workspace_;
  Transformer transformer_;
  StepBuffers buffers_;
  Evictor evictor_;
  PromptFeed feed_;
  PromptPrefixes prefixes_;
  std::unique_ptr<DeviceBuffer> scratch_memory_;
  ScratchArena scratch_;
  std::vector<int32_t> sequence_positions_;  // 0 .. max_model_len - 1
  LogitsObserver observer_;
  DrawObserver draw_observer_;
  EvictionSeconds eviction_seconds_;

  // Step state, reused so that a step allocates nothing once it has seen its largest batch.
  std::vector<int32_t> ids_, positions_, rows_;
  std::vector<StoreSegment> stores_;
  std::vector<PrefillSegment> prefills_;
  std::vector<DecodeSegment> decodes_;
  std::vector<Sequence*> decoding_;
  std::vector<Evictor::Rows> decode_rows_;
  std::vector<SampleRow> sample_rows_;
  std::array<StepInFlight, 2> steps_;
  int32_t first_step_ = 0, num_steps_ = 0;
  std::vector<std::vector<int32_t>> banned_;  // by row
};

}  // namespace restkv

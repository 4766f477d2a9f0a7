// Decides who runs; includes no tensor or backend header. Sequences are admitted in order of arrival and are
// never preempted: admission takes everything a sequence can ever need. Engine thread only.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "engine/batch.h"

namespace restkv {

// The memory the scheduler asks for; the executor implements it. can_x() and x() come in pairs.
class SequenceHost {
 public:
  virtual ~SequenceHost() = default;
  virtual bool can_admit(const Sequence& sequence) const = 0;
  virtual void admit(Sequence& sequence) = 0;
  virtual void release(Sequence& sequence) = 0;  // any state since admission
  // Scratch for a long prompt, taken whole when its prefill starts.
  virtual bool can_start_prefill(const Sequence& sequence) const = 0;
  virtual void start_prefill(Sequence& sequence) = 0;
};

struct SchedulerOptions {
  int32_t max_num_seqs = 32;
  int32_t max_num_batched_tokens = 512;
  int32_t unit_rows_beside_decode = 128;  // rows of a prefill unit while others generate
  int32_t num_layers = 1;
};

class Scheduler {
 public:
  Scheduler(const SchedulerOptions& options, SequenceHost& host);

  void enqueue(std::unique_ptr<Sequence> sequence);
  // Moves sequences from the queue to prefill while the host has room; `admitted` gets them.
  void admit(std::vector<Sequence*>& admitted);
  // The next step: all decode rows, and short prompts behind them as far as rows allow. May be empty.
  void plan_step(StepBatch& batch) const;
  // The next unit of the long prompt that is in work; sequence null: none.
  PrefillUnit plan_unit();
  // A unit was executed: moves the prompt's cursor; true when its last layer is done.
  bool finish_unit(const PrefillUnit& unit);
  // A sequence ended: gives its memory back and takes it out. The sequence is returned for its last records.
  std::unique_ptr<Sequence> retire(Sequence* sequence);

  bool empty() const { return queue_.empty() && running_.empty(); }
  const std::deque<std::unique_ptr<Sequence>>& queue() const { return queue_; }
  const std::vector<std::unique_ptr<Sequence>>& running() const { return running_; }
  // Prompts up to this length run whole within a step, beside max_num_seqs decode rows.
  int32_t short_prompt_rows() const { return options_.max_num_batched_tokens - options_.max_num_seqs; }

 private:
  SchedulerOptions options_;
  SequenceHost& host_;
  std::deque<std::unique_ptr<Sequence>> queue_;     // not admitted yet, in order of arrival
  std::vector<std::unique_ptr<Sequence>> running_;  // admitted, in order of admission
  Sequence* in_prefill_ = nullptr;                  // the long prompt that holds scratch
};

}  // namespace restkv

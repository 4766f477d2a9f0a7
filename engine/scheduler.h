// Decides who runs; includes no tensor or backend header. A request is admitted with everything its choices can ever need
// and is never preempted. The queue is ordered by a key that is fixed on arrival, and its head is never passed:
//   shortest  arrival + predicted running time: short ones first, but nobody waits for more than those that arrive
//             within its own running time ("ageing" without ever sorting again); an old long prompt whose prefill runs
//             leaves every second unit to much shorter ones
//   fifo      arrival
//   priority  Request::priority, lower first; equal ones by arrival
// O(log n) for each queued request. Engine thread only.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "engine/batch.h"
#include "engine/cost_model.h"

namespace restkv {

// The choices of one request that are still wanted.
using Choices = std::vector<std::unique_ptr<Sequence>>;

// The memory the scheduler asks for; the executor implements it. can_x() and x() come in pairs.
class SequenceHost {
 public:
  virtual ~SequenceHost() = default;
  virtual bool can_admit(const Choices& choices) const = 0;  // all of them
  virtual void admit(const Choices& choices) = 0;
  virtual void release(Sequence& sequence) = 0;  // any state since admission
  // Scratch for a long prompt, taken whole when its prefill starts. `may_use_open`: false while a longer prompt waits for
  // the part of the scratch that is open to all.
  virtual bool can_start_prefill(const Sequence& sequence, bool may_use_open) const = 0;
  virtual void start_prefill(Sequence& sequence, bool may_use_open) = 0;
  // The leader of a prefill group goes before its prefill is done: `to`, a follower, goes on with what it holds.
  virtual void hand_over(Sequence& from, Sequence& to) = 0;
};

struct SchedulerOptions {
  int32_t max_num_seqs = 32;
  int32_t max_num_batched_tokens = 512;
  int32_t num_layers = 1;
  SchedulingPolicy policy = SchedulingPolicy::kShortest;
  // How long the units of a turn may take together while nothing decodes, if they are more than one: so long an arrival or a
  // cancel may have to wait for the turn. They leave no gap between each other on a device that works beside the host.
  double alone_seconds = 0;
};

class Scheduler {
 public:
  // `cost` may be fitted while the scheduler runs.
  Scheduler(const SchedulerOptions& options, const CostModel& cost, SequenceHost& host);

  // All choices of one request; they are admitted together.
  void enqueue(Choices choices, Clock::time_point now);
  // Moves requests from the queue to prefill while the host has room; `admitted` gets their sequences.
  void admit(std::vector<Sequence*>& admitted);
  // The next step: all decode rows, rows of prompts that are fed, and short prompts behind them as far as rows and time
  // allow. May be empty. While a step is in flight: those of it whose answer goes on whatever it draws, and what joins them.
  void plan_step(StepBatch& batch);
  // The next unit of a long prompt within this turn; sequence null: none. While others decode, the units of a turn together
  // take about as long as its step, longer where more prompts wait than sequences decode; else one, or as many as
  // alone_seconds have room for.
  PrefillUnit plan_unit();
  // A unit was executed, or enqueued: moves the prompt's cursor; true when its last layer is done.
  bool finish_unit(const PrefillUnit& unit);
  // Prefill is done, but not the whole prompt (compress_at).
  void start_feed(Sequence& sequence);
  // A sequence drew its first token.
  void start_decode(Sequence& sequence);
  // A sequence ended: gives its memory back and takes it out. The sequence is returned for its last records.
  std::unique_ptr<Sequence> retire(Sequence* sequence);

  bool empty() const { return queue_.empty() && running_.empty(); }
  bool has_prompts() const { return !prompts_.empty(); }  // admitted, and their prefill is not done
  const std::vector<std::unique_ptr<Sequence>>& running() const { return running_; }
  int64_t num_waiting() const { return num_waiting_; }
  int64_t waiting_tokens() const { return waiting_tokens_; }  // prompt tokens of all waiting choices
  // The choices that are admitted next; empty where nobody waits.
  std::vector<Sequence*> first_queued() const;
  // All queued sequences, in order.
  template <class Visit>
  void for_each_queued(Visit&& visit) const {
    for (const auto& [key, choices] : queue_)
      for (const auto& sequence : choices) visit(*sequence);
  }
  // Prompts up to this length may run whole within a step, beside max_num_seqs decode rows.
  int32_t short_prompt_rows() const { return options_.max_num_batched_tokens - options_.max_num_seqs; }
  // Entries that a sequence's next decode row reads, about.
  static int64_t decode_entries(const Sequence& sequence);

 private:
  ScheduleKey key_of(const Sequence& sequence, Clock::time_point now);
  // Of the rows that a prompt still has to compute.
  double remaining_seconds(const Sequence& sequence) const;
  void start_waiting_prefills();
  Sequence* next_in_work() const;
  // Its part of the group's prefill is done.
  void end_prefill(Sequence& sequence);
  void leave_group(Sequence& sequence);

  SchedulerOptions options_;
  const CostModel& cost_;
  SequenceHost& host_;
  std::map<ScheduleKey, Choices> queue_;            // not admitted yet
  std::vector<std::unique_ptr<Sequence>> running_;  // admitted; Sequence::index says where
  std::vector<Sequence*> prompts_;                  // leaders whose prefill is not done, by key
  int64_t num_waiting_ = 0, waiting_tokens_ = 0;
  uint64_t num_arrived_ = 0;
  Clock::time_point start_{};  // of the first arrival
  // Of the turn that plan_step began.
  bool others_decode_ = false, has_unit_ = false;
  double seconds_left_ = 0;  // for prompts
  bool gives_way_ = false;   // an old prompt, to a much shorter one; every second unit
};

}  // namespace restkv

// First come, first served; one long prompt at a time, its units between the steps of the others.
#include "engine/scheduler.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace restkv {

Scheduler::Scheduler(const SchedulerOptions& options, SequenceHost& host) : options_(options), host_(host) {
  CHECK(options.max_num_batched_tokens > options.max_num_seqs);
}

void Scheduler::enqueue(std::unique_ptr<Sequence> sequence) { queue_.push_back(std::move(sequence)); }

void Scheduler::admit(std::vector<Sequence*>& admitted) {
  while (!queue_.empty() && static_cast<int32_t>(running_.size()) < options_.max_num_seqs &&
         host_.can_admit(*queue_.front())) {
    Sequence& sequence = *queue_.front();
    host_.admit(sequence);
    sequence.phase = SequencePhase::kPrefill;
    admitted.push_back(&sequence);
    running_.push_back(std::move(queue_.front()));
    queue_.pop_front();
  }
}

void Scheduler::plan_step(StepBatch& batch) const {
  batch.clear();
  int32_t rows = 0;
  for (const auto& sequence : running_) {
    if (sequence->phase != SequencePhase::kDecode) continue;
    batch.decodes.push_back({sequence.get(), 1});
    ++rows;
  }
  for (const auto& sequence : running_) {
    if (sequence->phase != SequencePhase::kPrefill || sequence->prompt_len > short_prompt_rows()) continue;
    if (rows + sequence->prompt_len > options_.max_num_batched_tokens) break;
    batch.prompts.push_back(sequence.get());
    rows += sequence->prompt_len;
  }
}

PrefillUnit Scheduler::plan_unit() {
  if (!in_prefill_) {
    for (const auto& sequence : running_) {
      if (sequence->phase != SequencePhase::kPrefill || sequence->prompt_len <= short_prompt_rows()) continue;
      if (!host_.can_start_prefill(*sequence)) return {};
      host_.start_prefill(*sequence);
      in_prefill_ = sequence.get();
      break;
    }
    if (!in_prefill_) return {};
  }
  const bool others_decode = std::any_of(running_.begin(), running_.end(), [](const auto& sequence) {
    return sequence->phase == SequencePhase::kDecode;
  });
  const int32_t rows = others_decode
                           ? std::min(options_.unit_rows_beside_decode, options_.max_num_batched_tokens)
                           : options_.max_num_batched_tokens;
  return {in_prefill_, in_prefill_->unit_layer, in_prefill_->unit_row,
          std::min(rows, in_prefill_->prompt_len - in_prefill_->unit_row)};
}

bool Scheduler::finish_unit(const PrefillUnit& unit) {
  Sequence& sequence = *unit.sequence;
  sequence.unit_row = unit.row_begin + unit.num_rows;
  if (sequence.unit_row < sequence.prompt_len) return false;
  sequence.unit_row = 0;
  if (++sequence.unit_layer < options_.num_layers) return false;
  in_prefill_ = nullptr;
  return true;
}

std::unique_ptr<Sequence> Scheduler::retire(Sequence* sequence) {
  if (in_prefill_ == sequence) in_prefill_ = nullptr;
  const auto is_it = [sequence](const auto& other) { return other.get() == sequence; };
  std::unique_ptr<Sequence> retired;
  if (const auto it = std::find_if(running_.begin(), running_.end(), is_it); it != running_.end()) {
    host_.release(*sequence);
    retired = std::move(*it);
    running_.erase(it);
  } else {
    const auto queued = std::find_if(queue_.begin(), queue_.end(), is_it);
    CHECK(queued != queue_.end()) << "a sequence was retired twice";
    retired = std::move(*queued);
    queue_.erase(queued);
  }
  retired->phase = SequencePhase::kFinished;
  return retired;
}

}  // namespace restkv

// One turn after the other: what ends, what is admitted, what runs, and what a device failure takes with it.
#include "engine/engine_core.h"

#include <algorithm>
#include <numeric>

#include "engine/device.h"

namespace restkv {
namespace {

constexpr double kAloneSeconds = 6e-3;  // of units in one turn, where nobody waits for a token

}  // namespace

EngineCore::EngineCore(const Model& model, const EngineOptions& options, const MemoryPlan& plan,
                       Backend& backend, Now now)
    : model_(model),
      plan_(plan),
      options_(options),
      now_(std::move(now)),
      traces_({.max_bytes = static_cast<size_t>(options.trace_memory)}),
      executor_(model, backend, options_, plan_),
      cost_(static_cast<int32_t>(model.config.num_layers)),
      scheduler_({.max_num_seqs = options.max_num_seqs,
                  .max_num_batched_tokens = options.max_num_batched_tokens,
                  .num_layers = static_cast<int32_t>(model.config.num_layers),
                  .policy = options.scheduling,
                  .alone_seconds = executor_.runs_beside() ? kAloneSeconds : 0},
                 cost_, executor_) {
  executor_.set_trace_room(&traces_);
}

void EngineCore::accept(const std::shared_ptr<RequestHandle>& handle) {
  const Request& request = handle->request;
  const Clock::time_point now = now_();
  InFlight& record = in_flight_[handle.get()];
  record.handle = handle;
  Choices choices;
  for (int32_t choice = 0; choice < request.num_choices; ++choice) {
    auto sequence = std::make_unique<Sequence>();
    sequence->handle = handle;
    sequence->choice = choice;
    sequence->prompt_len = static_cast<int32_t>(request.prompt.size());
    sequence->tokens.reserve(request.prompt.size() + static_cast<size_t>(request.max_tokens));
    sequence->tokens = request.prompt;
    sequence->queued = now;
    executor_.prepare(*sequence);
    record.open.push_back(sequence.get());
    choices.push_back(std::move(sequence));
  }
  if (request.timeout.count() > 0) deadlines_.emplace(request.arrival + request.timeout, handle.get());
  scheduler_.enqueue(std::move(choices), now);
  trace_.add(counters_.steps, TurnTrace::Event::kArrive,
             static_cast<int64_t>(record.open.front()->key.arrival), request.num_choices,
             static_cast<int64_t>(request.prompt.size()));
  end_cancelled(record);  // those that were cancelled before the engine knew them
}

void EngineCore::end_cancelled(InFlight& request) {
  ended_.clear();
  for (Sequence* sequence : request.open)
    if (sequence->is_cancelled()) ended_.push_back(sequence);
  for (Sequence* sequence : ended_) finish(sequence, FinishReason::kCancelled, -1, {});
}

void EngineCore::drop_ended() {
  if (cancels_->take(cancelled_)) {
    for (const RequestHandle* handle : cancelled_) {
      const auto found = in_flight_.find(handle);
      if (found != in_flight_.end()) end_cancelled(found->second);
    }
  }
  while (!deadlines_.empty() && deadlines_.begin()->first < now_()) {
    const std::vector<Sequence*> open = in_flight_.at(deadlines_.begin()->second).open;
    for (Sequence* sequence : open) {
      finish(sequence, FinishReason::kError, -1,
             Status(StatusCode::kDeadlineExceeded, "the request ran longer than its timeout"));
    }
  }
}

void EngineCore::turn() {
  in_work_.clear();
  drop_ended();
  try {
    if (is_healthy_) admit();
    if (executor_.num_steps() > 0) {
      follow_step();
    } else {
      run_step();
      run_units();
    }
  } catch (const DeviceError& error) {
    executor_.append_in_flight(in_work_);
    executor_.forget_steps();
    const Status status = status_of(error);
    if (error.is_sticky()) {
      break_down(error.what());
      fail_all(status);
    } else {
      fail_running(status);
    }
  }
  ++counters_.steps;
}

void EngineCore::admit() {
  admitted_.clear();
  const auto note_admitted = [this] {
    const Clock::time_point now = now_();
    for (Sequence* sequence : admitted_) {
      sequence->cached_tokens = (sequence->leader ? sequence->leader : sequence)->first_row;
      if (!sequence->leader && executor_.prefixes().is_enabled()) {
        counters_.prefix_queries += sequence->prompt_len;
        counters_.prefix_hits += sequence->first_row;
      }
      sequence->admitted = now;
      sequence->handle->phase.store(RequestPhase::kPrefill, std::memory_order_relaxed);
      trace_.add(counters_.steps, TurnTrace::Event::kAdmit, static_cast<int64_t>(sequence->key.arrival),
                 sequence->choice, executor_.pool().free());
    }
  };
  try {
    scheduler_.admit(admitted_);
  } catch (const DeviceError&) {  // for the one that is first now; those before it are in
    note_admitted();
    in_work_ = scheduler_.first_queued();
    throw;
  }
  note_admitted();
}

void EngineCore::add_in_work(Sequence* leader) {
  if (std::find(in_work_.begin(), in_work_.end(), leader) != in_work_.end()) return;
  in_work_.push_back(leader);
  in_work_.insert(in_work_.end(), leader->followers.begin(), leader->followers.end());
}

void EngineCore::run_step() {
  scheduler_.plan_step(batch_);
  if (batch_.empty()) return;
  start_step();
  if (!scheduler_.has_prompts() && executor_.can_run_ahead(batch_)) return;
  finish_step();
}

void EngineCore::follow_step() {
  scheduler_.plan_step(batch_);
  if (!scheduler_.has_prompts() && executor_.can_run_ahead(batch_)) {
    start_step();
    ++counters_.steps_ahead;
  }
  finish_step();
}

void EngineCore::start_step() {
  StartedStep& step = started_[static_cast<size_t>(executor_.num_steps())];
  step = {};
  for (const auto& [sequence, rows] : batch_.decodes) {
    in_work_.push_back(sequence);
    step.entries += rows * Scheduler::decode_entries(*sequence);
    step.num_rows += rows;
  }
  for (Sequence* leader : batch_.prompts) {
    add_in_work(leader);
    step.prompt_rows += leader->prefill_rows() - leader->first_row;
  }
  trace_.add(counters_.steps, TurnTrace::Event::kStep, -1, static_cast<int64_t>(batch_.decodes.size()),
             static_cast<int64_t>(batch_.prompts.size()));
  step.begin = now_();
  executor_.start_step(batch_);
}

void EngineCore::finish_step() {
  executor_.finish_step(results_);
  const Clock::time_point end = now_();
  const StartedStep step = started_[0];
  histograms_.add(Metric::kIterationTokens, static_cast<double>(step.num_rows + step.prompt_rows));
  if (step.prompt_rows == 0)
    cost_.observe_step(step.num_rows, step.entries, seconds_between(step.begin, end));
  // The device begins the one behind it now.
  started_[0] = started_[1];
  started_[0].begin = end;
  start_feeds();
  for (const auto& [sequence, rows] : batch_.decodes) {
    if (sequence->phase == SequencePhase::kFeed) report_progress(*sequence, sequence->position);
  }
  in_work_.clear();
  for (const StepResult& result : results_) deliver(result);
}

void EngineCore::run_units() {
  while (run_units_together()) drop_ended();
}

bool EngineCore::run_units_together() {
  CostModel::Units units;
  bool is_done = false;
  Sequence* last = nullptr;
  const Clock::time_point start = now_();
  // A backend that computes where it is called gains nothing from more than one.
  while (!is_done && (!last || executor_.runs_beside())) {
    const PrefillUnit unit = scheduler_.plan_unit();
    if (!unit.sequence) break;
    last = unit.sequence;
    add_in_work(last);
    trace_.add(counters_.steps, TurnTrace::Event::kUnit, static_cast<int64_t>(last->key.arrival), unit.layer,
               unit.num_rows);
    executor_.start_unit(unit);
    units.add(unit.row_begin, unit.num_rows);
    histograms_.add(Metric::kIterationTokens, unit.num_rows);
    is_done = scheduler_.finish_unit(unit);
  }
  if (!last) return false;
  executor_.finish_units(results_);
  cost_.observe_units(units, seconds_between(start, now_()));
  for (const Sequence* sequence : in_work_)
    if (!sequence->leader) report_units(*sequence);
  if (is_done) {
    in_work_.clear();
    add_in_work(last);
    start_feeds();
  }
  in_work_.clear();
  for (const StepResult& result : results_) deliver(result);
  return true;
}

// A prompt in units runs layer by layer: what is done of it is a share of layers times rows.
void EngineCore::report_units(const Sequence& sequence) {
  if (!sequence.request().reports_progress) return;
  const int64_t rows = sequence.prefill_rows() - sequence.first_row;
  const int64_t done = sequence.unit_layer * rows + sequence.unit_row - sequence.first_row;
  const int64_t tokens = sequence.prefill_len - sequence.first_row;
  report_progress(
      sequence, sequence.first_row + static_cast<int32_t>(tokens * done / (rows * model_.config.num_layers)));
}

void EngineCore::report_progress(const Sequence& sequence, int32_t num_done) {
  RequestHandle& handle = *sequence.handle;
  if (!handle.request.reports_progress) return;
  handle.num_cached.store(sequence.cached_tokens, std::memory_order_relaxed);
  handle.prefill_us.store(static_cast<int64_t>(1e6 * seconds_between(sequence.admitted, now_())),
                          std::memory_order_relaxed);
  handle.num_prefilled.store(num_done, std::memory_order_relaxed);
  handle.stream.poke();
  touched_.push_back(sequence.handle);
}

void EngineCore::start_feeds() {
  for (Sequence* sequence : in_work_) {
    if (sequence->phase != SequencePhase::kPrefill || sequence->position == sequence->prompt_len) continue;
    if (!sequence->leader) counters_.prompt_tokens += sequence->prefill_len;
    scheduler_.start_feed(*sequence);
  }
}

void EngineCore::fail_running(const Status& error) {
  const std::vector<Sequence*> failed = in_work_;
  in_work_.clear();
  for (Sequence* sequence : failed) finish(sequence, FinishReason::kError, -1, error);
}

void EngineCore::fail_all(const Status& error) {
  std::vector<Sequence*> all;
  for (const auto& sequence : scheduler_.running()) all.push_back(sequence.get());
  scheduler_.for_each_queued([&](Sequence& sequence) { all.push_back(&sequence); });
  const bool is_cancel = error.code() == StatusCode::kCancelled;
  for (Sequence* sequence : all)
    finish(sequence, is_cancel ? FinishReason::kCancelled : FinishReason::kError, -1, error);
}

void EngineCore::flush() {
  for (const auto& handle : touched_) handle->stream.flush();
  touched_.clear();
}

const EngineStats& EngineCore::stats() {
  const PagePool& pool = executor_.pool();
  counters_.running = static_cast<int64_t>(scheduler_.running().size());
  counters_.waiting = scheduler_.num_waiting();
  counters_.waiting_tokens = scheduler_.waiting_tokens();
  counters_.pages_total = pool.total();
  counters_.page_slots = executor_.page_slots();
  counters_.pages_free = pool.free();
  counters_.pages_owned = pool.owned();
  counters_.pages_cached = pool.cached();
  counters_.eviction_prefill_seconds = executor_.eviction_seconds().prefill;
  counters_.eviction_decode_seconds = executor_.eviction_seconds().decode;
  const EvictionTotals& totals = executor_.eviction_totals();
  counters_.evicted_by_policy = totals.evicted;
  counters_.evicted_rows = std::accumulate(totals.evicted.begin(), totals.evicted.end(), int64_t{0});
  counters_.eviction_events = totals.events;
  counters_.nan_rows = totals.nan_rows;
  return counters_;
}

void EngineCore::break_down(const std::string& why) {
  if (!is_healthy_) return;
  is_healthy_ = false;
  trace_.add(counters_.steps, TurnTrace::Event::kFault, -1, executor_.pool().free(),
             executor_.pool().owned());
  fault_trace_ = why + "\n" + trace_.text();
}

bool EngineCore::check_pages(bool by_page) {
  const PagePool& pool = executor_.pool();
  const bool is_idle = scheduler_.empty();
  const bool is_consistent = by_page ? pool.is_consistent_by_page() : pool.is_consistent();
  if (is_consistent && !(is_idle && (pool.owned() != 0 || executor_.scratch().num_used() != 0))) return true;
  break_down("page accounting: free " + std::to_string(pool.free()) + " + owned " +
             std::to_string(pool.owned()) + " of " + std::to_string(pool.total()) +
             (is_idle ? ", idle" : ""));
  return false;
}

}  // namespace restkv

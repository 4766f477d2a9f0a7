// The engine without its thread: accepts requests, and runs one turn after the other:
//   ended ones out -> admit -> step, deliver -> units of long prompts, deliver; then, by the caller, flush and check_pages
// On a device that works on its own a step of nothing but decode rows stays in flight; the next turn enqueues the one behind it
// before it delivers the first:
//   turn n: start step n | turn n + 1: start step n + 1, finish step n, deliver | ...
// It alone touches scheduler, sequences and pages; a device failure of a turn is caught here. The engine thread
// drives it (engine.cpp), and the simulation, on a clock and a backend of its own.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/cost_model.h"
#include "engine/engine.h"
#include "engine/executor.h"
#include "engine/scheduler.h"
#include "engine/trace_store.h"
#include "engine/turn_trace.h"

namespace restkv {

class EngineCore {
 public:
  using Now = std::function<Clock::time_point()>;

  EngineCore(const Model& model, const EngineOptions& options, const MemoryPlan& plan, Backend& backend,
             Now now);

  // Measures a few steps and units for the cost model. Throws DeviceError.
  void fit_costs();
  // What can never run: INVALID_ARGUMENT. Any thread; reads nothing that changes.
  Status check(const Request& request) const;
  // What has to come again later: RESOURCE_EXHAUSTED, with so many sequences and prompt tokens waiting. Any thread.
  Status check_queue(const Request& request, int64_t waiting, int64_t waiting_tokens) const;
  // A checked request joins the queue.
  void accept(const std::shared_ptr<RequestHandle>& handle);
  // One turn; finished() gets the requests whose last choice ended.
  void turn();
  // Ends everything that is queued or runs.
  void fail_all(const Status& error);
  // Wakes the readers of what was delivered since the last call.
  void flush();
  // Requests whose last choice ended since the last call.
  std::vector<std::shared_ptr<RequestHandle>>& finished() { return finished_; }

  bool is_empty() const { return scheduler_.empty(); }
  // False for good after a sticky device failure or a failed self-check: nothing is admitted any more.
  bool is_healthy() const { return is_healthy_; }
  // Counters as of now.
  const EngineStats& stats();
  const Histograms& histograms() const { return histograms_; }
  const std::string& fault_trace() const { return fault_trace_; }
  // free + owned + cached == total, and at idle nothing owned; by_page: PagePool::is_consistent_by_page. False: the engine is not
  // healthy any more.
  bool check_pages(bool by_page);

  TraceStore& traces() { return traces_; }
  const std::shared_ptr<CancelList>& cancels() const { return cancels_; }
  const Scheduler& scheduler() const { return scheduler_; }
  Executor& executor() { return executor_; }

 private:
  // A request whose choices have not all ended.
  struct InFlight {
    std::shared_ptr<RequestHandle> handle;
    std::vector<Sequence*> open;
  };
  using Deadline = std::pair<Clock::time_point, const RequestHandle*>;

  void add_in_work(Sequence* leader);  // and its followers, once
  void admit();
  void run_step();
  // A step is in flight: the next one behind it where it can be, then its results.
  void follow_step();
  void start_step();
  void finish_step();
  void run_units();
  // Units that the device runs one behind the other, until one ends its prompt's prefill; false: there is none to run.
  bool run_units_together();
  // After a step or unit: those in work whose prefill is done and whose prompt is not.
  void start_feeds();
  void report_units(const Sequence& sequence);
  void report_progress(const Sequence& sequence, int32_t num_done);
  void drop_ended();
  void end_cancelled(InFlight& request);
  void deliver(const StepResult& result);
  void deliver_prompt_logprobs(Sequence& sequence);
  static SequenceCounters counters_of(const Sequence& sequence, Clock::time_point now);
  void finish(Sequence* sequence, FinishReason reason, int32_t token, Status error);
  void count_end(const Sequence& sequence, FinishReason reason, Clock::time_point now);
  void fail_running(const Status& error);
  void break_down(const std::string& why);

  const Model& model_;
  const MemoryPlan plan_;
  const EngineOptions options_;
  const Now now_;
  TraceStore traces_;  // before the sequences, whose traces take memory from it
  Executor executor_;
  CostModel cost_;
  Scheduler scheduler_;
  const std::shared_ptr<CancelList> cancels_ = std::make_shared<CancelList>();

  std::unordered_map<const RequestHandle*, InFlight> in_flight_;
  std::set<Deadline> deadlines_;  // of requests in flight that have one
  std::vector<std::shared_ptr<RequestHandle>> finished_;

  // Of a step that was started, the oldest first.
  struct StartedStep {
    int64_t num_rows = 0, prompt_rows = 0, entries = 0;
    Clock::time_point begin{};
  };
  std::array<StartedStep, 2> started_;

  // Reused every turn.
  StepBatch batch_;
  std::vector<Sequence*> admitted_, ended_, in_work_;  // in_work_: those the device works on now
  std::vector<StepResult> results_;
  std::vector<std::shared_ptr<RequestHandle>> touched_;  // streams with records to flush
  std::vector<const RequestHandle*> cancelled_;

  EngineStats counters_;
  Histograms histograms_;
  TurnTrace trace_;
  std::string fault_trace_;
  bool is_healthy_ = true;
};

}  // namespace restkv

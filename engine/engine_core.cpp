// One turn after the other; what a turn delivers, finishes and counts.
#include "engine/engine_core.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "engine/device.h"

namespace restkv {
namespace {

constexpr double kAloneSeconds = 6e-3;  // of units in one turn, where nobody waits for a token

float milliseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<float, std::milli>(to - from).count();
}
double seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

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
    if (is_healthy_) {
      admitted_.clear();
      scheduler_.admit(admitted_);
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
    }
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

void EngineCore::add_in_work(Sequence* leader) {
  if (std::find(in_work_.begin(), in_work_.end(), leader) != in_work_.end()) return;
  in_work_.push_back(leader);
  in_work_.insert(in_work_.end(), leader->followers.begin(), leader->followers.end());
}

void EngineCore::run_step() {
  in_work_.clear();
  scheduler_.plan_step(batch_);
  if (batch_.empty()) return;
  start_step();
  if (!scheduler_.has_prompts() && executor_.can_run_ahead(batch_)) return;
  finish_step();
}

void EngineCore::follow_step() {
  in_work_.clear();
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
  if (step.prompt_rows == 0) cost_.observe_step(step.num_rows, step.entries, seconds(step.begin, end));
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
  cost_.observe_units(units, seconds(start, now_()));
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
  handle.prefill_us.store(static_cast<int64_t>(1e6 * seconds(sequence.admitted, now_())),
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

Status EngineCore::check(const Request& request) const {
  const ModelConfig& config = model_.config;
  if (request.prompt.empty()) return invalid_argument("the prompt has no tokens").with_param("prompt");
  const auto in_vocabulary = [&](int32_t token) { return token >= 0 && token < config.vocab_size; };
  const auto check_ids = [&](const std::vector<int32_t>& ids, const char* param) -> Status {
    for (size_t i = 0; i < ids.size(); ++i)
      if (!in_vocabulary(ids[i]))
        return invalid_argument("token id " + std::to_string(ids[i]) + " is not in the vocabulary of " +
                                std::to_string(config.vocab_size))
            .with_param(std::string(param) + "[" + std::to_string(i) + "]");
    return {};
  };
  if (Status s = check_ids(request.prompt, "prompt"); !s.ok()) return s;
  if (request.cache.allocation == Allocation::kCalibrated && !options_.allocation)
    return invalid_argument(
               "cache.allocation: this model has no allocation file; make one with `restkv calibrate`")
        .with_param("cache.allocation");
  if (Status s = check_ids(request.cache.probe.tokens, "cache.probe"); !s.ok()) return s;
  if (Status s = check_ids(request.stop_token_ids, "stop_token_ids"); !s.ok()) return s;
  if (Status s = check_ids(request.sampling.allowed_tokens, "allowed_token_ids"); !s.ok()) return s;
  for (const LogitBias& bias : request.sampling.logit_bias)
    if (!in_vocabulary(bias.token))
      return invalid_argument("token id " + std::to_string(bias.token) + " is not in the vocabulary of " +
                              std::to_string(config.vocab_size))
          .with_param("logit_bias");
  for (const std::vector<int32_t>& word : request.bad_words) {
    if (word.empty()) return invalid_argument("a bad word has no tokens").with_param("bad_words");
    if (Status s = check_ids(word, "bad_words"); !s.ok()) return s;
  }
  if (request.max_tokens < 0)
    return invalid_argument("max_tokens must be at least 0").with_param("max_tokens");
  if (request.num_choices < 1 || request.num_choices > 16)
    return invalid_argument("n must be between 1 and 16").with_param("n");
  const auto prompt_len = static_cast<int64_t>(request.prompt.size());
  if (prompt_len + request.max_tokens > plan_.max_model_len) {
    return invalid_argument("the prompt has " + std::to_string(prompt_len) +
                            " tokens and the answer may have " + std::to_string(request.max_tokens) +
                            ", together " + std::to_string(prompt_len + request.max_tokens) +
                            "; this server takes at most " + std::to_string(plan_.max_model_len))
        .with_param(prompt_len >= plan_.max_model_len ? "prompt" : "max_tokens")
        .with_reason("context_length_exceeded");
  }
  const ProbeSpec probe = probe_for_prompt(request.cache, prompt_len);
  if (probe.kind != ProbeSpec::Kind::kNone) {
    const auto probe_len = static_cast<int64_t>(probe.tokens.size());
    if (probe_len < 1 || probe_len > kMaxProbeTokens) {
      return invalid_argument("cache.probe: has " + std::to_string(probe_len) +
                              " tokens, must be between 1 and " + std::to_string(kMaxProbeTokens))
          .with_param("cache.probe");
    }
    const int64_t rows = prefill_tokens(request.cache, prompt_len) + probe_len;
    if (rows > plan_.max_model_len) {
      return invalid_argument("cache.probe: the prompt and the probe's " + std::to_string(probe_len) +
                              " tokens are together " + std::to_string(rows) +
                              "; this server takes at most " + std::to_string(plan_.max_model_len))
          .with_param("cache.probe")
          .with_reason("context_length_exceeded");
    }
  }
  const int64_t pages = executor_.pages_for(request.cache, prompt_len, request.max_tokens);
  if (pages > plan_.pages) {
    return invalid_argument("with this budget the request needs " + std::to_string(pages) +
                            " pages of cache; this server has " + std::to_string(plan_.pages))
        .with_param("cache.budget")
        .with_reason("context_length_exceeded");
  }
  // All choices are admitted together.
  const int64_t more = executor_.pages_for_more(request.cache, prompt_len, request.max_tokens);
  const int64_t largest = std::min<int64_t>(
      options_.max_num_seqs, 1 + (more > 0 ? (plan_.pages - pages) / more : options_.max_num_seqs));
  if (request.num_choices > largest) {
    return invalid_argument("n is " + std::to_string(request.num_choices) + ", and " +
                            std::to_string(largest) + (largest == 1 ? " choice" : " choices") +
                            " of this length fit at once; lower n, max_tokens or cache.budget")
        .with_param("n")
        .with_reason("invalid_value");
  }
  return {};
}

Status EngineCore::check_queue(const Request& request, int64_t waiting, int64_t waiting_tokens) const {
  const auto tokens = static_cast<int64_t>(request.prompt.size()) * request.num_choices;
  // A request that alone is more than the queue takes may wait in an empty one.
  if (waiting == 0 || (waiting + request.num_choices <= options_.max_queue_requests &&
                       waiting_tokens + tokens <= options_.max_queue_tokens))
    return {};
  return Status(StatusCode::kResourceExhausted,
                "the queue is full (" + std::to_string(waiting) + " waiting); try again later")
      .with_reason("queue_full");
}

void EngineCore::deliver(const StepResult& result) {
  Sequence& sequence = *result.sequence;
  const Request& request = sequence.request();
  const SampleResult& sample = *result.sample;
  sequence.cache = *result.cache;
  const Clock::time_point now = now_();
  if (sequence.phase != SequencePhase::kDecode) {
    if (sequence.phase == SequencePhase::kFeed) {
      counters_.prompt_tokens += sequence.prompt_len - sequence.prefill_len;
    } else if (!sequence.leader) {
      counters_.prompt_tokens += sequence.prompt_len;  // computed once for all choices
    }
    scheduler_.start_decode(sequence);
    sequence.first_token = now;
    report_progress(sequence, sequence.prompt_len);
    histograms_.add(Metric::kTimeToFirstToken, seconds(request.arrival, now));
    sequence.handle->phase.store(RequestPhase::kDecode, std::memory_order_relaxed);
    deliver_prompt_logprobs(sequence);
  }
  if (sample.is_nan) {
    Status why = executor_.why_not_drawn(sequence);
    const bool is_ill = why.code() == StatusCode::kInternal;
    counters_.nan_requests += is_ill;
    if (is_ill || request.max_tokens > 0) return finish(&sequence, FinishReason::kError, -1, std::move(why));
  }
  if (request.max_tokens == 0) return finish(&sequence, FinishReason::kLength, -1, {});
  if (sequence.last_token != Clock::time_point{})
    histograms_.add(Metric::kInterToken, seconds(sequence.last_token, now));
  sequence.tokens.push_back(sample.token);
  sequence.last_token = now;
  ++counters_.generated_tokens;
  sequence.handle->num_generated.fetch_add(1, std::memory_order_relaxed);
  if (request.sampling.has_penalties()) executor_.count_token(sequence, sample.token);
  const auto& eos = model_.config.eos_token_ids;
  const bool is_end = (!request.ignore_eos && std::find(eos.begin(), eos.end(), sample.token) != eos.end()) ||
                      std::find(request.stop_token_ids.begin(), request.stop_token_ids.end(), sample.token) !=
                          request.stop_token_ids.end();
  if (is_end) return finish(&sequence, FinishReason::kStop, sample.token, {});
  TokenRecord record;
  record.choice = sequence.choice;
  record.token = sample.token;
  record.logprob = sample.logprob;
  record.rank = sample.rank;
  record.top = sample.top;
  record.counters = counters_of(sequence, now);
  record.counters.cache = sequence.cache;
  sequence.handle->stream.push(std::move(record));
  touched_.push_back(sequence.handle);
  if (sequence.num_generated() >= request.max_tokens) finish(&sequence, FinishReason::kLength, -1, {});
}

void EngineCore::deliver_prompt_logprobs(Sequence& sequence) {
  if (sequence.request().prompt_logprobs < 0) return;
  std::vector<SampleResult>& results = sequence.memory->prompt_logprobs;
  for (int32_t i = 0; i < sequence.prompt_len; ++i) {
    TokenRecord record;
    record.kind = TokenRecord::Kind::kPromptToken;
    record.choice = sequence.choice;
    record.token = sequence.tokens[static_cast<size_t>(i)];
    record.logprob = std::numeric_limits<float>::quiet_NaN();
    if (i > 0) {
      SampleResult& result = results[static_cast<size_t>(i - 1)];
      record.logprob = result.logprob;
      record.rank = result.rank;
      record.top = std::move(result.top);
    }
    sequence.handle->stream.push(std::move(record));
  }
  results.clear();
}

// All but those of the cache.
SequenceCounters EngineCore::counters_of(const Sequence& sequence, Clock::time_point now) {
  SequenceCounters counters;
  counters.prompt_tokens = sequence.prompt_len;
  counters.cached_tokens = sequence.cached_tokens;
  counters.completion_tokens = sequence.num_generated();
  const bool was_admitted = sequence.admitted != Clock::time_point{};
  const bool has_answer = sequence.first_token != Clock::time_point{};
  counters.queue_ms = milliseconds(sequence.request().arrival, was_admitted ? sequence.admitted : now);
  if (was_admitted)
    counters.prefill_ms = milliseconds(sequence.admitted, has_answer ? sequence.first_token : now);
  if (has_answer) counters.decode_ms = milliseconds(sequence.first_token, now);
  return counters;
}

void EngineCore::finish(Sequence* sequence, FinishReason reason, int32_t token, Status error) {
  const Clock::time_point now = now_();
  CacheCounters cache;
  if (sequence->memory->is_admitted) {
    // A step in flight may be past what was delivered.
    cache = sequence->phase == SequencePhase::kDecode ? sequence->cache : executor_.cache_counters(*sequence);
    const int64_t heads = model_.config.num_layers * model_.config.num_kv_heads;
    counters_.ended_rows += heads * sequence->position;
    counters_.ended_rows_gone += sequence->position > 0 ? sequence->memory->num_gone : 0;
    if (sequence->memory->trace) {
      const Request& request = sequence->request();
      traces_.put(request.id, request.owner, request.first_choice + sequence->choice,
                  sequence->memory->trace->take(), now);
    }
  }
  const std::unique_ptr<Sequence> retired = scheduler_.retire(sequence);
  TokenRecord record;
  record.kind = TokenRecord::Kind::kFinish;
  record.finish = reason;
  record.choice = retired->choice;
  record.token = token;
  record.error = std::move(error);
  record.counters = counters_of(*retired, now);
  record.counters.cache = cache;
  retired->handle->stream.push(std::move(record));
  touched_.push_back(retired->handle);
  trace_.add(counters_.steps, TurnTrace::Event::kFinish, static_cast<int64_t>(retired->key.arrival),
             retired->choice, static_cast<int64_t>(reason));
  InFlight& request = in_flight_.at(retired->handle.get());
  std::erase(request.open, sequence);
  if (request.open.empty()) {
    if (retired->request().timeout.count() > 0)
      deadlines_.erase({retired->request().arrival + retired->request().timeout, retired->handle.get()});
    retired->handle->phase.store(RequestPhase::kFinished, std::memory_order_relaxed);
    finished_.push_back(retired->handle);
    in_flight_.erase(retired->handle.get());
  }
  count_end(*retired, reason, now);
}

void EngineCore::count_end(const Sequence& sequence, FinishReason reason, Clock::time_point now) {
  switch (reason) {
    case FinishReason::kStop: ++counters_.finished_stop; break;
    case FinishReason::kLength: ++counters_.finished_length; break;
    case FinishReason::kCancelled: ++counters_.finished_cancelled; break;
    case FinishReason::kError: ++counters_.finished_error; break;
    case FinishReason::kNone: CHECK(false) << "a sequence ends for a reason";
  }
  if (sequence.admitted == Clock::time_point{}) return;
  const Request& request = sequence.request();
  histograms_.add(Metric::kLatency, seconds(request.arrival, now));
  histograms_.add(Metric::kQueueTime, seconds(request.arrival, sequence.admitted));
  histograms_.add(Metric::kInferenceTime, seconds(sequence.admitted, now));
  histograms_.add(Metric::kPromptTokens, sequence.prompt_len);
  histograms_.add(Metric::kComputedTokens, sequence.prompt_len - sequence.cached_tokens);
  histograms_.add(Metric::kGenerationTokens, sequence.num_generated());
  histograms_.add(Metric::kMaxTokens, request.max_tokens);
  if (sequence.choice == 0) histograms_.add(Metric::kNumChoices, request.num_choices);
  if (sequence.first_token == Clock::time_point{}) return;
  histograms_.add(Metric::kPrefillTime, seconds(sequence.admitted, sequence.first_token));
  histograms_.add(Metric::kDecodeTime, seconds(sequence.first_token, now));
  if (sequence.num_generated() > 1) {
    histograms_.add(Metric::kTimePerOutputToken,
                    seconds(sequence.first_token, sequence.last_token) / (sequence.num_generated() - 1));
  }
}

void EngineCore::fit_costs() {
  // One sequence that is fed row by row and in units of one layer; nothing of it is kept.
  Request request;
  const int64_t rows =
      std::min<int64_t>({plan_.max_model_len - 1, 256, int64_t{options_.max_num_batched_tokens}});
  if (rows < 2) return;
  request.prompt.assign(static_cast<size_t>(rows), 0);
  request.max_tokens = 1;
  Sequence sequence;
  sequence.handle = std::make_shared<RequestHandle>(std::move(request), nullptr);
  sequence.tokens = sequence.request().prompt;
  sequence.prompt_len = static_cast<int32_t>(rows);
  executor_.prepare(sequence);
  if (!executor_.can_admit(sequence)) return;
  executor_.admit(sequence);
  sequence.prompt_len = 1;  // behind it every step draws
  const auto measure = [&](auto&& work) {
    const Clock::time_point start = now_();
    work();
    return seconds(start, now_());
  };
  StepBatch batch;
  for (int round = 0; round < 4 && sequence.position + 8 < rows; ++round) {
    const int32_t fed = round == 3 ? 8 : 1;
    batch.clear();
    batch.decodes.push_back({&sequence, fed});
    const int64_t entries = int64_t{fed} * sequence.position;
    const double time = measure([&] { executor_.run_step(batch, results_); });
    if (round > 0) cost_.observe_step(fed, entries, time);  // the first one reads the weights from disk
  }
  executor_.release(sequence);

  sequence.prompt_len = static_cast<int32_t>(rows);
  executor_.prepare(sequence);
  executor_.admit(sequence);
  executor_.start_prefill(sequence, true);
  sequence.position = 0;
  int32_t row = 0;
  for (int32_t count = CostModel::kRowTile; row < rows; count *= 2) {
    const auto taken = static_cast<int32_t>(std::min<int64_t>(count, rows - row - 1));
    if (taken <= 0) break;  // the layer's last row stays away: it would store the layer
    cost_.observe_unit(row, taken, measure([&] {
                         executor_.run_unit({&sequence, 0, row, taken}, results_);
                       }));
    row += taken;
  }
  executor_.release(sequence);
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

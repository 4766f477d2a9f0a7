// The engine thread: inbox -> admit -> step or unit -> deliver -> retire. It alone touches scheduler,
// sequences and pages; a device failure is caught here and nowhere else.
#include "engine/engine.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "engine/device.h"
#include "engine/executor.h"
#include "engine/host_memory.h"
#include "engine/scheduler.h"
#include "kernels/base/device_error.h"

namespace restkv {
namespace {

float milliseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<float, std::milli>(to - from).count();
}

class LocalEngine final : public Engine {
 public:
  LocalEngine(std::shared_ptr<const Model> model, const EngineOptions& options, const MemoryPlan& plan,
              std::unique_ptr<Backend> backend)
      : model_(std::move(model)),
        options_(options),
        plan_(plan),
        backend_(std::move(backend)),
        executor_(*model_, *backend_, options_, plan_),
        scheduler_({.max_num_seqs = options.max_num_seqs,
                    .max_num_batched_tokens = options.max_num_batched_tokens,
                    .num_layers = static_cast<int32_t>(model_->config.num_layers)},
                   executor_),
        thread_([this] { run(); }) {}

  ~LocalEngine() override {
    {
      const std::lock_guard lock(mutex_);
      is_stopping_ = true;
    }
    work_.notify_one();
    thread_.join();
  }

  Status submit(const std::shared_ptr<RequestHandle>& handle) override;

  void drain() override {
    const std::lock_guard lock(mutex_);
    is_draining_ = true;
  }
  bool is_idle() const override {
    const std::lock_guard lock(mutex_);
    return stats_.running == 0 && stats_.waiting == 0;
  }
  bool is_healthy() const override {
    const std::lock_guard lock(mutex_);
    return !is_broken_ && !is_draining_;
  }
  EngineStats stats() const override {
    const std::lock_guard lock(mutex_);
    return stats_;
  }
  const Model& model() const override { return *model_; }
  const MemoryPlan& memory_plan() const override { return plan_; }
  const EngineOptions& options() const override { return options_; }

 private:
  Status check(const Request& request) const;
  void run();
  // One turn of the loop: at most one step and one unit.
  void turn();
  void take_inbox();
  void drop_cancelled();
  void deliver(const StepResult& result);
  void deliver_prompt_logprobs(Sequence& sequence);
  void finish(Sequence* sequence, FinishReason reason, int32_t token, Status error);
  void fail_all(const Status& error);
  void publish_stats();
  void check_pages_at_idle();

  const std::shared_ptr<const Model> model_;
  const EngineOptions options_;
  const MemoryPlan plan_;
  const std::unique_ptr<Backend> backend_;
  Executor executor_;    // engine thread
  Scheduler scheduler_;  // engine thread

  // Engine thread, reused every turn.
  StepBatch batch_;
  std::vector<Sequence*> admitted_, ended_;
  std::vector<StepResult> results_;
  std::vector<std::shared_ptr<RequestHandle>> touched_;  // streams with records to flush
  EngineStats counters_;                                 // published once a turn

  mutable std::mutex mutex_;  // everything below
  std::condition_variable work_;
  std::deque<std::shared_ptr<RequestHandle>> inbox_;
  EngineStats stats_;  // of the last turn; waiting counts are exact at submit
  bool is_stopping_ = false, is_draining_ = false, is_broken_ = false;

  std::thread thread_;  // last: it uses all of the above
};

Status LocalEngine::check(const Request& request) const {
  const ModelConfig& config = model_->config;
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
    return invalid_argument("the prompt has " + std::to_string(prompt_len) + " tokens and max_tokens is " +
                            std::to_string(request.max_tokens) + ", together " +
                            std::to_string(prompt_len + request.max_tokens) + "; this server takes at most " +
                            std::to_string(plan_.max_model_len))
        .with_param(prompt_len >= plan_.max_model_len ? "prompt" : "max_tokens")
        .with_reason("context_length_exceeded");
  }
  const int64_t pages = executor_.pages_for(request.cache, prompt_len, request.max_tokens);
  if (pages > plan_.pages) {
    return invalid_argument("with this budget the request needs " + std::to_string(pages) +
                            " pages of cache; this server has " + std::to_string(plan_.pages))
        .with_param("cache.budget")
        .with_reason("context_length_exceeded");
  }
  return {};
}

Status LocalEngine::submit(const std::shared_ptr<RequestHandle>& handle) {
  const Request& request = handle->request;
  if (Status s = check(request); !s.ok()) return s;
  const auto choices = static_cast<size_t>(request.num_choices);
  // Room for every record the request can produce: the engine never waits for its reader and never allocates
  // for it.
  handle->stream.reserve(choices * (static_cast<size_t>(request.max_tokens) + 1) +
                         (request.prompt_logprobs >= 0 ? choices * request.prompt.size() : 0));
  {
    const std::lock_guard lock(mutex_);
    if (is_broken_) return {StatusCode::kUnavailable, "the engine failed; see the log"};
    if (is_draining_ || is_stopping_) return {StatusCode::kUnavailable, "the server is shutting down"};
    const auto tokens = static_cast<int64_t>(choices * request.prompt.size());
    const bool queue_is_empty = stats_.waiting == 0;
    if (stats_.waiting + request.num_choices > options_.max_queue_requests ||
        (!queue_is_empty && stats_.waiting_tokens + tokens > options_.max_queue_tokens)) {
      return Status(StatusCode::kResourceExhausted,
                    "the queue is full (" + std::to_string(stats_.waiting) + " waiting); try again later")
          .with_reason("queue_full");
    }
    stats_.waiting += request.num_choices;
    stats_.waiting_tokens += tokens;
    inbox_.push_back(handle);
  }
  work_.notify_one();
  return {};
}

void LocalEngine::run() {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      if (inbox_.empty() && scheduler_.empty()) {
        lock.unlock();
        check_pages_at_idle();
        lock.lock();
        work_.wait(lock, [this] { return is_stopping_ || !inbox_.empty(); });
      }
      if (is_stopping_) break;
    }
    try {
      turn();
    } catch (const DeviceError& error) {
      fail_all({StatusCode::kUnavailable, std::string("device failure: ") + error.what()});
      if (error.is_sticky()) {
        const std::lock_guard lock(mutex_);
        is_broken_ = true;
      }
    }
    for (const auto& handle : touched_) handle->stream.flush();
    touched_.clear();
    publish_stats();
  }
  take_inbox();
  fail_all({StatusCode::kCancelled, "the server stopped"});
  for (const auto& handle : touched_) handle->stream.flush();
  publish_stats();
}

void LocalEngine::turn() {
  take_inbox();
  drop_cancelled();
  admitted_.clear();
  scheduler_.admit(admitted_);
  const Clock::time_point now = Clock::now();
  for (Sequence* sequence : admitted_) sequence->admitted = now;

  scheduler_.plan_step(batch_);
  if (!batch_.empty()) {
    executor_.run_step(batch_, results_);
    for (const StepResult& result : results_) deliver(result);
  }
  const PrefillUnit unit = scheduler_.plan_unit();
  if (unit.sequence) {
    executor_.run_unit(unit, results_);
    scheduler_.finish_unit(unit);
    for (const StepResult& result : results_) deliver(result);
  }
  ++counters_.steps;
}

void LocalEngine::take_inbox() {
  std::deque<std::shared_ptr<RequestHandle>> arrived;
  {
    const std::lock_guard lock(mutex_);
    arrived.swap(inbox_);
  }
  for (const auto& handle : arrived) {
    const Request& request = handle->request;
    for (int32_t choice = 0; choice < request.num_choices; ++choice) {
      auto sequence = std::make_unique<Sequence>();
      sequence->handle = handle;
      sequence->choice = choice;
      sequence->prompt_len = static_cast<int32_t>(request.prompt.size());
      sequence->tokens.reserve(request.prompt.size() + static_cast<size_t>(request.max_tokens));
      sequence->tokens = request.prompt;
      executor_.prepare(*sequence);
      scheduler_.enqueue(std::move(sequence));
    }
  }
}

void LocalEngine::drop_cancelled() {
  const Clock::time_point now = Clock::now();
  const auto is_late = [now](const Sequence& sequence) {
    const Request& request = sequence.request();
    return request.timeout.count() > 0 && now - request.arrival > request.timeout;
  };
  ended_.clear();
  for (const auto& sequence : scheduler_.running())
    if (sequence->is_cancelled() || is_late(*sequence)) ended_.push_back(sequence.get());
  for (const auto& sequence : scheduler_.queue())
    if (sequence->is_cancelled() || is_late(*sequence)) ended_.push_back(sequence.get());
  for (Sequence* sequence : ended_) {
    if (sequence->is_cancelled()) {
      finish(sequence, FinishReason::kCancelled, -1, {});
    } else {
      finish(sequence, FinishReason::kError, -1,
             Status(StatusCode::kDeadlineExceeded, "the request ran longer than its timeout"));
    }
  }
}

void LocalEngine::deliver(const StepResult& result) {
  Sequence& sequence = *result.sequence;
  const Request& request = sequence.request();
  const SampleResult& sample = *result.sample;
  if (sequence.phase == SequencePhase::kPrefill) {
    sequence.phase = SequencePhase::kDecode;
    sequence.first_token = Clock::now();
    counters_.prompt_tokens += sequence.prompt_len;
    deliver_prompt_logprobs(sequence);
  }
  if (request.max_tokens == 0) return finish(&sequence, FinishReason::kLength, -1, {});
  if (sample.is_nan) {
    return finish(
        &sequence, FinishReason::kError, -1,
        Status(StatusCode::kInternal, "the model's output is not a number").with_reason("nan_logits"));
  }
  sequence.tokens.push_back(sample.token);
  ++counters_.generated_tokens;
  if (request.sampling.has_penalties()) executor_.count_token(sequence, sample.token);
  const auto& eos = model_->config.eos_token_ids;
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
  record.counters.cache = executor_.cache_counters(sequence);
  sequence.handle->stream.push(std::move(record));
  touched_.push_back(sequence.handle);
  if (sequence.num_generated() >= request.max_tokens) finish(&sequence, FinishReason::kLength, -1, {});
}

void LocalEngine::deliver_prompt_logprobs(Sequence& sequence) {
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

void LocalEngine::finish(Sequence* sequence, FinishReason reason, int32_t token, Status error) {
  const Clock::time_point now = Clock::now();
  TokenRecord record;
  if (sequence->memory->is_admitted) record.counters.cache = executor_.cache_counters(*sequence);
  counters_.evicted_rows += record.counters.cache.evicted;
  counters_.evicted_by_policy[static_cast<size_t>(sequence->request().cache.policy)] +=
      record.counters.cache.evicted;
  counters_.eviction_events += record.counters.cache.events;
  counters_.nan_rows += record.counters.cache.nan_rows;
  const std::unique_ptr<Sequence> retired = scheduler_.retire(sequence);
  record.kind = TokenRecord::Kind::kFinish;
  record.finish = reason;
  record.choice = retired->choice;
  record.token = token;
  record.error = std::move(error);
  record.counters.prompt_tokens = retired->prompt_len;
  record.counters.completion_tokens = retired->num_generated();
  const Clock::time_point arrival = retired->request().arrival;
  const bool was_admitted = retired->admitted != Clock::time_point{};
  const bool has_answer = retired->first_token != Clock::time_point{};
  record.counters.queue_ms = milliseconds(arrival, was_admitted ? retired->admitted : now);
  if (was_admitted)
    record.counters.prefill_ms = milliseconds(retired->admitted, has_answer ? retired->first_token : now);
  if (has_answer) record.counters.decode_ms = milliseconds(retired->first_token, now);
  retired->handle->stream.push(std::move(record));
  touched_.push_back(retired->handle);
  switch (reason) {
    case FinishReason::kStop: ++counters_.finished_stop; break;
    case FinishReason::kLength: ++counters_.finished_length; break;
    case FinishReason::kCancelled: ++counters_.finished_cancelled; break;
    case FinishReason::kError: ++counters_.finished_error; break;
    case FinishReason::kNone: CHECK(false) << "a sequence ends for a reason";
  }
}

void LocalEngine::fail_all(const Status& error) {
  ended_.clear();
  for (const auto& sequence : scheduler_.running()) ended_.push_back(sequence.get());
  for (const auto& sequence : scheduler_.queue()) ended_.push_back(sequence.get());
  for (Sequence* sequence : ended_) {
    finish(sequence, error.code() == StatusCode::kCancelled ? FinishReason::kCancelled : FinishReason::kError,
           -1, error);
  }
}

void LocalEngine::publish_stats() {
  counters_.running = static_cast<int64_t>(scheduler_.running().size());
  counters_.pages_total = executor_.pool().total();
  counters_.pages_free = executor_.pool().free();
  counters_.pages_owned = executor_.pool().owned();
  counters_.waiting = static_cast<int64_t>(scheduler_.queue().size());
  counters_.waiting_tokens = 0;
  for (const auto& sequence : scheduler_.queue()) counters_.waiting_tokens += sequence->prompt_len;
  DCHECK(executor_.pool().is_consistent());
  const std::lock_guard lock(mutex_);
  stats_ = counters_;
  for (const auto& handle : inbox_) {
    stats_.waiting += handle->request.num_choices;
    stats_.waiting_tokens +=
        static_cast<int64_t>(handle->request.prompt.size()) * handle->request.num_choices;
  }
}

void LocalEngine::check_pages_at_idle() {
  if (executor_.pool().owned() == 0 && executor_.pool().is_consistent()) return;
  const std::lock_guard lock(mutex_);
  is_broken_ = true;  // readiness goes false; a leak must not go unseen
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::start(std::shared_ptr<const Model> model,
                                              const EngineOptions& options) {
  Result<std::unique_ptr<Backend>> backend = make_backend(options);
  if (!backend.ok()) return backend.status();
  Result<MemoryPlan> plan = Executor::plan(*model, **backend, options, available_host_memory());
  if (!plan.ok()) return plan.status();
  return std::unique_ptr<Engine>(
      std::make_unique<LocalEngine>(std::move(model), options, *plan, std::move(*backend)));
}

}  // namespace restkv

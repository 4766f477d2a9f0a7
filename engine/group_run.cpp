// Drives the executor as the engine thread does, for one text at a time.
#include "engine/group_run.h"

#include <algorithm>

#include "engine/device.h"
#include "engine/executor.h"
#include "engine/request_checks.h"

namespace restkv {
namespace {

class LocalGroupRunner final : public GroupRunner {
 public:
  LocalGroupRunner(std::shared_ptr<const Model> model, const EngineOptions& options, const MemoryPlan& plan,
                   std::unique_ptr<Backend> backend)
      : model_(std::move(model)),
        options_(options),
        plan_(plan),
        backend_(std::move(backend)),
        executor_(*model_, *backend_, options_, plan_) {}

  Result<std::vector<GroupOutcome>> run(const GroupText& text, std::span<const CacheSettings> settings,
                                        const GroupObserver& observer) override;

  int64_t page_bytes(const CacheSettings& settings, int64_t prompt_len, int64_t max_tokens) const override {
    return executor_.pages_for(settings, prompt_len, max_tokens) * plan_.page_bytes;
  }

 private:
  Status check(const GroupText& text, size_t num_settings) const;
  Result<std::vector<GroupOutcome>> run_checked(const GroupText& text,
                                                std::span<const CacheSettings> settings,
                                                const GroupObserver& observer);
  // A device failure in the middle of a run: nothing is held or waited for any more.
  void give_up();
  // Sequences to prefill groups, which have one probe or none; their leaders.
  std::vector<Sequence*> group();
  // Feeds what stands in the sequences' tokens and is not in the cache yet, at most `limit` tokens each.
  void feed(int32_t limit);
  void note_next();

  const std::shared_ptr<const Model> model_;
  const EngineOptions options_;
  const MemoryPlan plan_;
  const std::unique_ptr<Backend> backend_;
  Executor executor_;
  std::vector<Sequence> sequences_;
  std::vector<int32_t> next_;  // by sequence: the token drawn behind the last row it fed
  Status not_drawn_;           // why one of them could not be drawn
  std::vector<float> logits_;  // [settings, V] where those of a device are looked at
  std::vector<StepResult> results_;
  StepBatch batch_;
};

Status LocalGroupRunner::check(const GroupText& text, size_t num_settings) const {
  if (text.prompt.empty()) return invalid_argument("the prompt has no tokens");
  if (num_settings == 0 || num_settings > static_cast<size_t>(options_.max_num_seqs)) {
    return invalid_argument(std::to_string(num_settings) + " settings; there is room for 1 to " +
                            std::to_string(options_.max_num_seqs));
  }
  for (const auto& [tokens, name] : {std::pair{&text.prompt, "prompt"}, std::pair{&text.forced, "forced"}}) {
    if (Status s = check_token_ids(*tokens, model_->config.vocab_size, name); !s.ok()) return s;
  }
  const int64_t total =
      static_cast<int64_t>(text.prompt.size() + text.forced.size()) + std::max(0, text.max_tokens);
  if (total > plan_.max_model_len) {
    return invalid_argument(std::to_string(total) + " tokens; at most " +
                            std::to_string(plan_.max_model_len) + " fit")
        .with_reason("context_length_exceeded");
  }
  return {};
}

std::vector<Sequence*> LocalGroupRunner::group() {
  std::vector<Sequence*> leaders;
  for (const bool has_probe : {true, false}) {
    for (Sequence& sequence : sequences_) {
      if ((sequence.probe_len > 0) != has_probe) continue;
      const auto leader = std::find_if(leaders.begin(), leaders.end(), [&](const Sequence* other) {
        return !has_probe || other->memory->probe == sequence.memory->probe;
      });
      if (leader == leaders.end()) {
        leaders.push_back(&sequence);
      } else {
        (*leader)->followers.push_back(&sequence);
      }
    }
  }
  return leaders;
}

void LocalGroupRunner::note_next() {
  for (const StepResult& result : results_) {
    next_[static_cast<size_t>(result.sequence - sequences_.data())] = result.sample->token;
    if (result.sample->is_nan) not_drawn_ = executor_.why_not_drawn(*result.sequence);
  }
}

void LocalGroupRunner::feed(int32_t limit) {
  const int32_t share =
      std::max(1, options_.max_num_batched_tokens / static_cast<int32_t>(sequences_.size()));
  for (;;) {
    batch_.clear();
    for (Sequence& sequence : sequences_) {
      const int32_t rows = std::min({static_cast<int32_t>(sequence.tokens.size()) - sequence.position, limit,
                                     share, executor_.max_feed_rows(sequence)});
      if (rows > 0) batch_.decodes.push_back({&sequence, rows});
    }
    if (batch_.empty()) return;
    executor_.run_step(batch_, results_);
    note_next();
    if (limit == 1) return;
  }
}

void LocalGroupRunner::give_up() {
  executor_.forget_steps();
  executor_.set_draw_observer(nullptr);
  for (Sequence& sequence : sequences_)
    if (sequence.memory) executor_.release(sequence);
}

Result<std::vector<GroupOutcome>> LocalGroupRunner::run(const GroupText& text,
                                                        std::span<const CacheSettings> settings,
                                                        const GroupObserver& observer) {
  if (Status status = check(text, settings.size()); !status.ok()) return status;
  try {
    return run_checked(text, settings, observer);
  } catch (const DeviceError& error) {
    give_up();
    return status_of(error);
  }
}

Result<std::vector<GroupOutcome>> LocalGroupRunner::run_checked(const GroupText& text,
                                                                std::span<const CacheSettings> settings,
                                                                const GroupObserver& observer) {
  const auto num_forced = static_cast<int32_t>(text.forced.size());
  sequences_.clear();
  sequences_.resize(settings.size());
  next_.assign(settings.size(), 0);
  not_drawn_ = {};
  Status status;
  for (size_t i = 0; i < settings.size(); ++i) {
    Request request;
    request.prompt = text.prompt;
    request.max_tokens = num_forced + text.max_tokens + 1;
    request.sampling.temperature = 0;
    request.cache = settings[i];
    Sequence& sequence = sequences_[i];
    sequence.handle = std::make_shared<RequestHandle>(std::move(request), nullptr);
    sequence.tokens = text.prompt;
    sequence.prompt_len = static_cast<int32_t>(text.prompt.size());
    sequence.phase = SequencePhase::kPrefill;
    executor_.prepare(sequence);
    if (!executor_.can_admit(sequence)) {
      status = {StatusCode::kFailedPrecondition,
                "the page pool is too small for " + std::to_string(settings.size()) +
                    " settings at once; fewer policies or budgets, or a larger --memory-fraction"};
      break;
    }
    if (sequence.prefill_rows() > plan_.max_model_len) {
      status = invalid_argument("a prompt of " + std::to_string(sequence.prompt_len) +
                                " tokens and a probe of " + std::to_string(sequence.probe_len) +
                                "; at most " + std::to_string(plan_.max_model_len) + " fit")
                   .with_reason("context_length_exceeded");
      break;
    }
    if (sequence.prefill_len < sequence.prompt_len) {
      status = invalid_argument("compress_at must be the length of the prompt: what follows is forced");
      break;
    }
    executor_.admit(sequence);
  }
  std::vector<GroupOutcome> outcomes(settings.size());
  if (status.ok()) {
    int32_t fed = 0;
    executor_.set_draw_observer([&](std::span<Sequence* const>, ConstTensor logits) {
      if (!observer || fed < 1 || fed > num_forced) return;
      if (backend_->is_host_memory()) return observer(fed, logits.f32());
      logits_.resize(static_cast<size_t>(logits.rows * logits.cols));
      backend_->read_back(logits, logits_.data());
      observer(fed, logits_.data());
    });
    for (Sequence* leader : group()) {
      executor_.prefill(*leader, results_);
      note_next();
    }
    for (Sequence& sequence : sequences_)
      sequence.tokens.insert(sequence.tokens.end(), text.forced.begin(), text.forced.end());
    if (observer) {
      for (fed = 1; fed <= num_forced; ++fed) feed(1);
    } else {
      feed(INT32_MAX);
    }
    fed = num_forced + 1;
    for (int32_t i = 0; i < text.max_tokens && not_drawn_.ok(); ++i) {
      for (size_t s = 0; s < sequences_.size(); ++s) sequences_[s].tokens.push_back(next_[s]);
      if (i + 1 < text.max_tokens) feed(1);
    }
  }
  executor_.set_draw_observer(nullptr);
  if (status.ok()) status = not_drawn_;
  for (size_t i = 0; i < sequences_.size(); ++i) {
    Sequence& sequence = sequences_[i];
    if (!sequence.memory) continue;
    if (status.ok()) {
      outcomes[i].tokens.assign(sequence.tokens.end() - text.max_tokens, sequence.tokens.end());
      outcomes[i].cache = executor_.cache_counters(sequence);
    }
    executor_.release(sequence);
  }
  if (!status.ok()) return status;
  return outcomes;
}

}  // namespace

Result<std::unique_ptr<GroupRunner>> GroupRunner::make(std::shared_ptr<const Model> model,
                                                       EngineOptions options, int32_t max_settings) {
  options.max_num_seqs = max_settings;
  try {
    Result<std::unique_ptr<Backend>> backend = make_backend(options);
    if (!backend.ok()) return backend.status();
    options = fit_options(options, **backend);
    options.max_num_batched_tokens = std::max(options.max_num_batched_tokens, max_settings + 1);
    const Result<MemoryPlan> plan = Executor::plan(*model, **backend, options, available_memory(**backend));
    if (!plan.ok()) return plan.status();
    return std::unique_ptr<GroupRunner>(
        std::make_unique<LocalGroupRunner>(std::move(model), options, *plan, std::move(*backend)));
  } catch (const DeviceError& error) {
    return status_of(error);
  }
}

}  // namespace restkv

// Between the engine's records and a protocol's messages.
#include "server/serving/generation.h"

#include <algorithm>

#include "server/openai/completion_writer.h"

namespace restkv {

constexpr int kSeedShift = 11;  // 53 bits: a number that every JSON reader keeps, and that may be sent again

Generation::Generation(Serving& serving, Caller caller, CompletionJob job, std::string id)
    : serving_(serving), caller_(std::move(caller)), job_(std::move(job)), id_(std::move(id)) {}

// Tokens of the answer are charged when it ends, however it ends.
Generation::~Generation() {
  cancel();
  if (!running_.empty()) caller_.rate().charge_tokens(usage().completion_tokens, Clock::now());
}

// One request waits in an empty queue however many choices it has; of a list the first ones would be in the way of the others.
Status Generation::check_list() const {
  const auto num_prompts = static_cast<int64_t>(job_.requests.size());
  const int64_t num_choices = num_prompts > 0 ? num_prompts * job_.requests[0].num_choices : 0;
  const int32_t most = serving_.model.engine->options().max_queue_requests;
  if (num_prompts <= 1 || num_choices <= most) return {};
  return invalid_argument("'prompt' asks for " + std::to_string(num_choices) + " answers (" +
                          std::to_string(num_prompts) + " prompts, 'n' is " +
                          std::to_string(job_.requests[0].num_choices) +
                          "); the queue of this server takes at most " + std::to_string(most))
      .with_param("prompt")
      .with_reason("invalid_value");
}

Status Generation::with_name_of_field(Status status, size_t prompt_idx) const {
  constexpr std::string_view kPrompt = "prompt";
  std::string name = status.param();
  if (name == "max_tokens") name = job_.limit_field;
  if (name == kPrompt && job_.api == CompletionApi::kChat) name = "messages";
  if (name.starts_with(kPrompt) && job_.requests.size() > 1)
    name.insert(kPrompt.size(), "[" + std::to_string(prompt_idx) + "]");
  return std::move(status).with_param(std::move(name));
}

Refusal Generation::submit(Clock::time_point arrival, std::chrono::nanoseconds timeout,
                           const std::function<void()>& wake) {
  if (Status status = check_list(); !status.ok()) return {std::move(status)};
  int64_t prompt_tokens = 0;
  for (const Request& request : job_.requests) prompt_tokens += static_cast<int64_t>(request.prompt.size());
  if (const int64_t wait = caller_.rate().try_take(prompt_tokens, arrival); wait > 0) {
    return {Status(StatusCode::kResourceExhausted,
                   "the rate limit of this API key is reached; try again in " + std::to_string(wait) + " s")
                .with_reason("rate_limit_exceeded"),
            wait};
  }
  Status status = submit_prompts(arrival, timeout, wake);
  // A list is refused as a whole: what of it came into the queue is cancelled by the destructor.
  if (!status.ok()) caller_.rate().give_back(1, prompt_tokens, arrival);
  return {std::move(status)};
}

Status Generation::submit_prompts(Clock::time_point arrival, std::chrono::nanoseconds timeout,
                                  const std::function<void()>& wake) {
  running_.reserve(job_.requests.size());
  for (size_t i = 0; i < job_.requests.size(); ++i) {
    Request& request = job_.requests[i];
    request.id = id_;
    request.first_choice = static_cast<int32_t>(i) * request.num_choices;
    request.arrival = arrival;
    request.timeout = timeout;
    request.owner = caller_.name();
    request.max_owner_requests = caller_.key().max_concurrent;
    if (caller_.key().priority) request.priority = *caller_.key().priority;
    const std::optional<int64_t>& seed = serving_.settings.answer.seed;
    if (!job_.has_seed)
      request.sampling.seed = seed ? static_cast<uint64_t>(*seed) : serving_.new_seed() >> kSeedShift;
    auto handle = std::make_shared<RequestHandle>(std::move(request), wake);
    if (Status status = serving_.model.engine->submit(handle); !status.ok())
      return with_name_of_field(std::move(status), i);
    Running& r = running_.emplace_back();
    r.assembler = std::make_unique<OutputAssembler>(*serving_.model.tokenizer, job_.output, *handle,
                                                    std::move(job_.prompt_texts[i]));
    r.handle = std::move(handle);
  }
  return {};
}

bool Generation::take(int32_t& index, OutputDelta& delta) {
  for (size_t i = 0; i < running_.size(); ++i) {
    Running& r = running_[i];
    while (!r.assembler->is_finished()) {
      if (r.next == r.records.size()) {
        r.next = 0;
        if (!r.handle->stream.take(r.records)) break;
      }
      const TokenRecord& record = r.records[r.next++];
      delta.clear();
      r.assembler->append(record, delta);
      if (delta.empty()) continue;
      index = static_cast<int32_t>(i) * r.handle->request.num_choices + record.choice;
      return true;
    }
  }
  return false;
}

bool Generation::take_progress(int32_t& index, PromptProgress& progress) {
  for (size_t i = 0; i < running_.size(); ++i) {
    Running& r = running_[i];
    const RequestHandle& handle = *r.handle;
    const int32_t done = handle.num_prefilled.load(std::memory_order_relaxed);
    if (done == r.num_prefilled) continue;
    r.num_prefilled = done;
    progress = {.total = static_cast<int64_t>(handle.request.prompt.size()),
                .cached = handle.num_cached.load(std::memory_order_relaxed),
                .processed = done,
                .ms = 1e-3 * static_cast<double>(handle.prefill_us.load(std::memory_order_relaxed))};
    index = handle.request.first_choice;
    return true;
  }
  return false;
}

// A cancel is no 503: clients send such a request again by themselves.
Status Generation::fatal_error(const OutputDelta& delta) const {
  if (delta.finish == FinishReason::kError) return delta.error;
  if (delta.finish == FinishReason::kCancelled)
    return serving_.is_draining
               ? Status(StatusCode::kUnavailable, "the server is shutting down").with_reason("draining")
               : Status(StatusCode::kCancelled, "the request was cancelled").with_reason("cancelled");
  return {};
}

bool Generation::is_finished() const {
  return std::all_of(running_.begin(), running_.end(),
                     [](const Running& r) { return r.assembler->is_finished(); });
}

void Generation::cancel() {
  for (const Running& r : running_) {
    if (!r.assembler->is_finished()) r.handle->cancel();
  }
}

OutputUsage Generation::usage() const {
  OutputUsage sum;
  for (const Running& r : running_) sum += r.assembler->usage();
  return sum;
}

size_t Generation::num_choices() const {
  return running_.empty() ? 0
                          : running_.size() * static_cast<size_t>(running_[0].handle->request.num_choices);
}

}  // namespace restkv

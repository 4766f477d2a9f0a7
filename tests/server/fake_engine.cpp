// The fake engine: one thread, all its requests a token a step.
#include "tests/server/fake_engine.h"

#include <algorithm>

namespace restkv {

FakeEngine::FakeEngine(FakeEngineOptions options) : options_(std::move(options)), thread_([this] { run(); }) {
  plan_.max_model_len = options_.max_model_len;
  engine_options_.max_queue_requests = options_.max_queue;
  engine_options_.max_num_seqs = 32;  // as a CPU has it
}

FakeEngine::~FakeEngine() {
  {
    const std::lock_guard lock(mutex_);
    is_stopping_ = true;
  }
  work_.notify_one();
  thread_.join();
}

Status FakeEngine::submit(const std::shared_ptr<RequestHandle>& handle) {
  const Request& request = handle->request;
  const auto len = static_cast<int64_t>(request.prompt.size());
  if (len + request.max_tokens > options_.max_model_len) {
    return invalid_argument("too long: " + std::to_string(len) + " + " + std::to_string(request.max_tokens))
        .with_param("prompt")
        .with_reason("context_length_exceeded");
  }
  if (is_draining_) return {StatusCode::kUnavailable, "draining"};
  {
    const std::lock_guard lock(mutex_);
    last_request_ = request;
    if (num_open_ + request.num_choices > options_.max_queue) {
      return Status(StatusCode::kResourceExhausted, "the queue is full").with_reason("queue_full");
    }
    for (int32_t choice = 0; choice < request.num_choices; ++choice) queue_.push_back({handle, choice, 0});
    num_open_ += request.num_choices;
    std::erase_if(handles_, [](const auto& weak) { return weak.expired(); });
    handles_.push_back(handle);
  }
  work_.notify_one();
  return {};
}

bool FakeEngine::is_idle() const {
  const std::lock_guard lock(mutex_);
  return num_open_ == 0;
}

std::vector<RequestInfo> FakeEngine::requests(std::string_view owner) const {
  const std::lock_guard lock(mutex_);
  std::vector<RequestInfo> list;
  for (const Running& running : queue_) {
    const Request& request = running.handle->request;
    if (request.owner != owner || running.choice > 0) continue;
    list.push_back({.id = request.id,
                    .prompt_tokens = static_cast<int64_t>(request.prompt.size()),
                    .max_tokens = request.max_tokens,
                    .num_choices = request.num_choices});
  }
  return list;
}

bool FakeEngine::cancel(std::string_view id, std::string_view owner) {
  const std::lock_guard lock(mutex_);
  bool found = false;
  for (const std::weak_ptr<RequestHandle>& weak : handles_) {
    const std::shared_ptr<RequestHandle> handle = weak.lock();
    if (!handle || handle->request.id != id || handle->request.owner != owner) continue;
    handle->cancel();
    found = true;
  }
  return found;
}

void FakeEngine::cancel_all() {
  const std::lock_guard lock(mutex_);
  for (const std::weak_ptr<RequestHandle>& weak : handles_) {
    if (const std::shared_ptr<RequestHandle> handle = weak.lock()) handle->cancel();
  }
}

EngineStats FakeEngine::stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats stats;
  stats.waiting = is_held_ ? num_open_ : 0;
  return stats;
}

Request FakeEngine::last_request() const {
  const std::lock_guard lock(mutex_);
  return last_request_;
}

void FakeEngine::hold(bool on) {
  {
    const std::lock_guard lock(mutex_);
    is_held_ = on;
  }
  work_.notify_one();
}

void FakeEngine::run() {
  std::unique_lock lock(mutex_);
  while (!is_stopping_) {
    if (queue_.empty()) work_.wait(lock, [this] { return is_stopping_ || !queue_.empty(); });
    std::deque<Running> batch;
    batch.swap(queue_);
    const bool is_held = is_held_;
    lock.unlock();
    std::deque<Running> alive;
    std::vector<std::shared_ptr<RequestHandle>> touched;
    for (Running& running : batch) {
      touched.push_back(running.handle);
      const bool is_cancelled =
          running.handle->cancelled || (running.handle->cancelled_choices >> running.choice & 1u) != 0;
      if (is_cancelled) {
        ++(running.handle->cancelled ? num_cancelled_ : num_choices_cancelled_);
        finish(running, FinishReason::kCancelled, -1);
      } else if (is_held || step(running)) {
        alive.push_back(running);
      }
    }
    for (const auto& handle : touched) handle->stream.flush();
    if (is_held || options_.step.count() > 0) {
      std::this_thread::sleep_for(std::max(options_.step, std::chrono::microseconds(is_held ? 1000 : 0)));
    }
    lock.lock();
    num_open_ -= static_cast<int64_t>(batch.size() - alive.size());
    queue_.insert(queue_.begin(), alive.begin(), alive.end());
  }
  for (Running& running : queue_) {
    finish(running, FinishReason::kCancelled, -1);
    running.handle->stream.flush();
  }
}

bool FakeEngine::step(Running& running) {
  const Request& request = running.handle->request;
  if (running.generated == 0 && request.prompt_logprobs >= 0) {
    for (const int32_t token : request.prompt) {
      TokenRecord record;
      record.kind = TokenRecord::Kind::kPromptToken;
      record.choice = running.choice;
      record.token = token;
      record.logprob = token == ByteTokenizer::kBos ? std::numeric_limits<float>::quiet_NaN() : -2.0f;
      running.handle->stream.push(std::move(record));
    }
  }
  if (running.generated == options_.nan_at) {
    finish(running, FinishReason::kError, -1,
           Status(StatusCode::kInternal, "the model's output is not a number").with_reason("nan_logits"));
    return false;
  }
  if (running.generated >= request.max_tokens) return finish(running, FinishReason::kLength, -1), false;
  const size_t len = options_.answer.size();
  const auto at = static_cast<size_t>(running.generated);
  if (at >= len && !request.ignore_eos) {
    ++running.generated;
    return finish(running, FinishReason::kStop, ByteTokenizer::kEos), false;
  }
  TokenRecord record;
  record.choice = running.choice;
  record.token = static_cast<unsigned char>(options_.answer[at % len]);
  record.logprob = -0.5f;
  for (int32_t i = 0; i < request.sampling.num_logprobs; ++i)
    record.top.push_back({record.token + i, -0.5f - static_cast<float>(i)});
  ++running.generated;
  ++num_tokens_;
  if (std::find(request.stop_token_ids.begin(), request.stop_token_ids.end(), record.token) !=
      request.stop_token_ids.end()) {
    return finish(running, FinishReason::kStop, record.token), false;
  }
  running.handle->stream.push(std::move(record));
  if (running.generated >= request.max_tokens) return finish(running, FinishReason::kLength, -1), false;
  return true;
}

void FakeEngine::finish(Running& running, FinishReason reason, int32_t token, Status error) {
  TokenRecord record;
  record.kind = TokenRecord::Kind::kFinish;
  record.finish = reason;
  record.choice = running.choice;
  record.token = token;
  record.error = std::move(error);
  record.counters.prompt_tokens = static_cast<int32_t>(running.handle->request.prompt.size());
  record.counters.completion_tokens = running.generated;
  running.handle->stream.push(std::move(record));
}

}  // namespace restkv

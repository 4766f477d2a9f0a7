// The states of a generating call.
#include "server/grpc/generation_call.h"

#include <utility>

#include "server/config/logging.h"

namespace restkv {
namespace {

// Of text in one message; the rest comes in the next.
constexpr size_t kMessageBytes = 16 << 10;
constexpr size_t kMaxLoggedBody = 64 << 10;  // bytes, with log_content

// Tensors of bytes need not be UTF-8.
std::string logged_body(const RequestJson& body) {
  return body.dump(-1, ' ', false, RequestJson::error_handler_t::replace).substr(0, kMaxLoggedBody);
}

}  // namespace

GenerationCall::GenerationCall(GrpcShared& shared, grpc::CallbackServerContext& context, const char* method)
    : shared_(shared),
      context_(context),
      method_(method),
      request_id_(request_id_of(context, *shared.serving)),
      arrival_(Clock::now()),
      trace_(trace_of(context)) {
  context.AddInitialMetadata("x-request-id", request_id_);
}

void GenerationCall::start(CompletionApi api, Read read) {
  Serving& serving = *shared_.serving;
  Result<Caller> caller = caller_of(context_, serving);
  Status refusal = caller.ok() ? serving.check_room() : caller.status();
  {
    const std::lock_guard lock(mutex_);
    if (is_ended_ || is_cancelled_) return;  // while this request was read
    is_logged_ = false;
    usage_.reset();
    if (!refusal.ok()) return fail(refusal);
    caller_ = *std::move(caller);
  }
  serving.post([self = shared_from_this(), &serving, api, caller = *caller_, read = std::move(read)] {
    Result<RequestJson> body = read();
    if (body.ok() && serving.settings.logging.log_content)
      log_event(LogLevel::kInfo, "request body", {{"id", self->request_id_}, {"body", logged_body(*body)}});
    Result<CompletionJob> job = serving.time_job([&] {
      return body.ok() ? make_completion_job(*std::move(body), api, serving.completion_context(caller))
                       : Result<CompletionJob>(body.status());
    });
    const std::lock_guard lock(self->mutex_);
    if (self->is_ended_ || self->is_cancelled_) return;
    if (!job.ok()) return self->fail(job.status());
    self->submit(*std::move(job));
  });
}

void GenerationCall::submit(CompletionJob job) {
  Serving& serving = *shared_.serving;
  serving.warn_unknown_fields(job.unknown_fields);
  id_ = serving.answer_id(job);
  generation_ = std::make_unique<Generation>(serving, *caller_, std::move(job), id_);
  is_last_ = false;
  const std::weak_ptr<Pumped> weak = weak_from_this();
  const Refusal refusal = generation_->submit(arrival_, time_left(context_, serving.settings),
                                              [ready = shared_.ready, weak] { ready->wake(weak); });
  if (!refusal.ok()) {
    generation_.reset();
    return fail(refusal.status, refusal.retry_after_s);
  }
  begin();
}

void GenerationCall::pump() {
  const std::lock_guard lock(mutex_);
  pump_locked();
}

void GenerationCall::pump_locked() {
  if (is_writing_ || is_ended_ || is_cancelled_ || is_last_ || !generation_) return;
  int32_t index = 0;
  OutputDelta delta;
  size_t size = 0;
  bool has_some = false;
  while ((size < kMessageBytes || !sends_parts()) && generation_->take(index, delta)) {
    if (const Status error = generation_->fatal_error(delta); !error.ok()) {
      usage_ = generation_->usage();
      generation_.reset();
      return fail(error);
    }
    add(index, delta);
    size += delta.text.size() + 64 * (1 + delta.tokens.size());
    has_some = true;
  }
  const bool is_last = generation_->is_finished();
  if (!is_last && (!has_some || !sends_parts())) return;
  begin_write(is_last);
  if (is_last) {
    usage_ = generation_->usage();
    send(&*usage_);
  } else {
    send(nullptr);
  }
}

void GenerationCall::begin_write(bool is_last) {
  is_last_ = is_last;
  is_writing_ = true;
  write_begin_ = Clock::now();
}

void GenerationCall::write_done(bool ok) {
  const std::lock_guard lock(mutex_);
  is_writing_ = false;
  if (!ok && generation_) generation_->cancel();
  if (is_cancelled_ && !is_ended_) return end(grpc::Status::CANCELLED);
  if (!ok || is_ended_) return;
  if (is_last_) {
    generation_.reset();
    return after_last();
  }
  pump_locked();
}

void GenerationCall::cancelled() {
  const std::lock_guard lock(mutex_);
  is_cancelled_ = true;
  if (generation_) generation_->cancel();
  if (!is_ended_ && !is_writing_) end(grpc::Status::CANCELLED);
}

// A client that takes nothing is dropped, as over HTTP.
void GenerationCall::check_time(Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  if (!is_writing_ || is_ended_ || now - write_begin_ < shared_.serving->settings.server.write_timeout)
    return;
  ++shared_.serving->num_slow_clients;
  if (generation_) generation_->cancel();
  context_.TryCancel();
}

void GenerationCall::end(const grpc::Status& status) {
  is_ended_ = true;
  final_ = status;
  finish(status);
}

void GenerationCall::end_of_life() {
  const std::shared_ptr<GenerationCall> self = shared_from_this();
  {
    const std::lock_guard lock(mutex_);
    if (generation_) {
      generation_->cancel();
      if (!usage_) usage_ = generation_->usage();
    }
    log(final_);
  }
  shared_.ready->remove(self);
}

void GenerationCall::log(const grpc::Status& status) {
  if (std::exchange(is_logged_, true)) return;
  log_call(*shared_.serving, {.method = method_,
                              .id = request_id_,
                              .caller = caller_ ? caller_->name() : std::string(),
                              .status = status,
                              .arrival = arrival_,
                              .trace = trace_,
                              .usage = usage_});
}

}  // namespace restkv

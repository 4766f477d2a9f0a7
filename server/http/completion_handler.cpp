// One completion from its body to its last byte. A client that goes cancels its requests in the engine.
#include "server/http/completion_handler.h"

#include <vector>

#include "engine/request.h"
#include "server/config/logging.h"
#include "server/http/connection.h"
#include "server/openai/completion_job.h"
#include "server/openai/completion_writer.h"

namespace restkv {

namespace asio = boost::asio;

namespace {

constexpr size_t kMaxLoggedBody = 64 << 10;  // bytes, with log_content

// One prompt in the engine and the text that comes back.
struct Running {
  std::shared_ptr<RequestHandle> handle;
  std::unique_ptr<OutputAssembler> assembler;
  std::vector<TokenRecord> records;  // taken, [next, end) not shown yet
  size_t next = 0;
};

class Completion {
 public:
  Completion(Connection& connection, CompletionJob job)
      : connection_(connection),
        server_(connection.server()),
        tokenizer_(*server_.model.tokenizer),
        job_(std::move(job)),
        header_{job_.api, server_.new_id(job_.api == CompletionApi::kChat ? "chatcmpl-" : "cmpl-"),
                server_.model.name, unix_seconds()},
        events_(header_, tokenizer_, job_.include_usage) {}
  // Whatever ends this early: nothing goes on computing for it.
  ~Completion() { cancel(); }

  Status submit();
  asio::awaitable<void> stream();
  asio::awaitable<void> answer();

 private:
  static int64_t unix_seconds() {
    return std::chrono::duration_cast<std::chrono::seconds>(
               std::chrono::system_clock::now().time_since_epoch())
        .count();
  }
  bool is_finished() const {
    return std::all_of(running_.begin(), running_.end(),
                       [](const Running& r) { return r.assembler->is_finished(); });
  }
  void cancel() {
    for (const Running& r : running_) {
      if (!r.assembler->is_finished()) r.handle->cancel();
    }
  }
  OutputUsage usage() const {
    OutputUsage sum;
    for (const Running& r : running_) sum += r.assembler->usage();
    return sum;
  }
  // Next record of `r`, or null if none is there.
  static const TokenRecord* next_record(Running& r) {
    if (r.next == r.records.size()) {
      r.next = 0;
      if (!r.handle->stream.take(r.records)) return nullptr;
    }
    return &r.records[r.next++];
  }
  int32_t choice_index(size_t prompt_idx, int32_t choice) const {
    return static_cast<int32_t>(prompt_idx) * running_[prompt_idx].handle->request.num_choices + choice;
  }
  // What ends the whole answer: an error of the model or the engine's end.
  static Status fatal_error(const OutputDelta& delta) {
    if (delta.finish == FinishReason::kError) return delta.error;
    if (delta.finish == FinishReason::kCancelled)
      return {StatusCode::kUnavailable, "the request was cancelled, or the server is shutting down"};
    return {};
  }
  Status stream_records();

  Connection& connection_;
  ServerState& server_;
  const Tokenizer& tokenizer_;
  CompletionJob job_;
  CompletionHeader header_;
  CompletionEvents events_;
  std::vector<Running> running_;  // one a prompt
};

Status Completion::submit() {
  running_.reserve(job_.requests.size());
  for (size_t i = 0; i < job_.requests.size(); ++i) {
    Request& request = job_.requests[i];
    request.id = header_.id;
    request.owner = connection_.owner();
    request.first_choice = static_cast<int32_t>(i) * request.num_choices;
    request.arrival = connection_.arrival();
    request.timeout = server_.settings.server.request_timeout;
    if (!job_.has_seed) request.sampling.seed = server_.new_seed();
    auto wake = [event = connection_.event(), list = connection_.wake_list()] { list->wake(event); };
    auto handle = std::make_shared<RequestHandle>(std::move(request), std::move(wake));
    if (Status status = server_.model.engine->submit(handle); !status.ok()) {
      const bool is_prompt = status.param() == "prompt" && job_.api == CompletionApi::kChat;
      return is_prompt ? std::move(status).with_param("messages") : status;
    }
    Running& r = running_.emplace_back();
    r.assembler =
        std::make_unique<OutputAssembler>(tokenizer_, job_.output, *handle, std::move(job_.prompt_texts[i]));
    r.handle = std::move(handle);
  }
  return {};
}

Status Completion::stream_records() {
  OutputDelta delta;
  for (size_t i = 0; i < running_.size(); ++i) {
    Running& r = running_[i];
    while (!r.assembler->is_finished() && !connection_.is_full()) {
      const TokenRecord* record = next_record(r);
      if (!record) break;
      delta.clear();
      r.assembler->append(*record, delta);
      if (Status error = fatal_error(delta); !error.ok()) return error;
      if (!delta.empty())
        events_.append_chunk(connection_.stream(), choice_index(i, record->choice), delta, job_.output);
    }
  }
  return {};
}

asio::awaitable<void> Completion::stream() {
  connection_.start_stream();
  while (!is_finished()) {
    co_await connection_.event()->wait();
    if (connection_.is_gone()) break;
    if (Status error = stream_records(); !error.ok()) {
      cancel();
      CompletionEvents::append_error(connection_.stream(), api_error(error));
      break;
    }
    connection_.flush();
  }
  if (!connection_.is_gone()) {
    if (is_finished() && job_.include_usage) events_.append_usage(connection_.stream(), usage());
    CompletionEvents::append_done(connection_.stream());
  }
  co_await connection_.end_stream();
}

asio::awaitable<void> Completion::answer() {
  const auto num_choices = static_cast<size_t>(running_.front().handle->request.num_choices);
  std::vector<CompletionChoice> choices(running_.size() * num_choices);
  for (size_t i = 0; i < choices.size(); ++i) {
    choices[i].index = static_cast<int32_t>(i);
    choices[i].options = &job_.output;
  }
  while (!is_finished()) {
    co_await connection_.event()->wait();
    if (connection_.is_gone()) co_return;
    for (size_t i = 0; i < running_.size(); ++i) {
      while (const TokenRecord* record = next_record(running_[i])) {
        OutputDelta& output = choices[static_cast<size_t>(choice_index(i, record->choice))].output;
        const bool was_open = output.finish == FinishReason::kNone;
        running_[i].assembler->append(*record, output);
        const Status error = was_open ? fatal_error(output) : Status();
        if (error.ok()) continue;
        cancel();
        co_await connection_.respond_error(api_error(error));
        co_return;
      }
    }
  }
  co_await connection_.respond(200, "application/json",
                               completion_body(header_, choices, usage(), tokenizer_));
}

asio::awaitable<void> handle(Connection& connection, CompletionApi api) {
  ServerState& server = connection.server();
  const EngineOptions& options = server.model.engine->options();
  // Cheap refusals first: a full queue answers before anything is parsed.
  Status busy;
  if (server.is_draining) {
    busy = Status(StatusCode::kUnavailable, "the server is shutting down");
  } else if (server.model.engine->stats().waiting >= options.max_queue_requests ||
             server.num_jobs >= options.max_queue_requests) {
    busy = Status(StatusCode::kResourceExhausted, "the queue is full; try again later")
               .with_reason("queue_full");
  }
  if (!busy.ok()) {
    co_await connection.respond_error(api_error(busy));
    co_return;
  }
  connection.watch();
  const CompletionContext context{.tokenizer = server.model.tokenizer.get(),
                                  .served_name = server.model.name,
                                  .max_model_len = server.model.engine->memory_plan().max_model_len,
                                  .max_token_bytes = server.max_token_bytes,
                                  .default_max_tokens = server.settings.server.default_max_tokens,
                                  .strict_params = server.settings.server.strict_params,
                                  .sampling = server.sampling,
                                  .end_tokens = server.end_tokens,
                                  .chat_format = server.model.chat_format.get(),
                                  .cache = server.settings.cache.defaults,
                                  .cache_limits = server.settings.cache.limits(),
                                  .cache_profiles = server.settings.cache.profiles};
  Result<CompletionJob> job =
      co_await connection.offload([&] { return read_completion_job(connection.body(), api, context); });
  if (server.settings.logging.log_content) {
    const std::string_view shown = std::string_view(connection.body()).substr(0, kMaxLoggedBody);
    log_event(LogLevel::kInfo, "request body", {{"id", connection.request_id()}, {"body", shown}});
  }
  connection.body() = std::string();
  if (connection.is_gone()) co_return;
  if (!job.ok()) {
    co_await connection.respond_error(api_error(job.status()));
    co_return;
  }
  server.warn_unknown_fields(job->unknown_fields);
  const bool streams = job->stream;
  Completion completion(connection, *std::move(job));
  if (Status status = completion.submit(); !status.ok()) {
    co_await connection.respond_error(api_error(status));
    co_return;
  }
  if (streams) {
    co_await completion.stream();
  } else {
    co_await completion.answer();
  }
}

}  // namespace

asio::awaitable<void> handle_completions(Connection& connection) {
  co_await handle(connection, CompletionApi::kText);
}

asio::awaitable<void> handle_chat_completions(Connection& connection) {
  co_await handle(connection, CompletionApi::kChat);
}

}  // namespace restkv

// One completion from its body to its last byte. A client that goes cancels its requests in the engine.
#include "server/http/completion_handler.h"

#include <vector>

#include "server/config/logging.h"
#include "server/http/connection.h"
#include "server/openai/completion_writer.h"
#include "server/openai/llama_completion.h"
#include "server/serving/generation.h"

namespace restkv {

namespace asio = boost::asio;

namespace {

constexpr size_t kMaxLoggedBody = 64 << 10;  // bytes, with log_content

int64_t unix_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

class Completion {
 public:
  Completion(Connection& connection, CompletionJob job)
      : connection_(connection),
        server_(connection.server()),
        tokenizer_(*server_.model.tokenizer),
        header_{job.api, server_.serving->answer_id(job), server_.model.name, unix_seconds()},
        include_usage_(job.include_usage),
        events_(header_, tokenizer_, job.include_usage),
        generation_(*server_.serving, connection.caller(), std::move(job), header_.id) {}

  Refusal submit() {
    return generation_.submit(
        connection_.arrival(), server_.settings.server.request_timeout,
        [event = connection_.event(), list = connection_.wake_list()] { list->wake(event); });
  }
  asio::awaitable<void> stream();
  asio::awaitable<void> answer();

 private:
  // A piece of a choice that waits for others under stream_interval.
  struct Held {
    OutputDelta delta;
    int32_t count = -1;  // of pieces; -1: none was sent
  };

  Status stream_records();
  void append_progress();
  bool holds_back(int32_t index, OutputDelta& delta);
  void append_llama_events(const OutputDelta& delta);
  // With `delta` behind what came before.
  LlamaAnswer llama_answer(const OutputDelta& delta) {
    has_new_line_ = has_new_line_ || delta.text.find('\n') != std::string::npos;
    return {&tokenizer_, &generation_.job().output, &generation_.request(0), server_.model.name,
            has_new_line_};
  }

  Connection& connection_;
  ServerState& server_;
  const Tokenizer& tokenizer_;
  CompletionHeader header_;
  const bool include_usage_;
  CompletionEvents events_;
  bool has_new_line_ = false;  // of the text so far
  std::vector<Held> held_;     // [choices], under stream_interval
  Generation generation_;      // whatever ends this early: nothing goes on computing for it
};

// llama.cpp's event: the text as it comes, then one that says how it ended.
void Completion::append_llama_events(const OutputDelta& delta) {
  std::string& out = connection_.stream();
  const OutputUsage usage = generation_.usage();
  const LlamaAnswer answer = llama_answer(delta);
  if (!delta.text.empty() || !delta.tokens.empty() || !delta.token_ids.empty() ||
      delta.finish == FinishReason::kNone) {
    out += "data: ";
    append_llama_chunk(out, answer, delta, usage);
    out += "\n\n";
  }
  if (delta.finish == FinishReason::kNone) return;
  out += "data: ";
  append_llama_final(out, answer, delta, true, usage);
  out += "\n\n";
}

void Completion::append_progress() {
  PromptProgress progress;
  int32_t index = 0;
  while (generation_.take_progress(index, progress)) {
    if (header_.api == CompletionApi::kLlama) {
      connection_.stream() += "data: ";
      append_llama_progress(connection_.stream(), progress);
      connection_.stream() += "\n\n";
    } else {
      events_.append_progress(connection_.stream(), index, progress);
    }
  }
}

// Whether `delta` is kept for a later chunk; if not, it has what was kept before it.
bool Completion::holds_back(int32_t index, OutputDelta& delta) {
  const int32_t interval = generation_.job().output.stream_interval;
  if (interval == 1) return false;
  if (held_.empty()) held_.resize(generation_.num_choices());
  Held& held = held_[static_cast<size_t>(index)];
  if (++held.count == 0 || (held.count == 1 && delta.finish != FinishReason::kNone)) return false;
  held.delta.append(std::move(delta));
  if (held.count < interval && held.delta.finish == FinishReason::kNone) return true;
  held.count = 0;
  delta = std::move(held.delta);
  held.delta = {};
  return false;
}

Status Completion::stream_records() {
  OutputDelta delta;
  int32_t index = 0;
  append_progress();
  while (!connection_.is_full() && generation_.take(index, delta)) {
    if (Status error = generation_.fatal_error(delta); !error.ok()) return error;
    append_progress();  // what was done before this token
    if (holds_back(index, delta)) continue;
    if (header_.api == CompletionApi::kLlama) {
      append_llama_events(delta);
      continue;
    }
    if (generation_.job().continuous_usage) {
      const OutputUsage usage = generation_.usage();
      events_.append_chunk(connection_.stream(), index, delta, generation_.job().output, &usage);
    } else {
      events_.append_chunk(connection_.stream(), index, delta, generation_.job().output);
    }
  }
  return {};
}

asio::awaitable<void> Completion::stream() {
  connection_.start_stream();
  while (!generation_.is_finished()) {
    co_await connection_.event()->wait();
    if (connection_.is_gone()) break;
    if (Status error = stream_records(); !error.ok()) {
      generation_.cancel();
      CompletionEvents::append_error(connection_.stream(), api_error(error));
      break;
    }
    connection_.flush();
  }
  if (!connection_.is_gone()) {
    if (generation_.is_finished() && include_usage_)
      events_.append_usage(connection_.stream(), generation_.usage());
    if (header_.api != CompletionApi::kLlama) CompletionEvents::append_done(connection_.stream());
  }
  connection_.note_usage(generation_.usage());
  co_await connection_.end_stream();
}

asio::awaitable<void> Completion::answer() {
  std::vector<CompletionChoice> choices(generation_.num_choices());
  for (size_t i = 0; i < choices.size(); ++i) {
    choices[i].index = static_cast<int32_t>(i);
    choices[i].options = &generation_.job().output;
  }
  OutputDelta delta;
  int32_t index = 0;
  while (!generation_.is_finished()) {
    co_await connection_.event()->wait();
    if (connection_.is_gone()) {
      connection_.note_usage(generation_.usage());
      co_return;
    }
    while (generation_.take(index, delta)) {
      const Status error = generation_.fatal_error(delta);
      choices[static_cast<size_t>(index)].output.append(std::move(delta));
      if (error.ok()) continue;
      generation_.cancel();
      co_await connection_.respond_error(api_error(error));
      co_return;
    }
  }
  const OutputUsage used = generation_.usage();
  connection_.note_usage(used);
  if (header_.api == CompletionApi::kLlama) {
    std::string body;
    append_llama_final(body, llama_answer(choices[0].output), choices[0].output, false, used);
    co_await connection_.respond(200, "application/json", std::move(body));
    co_return;
  }
  co_await connection_.respond(200, "application/json", completion_body(header_, choices, used, tokenizer_));
}

asio::awaitable<void> handle(Connection& connection, CompletionApi api) {
  ServerState& server = connection.server();
  // Cheap refusals first: a full queue answers before anything is parsed.
  const Status busy = server.serving->check_room();
  if (!busy.ok()) {
    co_await connection.respond_error(api_error(busy));
    co_return;
  }
  connection.watch();
  const CompletionContext context = server.serving->completion_context(connection.caller());
  Result<CompletionJob> job = co_await connection.offload([&] {
    return server.serving->time_job([&] { return read_completion_job(connection.body(), api, context); });
  });
  if (server.settings.logging.log_content) {
    const std::string_view shown = std::string_view(connection.body()).substr(0, kMaxLoggedBody);
    log_event(LogLevel::kInfo, "request body", {{"id", connection.request_id()}, {"body", shown}});
  }
  connection.drop_body();
  if (connection.is_gone()) co_return;
  if (!job.ok()) {
    co_await connection.respond_error(api_error(job.status()));
    co_return;
  }
  server.serving->warn_unknown_fields(job->unknown_fields);
  const bool streams = job->stream;
  Completion completion(connection, *std::move(job));
  const Refusal refusal = completion.submit();
  if (!refusal.ok()) {
    co_await connection.respond_error(api_error(refusal.status), refusal.retry_after_s);
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

asio::awaitable<void> handle_llama_completion(Connection& connection) {
  co_await handle(connection, CompletionApi::kLlama);
}

asio::awaitable<void> handle_chat_completions(Connection& connection) {
  co_await handle(connection, CompletionApi::kChat);
}

}  // namespace restkv

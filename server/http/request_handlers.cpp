// Bodies written by hand: a few fields a request.
#include "server/http/request_handlers.h"

#include <algorithm>
#include <charconv>
#include <string>

#include "server/http/connection.h"
#include "server/openai/json_text.h"

namespace restkv {

namespace asio = boost::asio;

namespace {

constexpr std::string_view kJson = "application/json";

std::string_view phase_name(RequestPhase phase) {
  switch (phase) {
    case RequestPhase::kQueued: return "queued";
    case RequestPhase::kPrefill: return "prefill";
    case RequestPhase::kDecode: return "decode";
    case RequestPhase::kFinished: return "finished";
  }
  return "";
}

void append_request(std::string& out, const RequestInfo& info) {
  out += "{\"id\":";
  append_json_string(out, info.id);
  out +=
      ",\"object\":\"request\",\"state\":\"" + std::string(phase_name(info.phase)) + "\",\"prompt_tokens\":";
  append_json_number(out, info.prompt_tokens);
  out += ",\"completion_tokens\":";
  append_json_number(out, info.generated_tokens);
  out += ",\"max_tokens\":";
  append_json_number(out, info.max_tokens);
  out += ",\"n\":";
  append_json_number(out, int64_t{info.num_choices});
  out += ",\"priority\":";
  append_json_number(out, int64_t{info.priority});
  out += ",\"age_ms\":";
  append_json_number(out, static_cast<int64_t>(info.age_seconds * 1000.0));
  out += "}";
}

}  // namespace

std::string path_id(const Connection& connection, std::string_view prefix) {
  std::string_view text = std::string_view(connection.head().path).substr(prefix.size());
  std::string id;
  while (!text.empty()) {
    const std::string_view digits = text.substr(1, 2);
    uint8_t byte = 0;
    const bool is_escape = text[0] == '%' && digits.size() == 2 &&
                           std::from_chars(digits.begin(), digits.end(), byte, 16).ptr == digits.end();
    id += is_escape ? static_cast<char>(byte) : text.front();
    text.remove_prefix(is_escape ? 3 : 1);
  }
  return id;
}

asio::awaitable<void> handle_requests(Connection& c) {
  std::string body = "{\"object\":\"list\",\"data\":[";
  bool is_first = true;
  for (const RequestInfo& info : c.server().model.engine->requests(c.caller().name())) {
    if (!is_first) body += ",";
    append_request(body, info);
    is_first = false;
  }
  body += "]}";
  co_await c.respond(200, kJson, std::move(body));
}

asio::awaitable<void> handle_slots(Connection& c) {
  const Engine& engine = *c.server().model.engine;
  const int64_t running = engine.stats().running,
                total = std::max<int64_t>(engine.options().max_num_seqs, running);
  if (c.head().query == "fail_on_no_slot=1" && running == total) {
    co_await c.respond_error(http_error(503, "all slots are taken", "no_slot_available"));
    co_return;
  }
  const std::string context = std::to_string(engine.memory_plan().max_model_len);
  std::string body = "[";
  int64_t id = 0;
  const auto begin_slot = [&](bool is_processing) {
    if (id > 0) body += ',';
    body += "{\"id\":" + std::to_string(id++) + ",\"n_ctx\":" + context +
            ",\"speculative\":false,\"is_processing\":" + (is_processing ? "true" : "false");
  };
  for (const RequestInfo& info : engine.requests(c.caller().name())) {
    if (info.phase != RequestPhase::kPrefill && info.phase != RequestPhase::kDecode) continue;
    for (int32_t choice = 0; choice < info.num_choices && id < total; ++choice) {
      begin_slot(true);
      body += ",\"request_id\":";
      append_json_string(body, info.id);
      const int64_t done = info.generated_tokens / info.num_choices;
      body += ",\"n_prompt_tokens\":" + std::to_string(info.prompt_tokens) +
              ",\"params\":{\"n_predict\":" + std::to_string(info.max_tokens) +
              "},\"next_token\":[{\"has_next_token\":true,\"n_remain\":" +
              std::to_string(std::max<int64_t>(0, info.max_tokens - done)) +
              ",\"n_decoded\":" + std::to_string(done) + "}]}";
    }
  }
  while (id < total) {
    begin_slot(id < running);
    body += '}';
  }
  body += ']';
  co_await c.respond(200, kJson, std::move(body));
}

asio::awaitable<void> handle_cancel_request(Connection& c) {
  const std::string id = path_id(c, kRequestPath);
  if (!c.server().model.engine->cancel(id, c.caller().name())) {
    const ApiError error = http_error(404, "there is no request of this id in flight", "not_found");
    co_await c.respond_error(error);
    co_return;
  }
  std::string body = "{\"id\":";
  append_json_string(body, id);
  body += ",\"object\":\"request\",\"deleted\":true}";
  co_await c.respond(200, kJson, std::move(body));
}

}  // namespace restkv

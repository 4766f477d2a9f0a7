// The route table and the handlers that fit a few lines.
#include "server/http/routes.h"

#include <string>

#include "engine/model/json_reader.h"
#include "server/config/build_info.h"
#include "server/http/completion_handler.h"
#include "server/http/connection.h"
#include "server/http/metrics.h"
#include "server/http/request_handlers.h"
#include "server/openai/json_text.h"
#include "server/openai/model_list.h"
#include "server/openai/tokenize_api.h"
#include "server/openai/trace_body.h"

namespace restkv {

namespace asio = boost::asio;

namespace {

constexpr std::string_view kJson = "application/json";
constexpr std::string_view kModelPath = "/v1/models/";
constexpr std::string_view kTracePath = "/v1/cache/traces/";

ModelCard model_card(const ServerState& server) {
  return {server.model.name, server.created, server.model.engine->memory_plan().max_model_len};
}

asio::awaitable<void> handle_models(Connection& c) {
  co_await c.respond(200, kJson, model_list_body(model_card(c.server())));
}

// Ids may hold '/' (org/name), plain or as %2F.
asio::awaitable<void> handle_model(Connection& c) {
  std::string id = c.head().path.substr(kModelPath.size());
  for (const std::string_view slash : {"%2F", "%2f"}) {
    for (size_t at = id.find(slash); at != std::string::npos; at = id.find(slash))
      id.replace(at, slash.size(), "/");
  }
  const Status status = check_model_name(id, c.server().model.name);
  if (!status.ok()) {
    co_await c.respond_error(api_error(status));
  } else {
    co_await c.respond(200, kJson, model_body(model_card(c.server())));
  }
}

asio::awaitable<void> respond_result(Connection& c, Result<std::string> body) {
  if (!body.ok()) {
    co_await c.respond_error(api_error(body.status()));
  } else {
    co_await c.respond(200, kJson, *std::move(body));
  }
}

// Tokenising and rendering, on a worker.
asio::awaitable<void> handle_text(Connection& c,
                                  Result<std::string> (*make_body)(RequestJson, const TokenizeContext&)) {
  const ServerState& server = c.server();
  std::vector<std::string> unknown;
  const TokenizeContext context{
      .tokenizer = server.model.tokenizer.get(),
      .served_name = server.model.name,
      .max_model_len = model_card(server).max_model_len,
      .chat_format = server.model.chat_format.get(),
      .fields = {.strict = server.settings.server.strict_params, .unknown = &unknown}};
  Result<std::string> body = co_await c.offload([&]() -> Result<std::string> {
    Result<RequestJson> request = parse_ordered_json(c.body());
    if (!request.ok()) return request.status();
    return make_body(*std::move(request), context);
  });
  c.server().warn_unknown_fields(unknown);
  co_await respond_result(c, std::move(body));
}

asio::awaitable<void> handle_tokenize(Connection& c) { co_await handle_text(c, tokenize_body); }
asio::awaitable<void> handle_detokenize(Connection& c) { co_await handle_text(c, detokenize_body); }
asio::awaitable<void> handle_apply_template(Connection& c) { co_await handle_text(c, apply_template_body); }

asio::awaitable<void> handle_ready(Connection& c) {
  const ServerState& server = c.server();
  if (server.is_draining) {
    co_await c.respond_error(http_error(503, "the server is shutting down", "draining"));
  } else if (!server.model.engine->is_healthy()) {
    co_await c.respond_error(http_error(503, "the engine failed", "engine_failed"));
  } else {
    co_await c.respond(200, kJson, "{\"status\":\"ok\"}");
  }
}

asio::awaitable<void> handle_live(Connection& c) { co_await c.respond(200, kJson, "{\"status\":\"ok\"}"); }

asio::awaitable<void> handle_version(Connection& c) {
  std::string body = "{\"version\":";
  append_json_string(body, build_version());
  body += ",\"name\":\"restkv\"}";
  co_await c.respond(200, kJson, std::move(body));
}

asio::awaitable<void> handle_cache_trace(Connection& c) {
  const std::string id = c.head().path.substr(kTracePath.size());
  const Result<TraceQuery> query = parse_trace_query(c.head().query);
  if (!query.ok()) {
    co_await c.respond_error(api_error(query.status()));
    co_return;
  }
  // Without API keys all requests have one owner: nobody.
  const auto trace = c.server().model.engine->traces().find(id, {}, query->choice, Clock::now());
  if (!trace) {
    co_await c.respond_error(http_error(404,
                                        "there is no trace of this request: it was not asked for "
                                        "(cache.trace), is still running or is too old",
                                        "not_found"));
    co_return;
  }
  std::string body = co_await c.offload([&] { return trace_body(id, *trace, *query); });
  co_await c.respond(200, kJson, std::move(body));
}

asio::awaitable<void> handle_metrics(Connection& c) {
  const ServerState& server = c.server();
  co_await c.respond(200, kMetricsType,
                     metrics_text(server.model.engine->stats(), server.model.engine->histograms(),
                                  {server.settings.metrics.prefix, server.model.name}));
}

const Route kRoutes[] = {
    {"POST", "/v1/completions", false, handle_completions},
    {"POST", "/v1/chat/completions", false, handle_chat_completions},
    {"GET", "/v1/models", false, handle_models},
    {"GET", "/v1/models/{id}", false, handle_model},
    {"GET", "/v1/requests", false, handle_requests},
    {"DELETE", "/v1/requests/{id}", false, handle_cancel_request},
    {"GET", "/v1/cache/traces/{id}", false, handle_cache_trace},
    {"POST", "/tokenize", false, handle_tokenize},
    {"POST", "/detokenize", false, handle_detokenize},
    {"POST", "/apply-template", false, handle_apply_template},
    {"GET", "/health", true, handle_ready},
    {"GET", "/health/ready", true, handle_ready},
    {"GET", "/health/live", true, handle_live},
    {"GET", "/ping", true, handle_live},
    {"GET", "/version", true, handle_version},
    {"GET", "/metrics", true, handle_metrics},
};

bool matches_path(std::string_view pattern, std::string_view path) {
  const size_t brace = pattern.find('{');
  if (brace == std::string_view::npos) return pattern == path;
  return path.size() > brace && path.starts_with(pattern.substr(0, brace));
}

bool matches_method(std::string_view allowed, std::string_view method) {
  return allowed == method || (allowed == "GET" && method == "HEAD");
}

}  // namespace

std::span<const Route> route_table() { return kRoutes; }

asio::awaitable<void> handle_request(Connection& connection) {
  const RequestHead& head = connection.head();
  std::string allowed;
  const Route* found = nullptr;
  for (const Route& route : kRoutes) {
    if (!matches_path(route.path, head.path)) continue;
    if (matches_method(route.method, head.method)) found = &route;
    allowed +=
        (allowed.empty() ? "" : ", ") + std::string(route.method == "GET" ? "GET, HEAD" : route.method);
  }
  if (found) {
    co_await found->handle(connection);
    co_return;
  }
  if (allowed.empty()) {
    co_await connection.respond_error(http_error(404, "there is nothing at this path", "not_found"));
    co_return;
  }
  HeaderList headers;
  headers.emplace_back("Allow", allowed);
  const ApiError error = http_error(405, "this path takes " + allowed, "method_not_allowed");
  co_await connection.respond(405, kJson, error_body(error), std::move(headers));
}

}  // namespace restkv

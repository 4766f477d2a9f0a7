// The route table and the handlers that fit a few lines.
#include "server/http/routes.h"

#include <string>

#include "engine/model/json_reader.h"
#include "server/config/build_info.h"
#include "server/http/completion_handler.h"
#include "server/http/connection.h"
#include "server/http/metrics.h"
#include "server/http/page.h"
#include "server/http/request_handlers.h"
#include "server/openai/json_text.h"
#include "server/openai/model_list.h"
#include "server/openai/openapi.h"
#include "server/openai/tokenize_api.h"
#include "server/openai/trace_body.h"

namespace restkv {

namespace asio = boost::asio;

namespace {

constexpr std::string_view kJson = "application/json";
constexpr std::string_view kModelPath = "/v1/models/";
constexpr std::string_view kV2ModelPath = "/v2/models/";
constexpr std::string_view kTracePath = "/v1/cache/traces/";

ModelCard model_card(const ServerState& server) {
  return {server.model.name, server.serving->created, server.model.engine->memory_plan().max_model_len};
}

asio::awaitable<void> handle_models(Connection& c) {
  co_await c.respond(200, kJson, model_list_body(model_card(c.server())));
}

asio::awaitable<void> handle_model(Connection& c) {
  const std::string id = path_id(c, kModelPath);
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
  if (const Status busy = server.serving->check_workers(); !busy.ok()) {
    co_await c.respond_error(api_error(busy));
    co_return;
  }
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
  c.server().serving->warn_unknown_fields(unknown);
  co_await respond_result(c, std::move(body));
}

asio::awaitable<void> handle_tokenize(Connection& c) { co_await handle_text(c, tokenize_body); }
asio::awaitable<void> handle_detokenize(Connection& c) { co_await handle_text(c, detokenize_body); }
asio::awaitable<void> handle_apply_template(Connection& c) { co_await handle_text(c, apply_template_body); }

asio::awaitable<void> handle_tokenizer_info(Connection& c) {
  const ServerState& server = c.server();
  const TokenizeContext context{.tokenizer = server.model.tokenizer.get(),
                                .max_model_len = model_card(server).max_model_len,
                                .chat_format = server.model.chat_format.get()};
  co_await c.respond(200, kJson, tokenizer_info_body(context));
}

asio::awaitable<void> handle_ready(Connection& c) {
  const ServerState& server = c.server();
  if (server.serving->is_draining) {
    co_await c.respond_error(http_error(503, "the server is shutting down", "draining"));
  } else if (!server.model.engine->is_healthy()) {
    co_await c.respond_error(http_error(503, "the engine failed", "engine_failed"));
  } else {
    co_await c.respond(200, kJson, "{\"status\":\"ok\"}");
  }
}

asio::awaitable<void> handle_live(Connection& c) { co_await c.respond(200, kJson, "{\"status\":\"ok\"}"); }

asio::awaitable<void> handle_version(Connection& c) { co_await c.respond(200, kJson, version_body()); }

// What other servers have at these paths and this one does not: said as OpenAI's clients read it.
asio::awaitable<void> handle_unserved(Connection& c) {
  co_await c.respond_error(http_error(
      501,
      "this server does not have " + c.head().path + ": it serves /v1/chat/completions and /v1/completions",
      "not_implemented"));
}

asio::awaitable<void> handle_cache_trace(Connection& c) {
  const std::string id = path_id(c, kTracePath);
  const Result<TraceQuery> query = parse_trace_query(c.head().query);
  if (!query.ok()) {
    co_await c.respond_error(api_error(query.status()));
    co_return;
  }
  const auto trace =
      c.server().model.engine->traces().find(id, c.caller().name(), query->choice, Clock::now());
  if (!trace) {
    co_await c.respond_error(api_error(no_trace()));
    co_return;
  }
  std::string body = co_await c.offload([&] { return trace_body(id, *trace, *query); });
  co_await c.respond(200, kJson, std::move(body));
}

asio::awaitable<void> handle_metrics(Connection& c) {
  const ServerState& server = c.server();
  const Engine& engine = *server.model.engine;
  const ServerMetrics own{.http_connections = server.num_connections,
                          .body_bytes = static_cast<int64_t>(server.body_room.used()),
                          .slow_clients = server.serving->num_slow_clients,
                          .responses = server.serving->responses.rows(),
                          .tokenized = server.serving->num_tokenized,
                          .tokenize_seconds = 1e-9 * static_cast<double>(server.serving->tokenize_ns),
                          .memory = engine.memory_plan(),
                          .version = build_version(),
                          .commit = build_commit()};
  co_await c.respond(200, kMetricsType,
                     metrics_text(engine.stats(), engine.histograms(),
                                  {server.settings.metrics.prefix, server.model.name}, own));
}

asio::awaitable<void> handle_openapi(Connection& c) {
  ServerState& server = c.server();
  std::string document = co_await c.offload([&server] {
    std::call_once(server.openapi_once, [&server] {
      server.openapi =
          openapi_document(build_version(), {server.model.name, server.model.tokenizer->vocab_size()});
    });
    return server.openapi;
  });
  co_await c.respond(200, kJson, std::move(document));
}

asio::awaitable<void> handle_page(Connection& c) {
  // What the model writes is shown as text; should it become markup after all, it can load nothing and go nowhere.
  HeaderList headers = {
      {"Content-Security-Policy",
       "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
       "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
      {"X-Content-Type-Options", "nosniff"},
      {"Referrer-Policy", "no-referrer"}};
  co_await c.respond(200, "text/html; charset=utf-8", std::string(page_html()), std::move(headers));
}

asio::awaitable<void> handle_load(Connection& c) {
  const EngineStats stats = c.server().model.engine->stats();
  co_await c.respond(200, kJson, "{\"server_load\":" + std::to_string(stats.running + stats.waiting) + "}");
}

// llama.cpp's, without paths of this machine.
asio::awaitable<void> handle_props(Connection& c) {
  const Engine& engine = *c.server().model.engine;
  std::string body = "{\"model_alias\":";
  append_json_string(body, c.server().model.name);
  body += ",\"build_info\":";
  append_json_string(body, "restkv " + std::string(build_version()));
  body +=
      ",\"total_slots\":" + std::to_string(engine.options().max_num_seqs) +
      ",\"default_generation_settings\":{\"n_ctx\":" + std::to_string(engine.memory_plan().max_model_len) +
      "}}";
  co_await c.respond(200, kJson, std::move(body));
}

// The open inference protocol over HTTP: health and metadata.
asio::awaitable<void> handle_v2(Connection& c) {
  std::string body = "{\"name\":\"restkv\",\"version\":";
  append_json_string(body, build_version());
  body += ",\"extensions\":[]}";
  co_await c.respond(200, kJson, std::move(body));
}

asio::awaitable<void> handle_v2_model(Connection& c) {
  constexpr std::string_view kReady = "/ready", kVersion = "/versions/1";
  const ServerState& server = c.server();
  std::string id = path_id(c, kV2ModelPath);
  const bool asks_ready = id.ends_with(kReady);
  if (asks_ready) id.erase(id.size() - kReady.size());
  if (id.ends_with(kVersion)) id.erase(id.size() - kVersion.size());  // the only one there is
  const Status status = check_model_name(id, server.model.name);
  if (!status.ok()) {
    co_await c.respond_error(api_error(status));
    co_return;
  }
  if (asks_ready && !server.serving->is_ready()) {
    co_await handle_ready(c);
    co_return;
  }
  std::string body = "{\"name\":";
  append_json_string(body, server.model.name);
  body +=
      asks_ready
          ? ",\"ready\":true}"
          : ",\"versions\":[\"1\"],\"platform\":\"restkv\",\"inputs\":[{\"name\":\"text_input\",\"datatype\":"
            "\"BYTES\",\"shape\":[1]}],\"outputs\":[{\"name\":\"text_output\",\"datatype\":\"BYTES\","
            "\"shape\":[-1]}]}";
  co_await c.respond(200, kJson, std::move(body));
}

const Route kRoutes[] = {
    {"GET", "/", RouteAccess::kPublic, handle_page},
    {"POST", "/v1/completions", RouteAccess::kKey, handle_completions},
    {"POST", "/v1/chat/completions", RouteAccess::kKey, handle_chat_completions},
    {"POST", "/completion", RouteAccess::kKey, handle_llama_completion},
    {"POST", "/completions", RouteAccess::kKey, handle_llama_completion},
    {"GET", "/props", RouteAccess::kKey, handle_props},
    {"GET", "/slots", RouteAccess::kKey, handle_slots},
    {"GET", "/v1/models", RouteAccess::kKey, handle_models},
    {"GET", "/v1/models/{id}", RouteAccess::kKey, handle_model},
    {"GET", "/v1/requests", RouteAccess::kKey, handle_requests},
    {"DELETE", "/v1/requests/{id}", RouteAccess::kKey, handle_cancel_request},
    {"GET", "/v1/cache/traces/{id}", RouteAccess::kKey, handle_cache_trace},
    {"POST", "/tokenize", RouteAccess::kKey, handle_tokenize},
    {"POST", "/detokenize", RouteAccess::kKey, handle_detokenize},
    {"POST", "/apply-template", RouteAccess::kKey, handle_apply_template},
    {"GET", "/tokenizer_info", RouteAccess::kKey, handle_tokenizer_info},
    {"GET", "/load", RouteAccess::kKey, handle_load},
    {"GET", "/v2", RouteAccess::kKey, handle_v2},
    {"GET", "/v2/models/{id}", RouteAccess::kKey, handle_v2_model},
    {"GET", "/v2/health/live", RouteAccess::kPublic, handle_live},
    {"GET", "/v2/health/ready", RouteAccess::kPublic, handle_ready},
    {"GET", "/openapi.json", RouteAccess::kKey, handle_openapi},
    {"GET", "/health", RouteAccess::kPublic, handle_ready},
    {"GET", "/health/ready", RouteAccess::kPublic, handle_ready},
    {"GET", "/health/live", RouteAccess::kPublic, handle_live},
    {"GET", "/ping", RouteAccess::kPublic, handle_live},
    {"GET", "/version", RouteAccess::kPublic, handle_version},
    {"GET", "/metrics", RouteAccess::kMetrics, handle_metrics},
};

// Known to clients of other servers; in no description of this one.
const Route kUnserved[] = {
    {"POST", "/v1/embeddings", RouteAccess::kKey, handle_unserved},
    {"POST", "/v1/responses", RouteAccess::kKey, handle_unserved},
    {"POST", "/v1/messages", RouteAccess::kKey, handle_unserved},
    {"POST", "/v1/messages/count_tokens", RouteAccess::kKey, handle_unserved},
    {"POST", "/infill", RouteAccess::kKey, handle_unserved},
};

bool matches_path(std::string_view pattern, std::string_view path) {
  const size_t brace = pattern.find('{');
  if (brace == std::string_view::npos) return pattern == path;
  return path.size() > brace && path.starts_with(pattern.substr(0, brace));
}

bool is_loopback(const std::string& host) { return host == "::1" || host.starts_with("127."); }

bool is_public(const Route& route, const Settings& settings) {
  switch (route.access) {
    case RouteAccess::kKey: return false;
    case RouteAccess::kPublic: return true;
    case RouteAccess::kMetrics: return settings.metrics.is_public || is_loopback(settings.server.host);
  }
  return false;
}

// Authorization: Bearer KEY, or x-api-key: KEY.
Result<Caller> caller_of(const Connection& c, const AccessControl& access) {
  const std::string_view bearer = c.head().header("authorization");
  return access.authorize(bearer.empty() ? c.head().header("x-api-key") : bearer);
}

bool matches_method(std::string_view allowed, std::string_view method) {
  return allowed == method || (allowed == "GET" && method == "HEAD");
}

// The mistakes that base URLs invite: a slash at the end, /v1 left out or there twice.
std::string nothing_there(std::string_view path) {
  constexpr std::string_view kVersion = "/v1";
  const std::string text = "there is nothing at this path";
  while (path.size() > 1 && path.ends_with('/')) path.remove_suffix(1);
  if (path.starts_with(kVersion) && path.substr(kVersion.size()).starts_with("/v1/"))
    path.remove_prefix(kVersion.size());
  for (const std::string& candidate : {std::string(path), std::string(kVersion) + std::string(path)}) {
    for (const Route& route : kRoutes) {
      if (route.path == candidate) return text + "; did you mean " + candidate + "?";
    }
  }
  return text;
}

}  // namespace

std::span<const Route> route_table() { return kRoutes; }

std::string version_body() {
  std::string body = "{\"version\":";
  append_json_string(body, build_version());
  return body + ",\"name\":\"restkv\"}";
}

Admission admit(Connection& connection) {
  const RequestHead& head = connection.head();
  std::string allowed;
  Admission admission;
  for (const std::span<const Route> routes :
       {std::span<const Route>(kRoutes), std::span<const Route>(kUnserved)}) {
    for (const Route& route : routes) {
      if (!matches_path(route.path, head.path)) continue;
      if (matches_method(route.method, head.method)) admission.route = &route;
      admission.path = route.path;
      allowed +=
          (allowed.empty() ? "" : ", ") + std::string(route.method == "GET" ? "GET, HEAD" : route.method);
    }
  }
  if (admission.route && !is_public(*admission.route, connection.server().settings)) {
    Result<Caller> caller = caller_of(connection, connection.server().serving->access);
    if (caller.ok()) {
      connection.set_caller(*std::move(caller));
    } else {
      admission.route = nullptr;
      admission.error = api_error(caller.status());
    }
  } else if (!admission.route && allowed.empty()) {
    admission.error = http_error(404, nothing_there(head.path), "not_found");
  } else if (!admission.route) {
    admission.error = http_error(405, "this path takes " + allowed, "method_not_allowed");
    admission.headers.emplace_back("Allow", allowed);
  }
  return admission;
}

asio::awaitable<void> respond_refused(Connection& connection, const Admission& admission) {
  co_await connection.respond_error(admission.error, 1, admission.headers);
}

asio::awaitable<void> handle_request(Connection& connection, const Admission& admission) {
  if (admission.route) {
    co_await admission.route->handle(connection);
  } else {
    co_await respond_refused(connection, admission);
  }
}

}  // namespace restkv

// The server in this process, with a fake engine, over real sockets.
#include "server/http/server.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "server/config/logging.h"
#include "tests/server/fake_engine.h"
#include "tests/server/raw_client.h"

namespace restkv {
namespace {

using nlohmann::json;
using namespace std::chrono_literals;

int status_of(const std::string& response) {
  return response.size() > 12 ? std::stoi(response.substr(9, 3)) : -1;
}
std::string body_of(const std::string& response) {
  const size_t end = response.find("\r\n\r\n");
  return end == std::string::npos ? "" : response.substr(end + 4);
}
std::string post(const std::string& path, const std::string& body, const std::string& headers = "") {
  return "POST " + path + " HTTP/1.1\r\nHost: a\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" +
         headers + "\r\n" + body;
}
std::string get(const std::string& path, const std::string& headers = "") {
  return "GET " + path + " HTTP/1.1\r\nHost: a\r\n" + headers + "\r\n";
}

template <class Condition>
bool becomes_true(Condition condition, std::chrono::milliseconds limit = 5s) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(2ms);
  }
  return true;
}

class HttpServerTest : public testing::Test {
 protected:
  HttpServerTest() {
    settings_.server.port = 0;
    settings_.server.io_threads = 2;
    settings_.logging.level = LogLevel::kError;
    set_up_logging(settings_.logging);
  }

  void start(FakeEngineOptions options = {}) {
    engine_ = std::make_shared<FakeEngine>(std::move(options));
    Result<std::unique_ptr<HttpServer>> server = HttpServer::start(serving("test-model", settings_));
    ASSERT_TRUE(server.ok()) << server.status().message();
    server_ = *std::move(server);
  }

  std::shared_ptr<Serving> serving(const std::string& name, const Settings& settings) const {
    return std::make_shared<Serving>(
        settings, ServedModel{name, engine_, std::make_shared<ByteTokenizer>(), chat_format_});
  }

  // One request on a connection of its own, to the server's close.
  std::string exchange(const std::string& bytes) {
    RawClient client(server_->port());
    client.send(bytes);
    return client.receive_all();
  }
  std::string complete(const std::string& body) {
    return exchange(post("/v1/completions", body, "Connection: close\r\n"));
  }
  json complete_json(const std::string& body) {
    const std::string response = complete(body);
    EXPECT_EQ(status_of(response), 200) << response;
    return json::parse(body_of(response));
  }
  // The data of the events of a chunked stream.
  static std::vector<std::string> events(const std::string& response) {
    std::string text;
    const std::string body = body_of(response);
    for (size_t at = 0; at < body.size();) {
      const size_t line = body.find("\r\n", at);
      if (line == std::string::npos) break;
      const size_t len = std::stoul(body.substr(at, line - at), nullptr, 16);
      text += body.substr(line + 2, len);
      at = line + 2 + len + 2;
    }
    std::vector<std::string> data;
    for (size_t at = 0; at < text.size();) {
      const size_t end = text.find("\n\n", at);
      if (end == std::string::npos) break;
      const std::string event = text.substr(at, end - at);
      data.push_back(event.starts_with("data: ") ? event.substr(6) : event);
      at = end + 2;
    }
    return data;
  }

  Settings settings_;
  std::shared_ptr<const ChatFormat> chat_format_;
  std::shared_ptr<FakeEngine> engine_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, Completion) {
  start();
  const json answer = complete_json(R"({"prompt":"hi"})");
  EXPECT_EQ(answer["object"], "text_completion");
  EXPECT_EQ(answer["model"], "test-model");
  EXPECT_TRUE(answer["id"].get<std::string>().starts_with("cmpl-"));
  EXPECT_EQ(answer["choices"][0]["text"], "hello world");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(answer["choices"][0]["logprobs"], nullptr);
  EXPECT_EQ(answer["usage"]["prompt_tokens"], 3);
  EXPECT_EQ(answer["usage"]["completion_tokens"], 12);
  EXPECT_EQ(answer["usage"]["total_tokens"], 15);
  EXPECT_TRUE(answer.contains("timings"));
  EXPECT_EQ(complete_json(R"({"prompt":"hi","max_tokens":3})")["choices"][0]["finish_reason"], "length");
}

std::shared_ptr<const ChatFormat> small_format(
    const std::string& source =
        "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}") {
  const std::map<std::string, std::string> sources = {{"default", source}};
  return std::make_shared<const ChatFormat>("a test", sources, "<s>", "</s>");
}

TEST_F(HttpServerTest, ChatCompletion) {
  chat_format_ = small_format();
  start();
  const auto chat = [&](const std::string& fields) {
    const std::string response = exchange(
        post("/v1/chat/completions", R"({"messages":[{"role":"user","content":"hi</s>"}])" + fields + "}",
             "Connection: close\r\n"));
    EXPECT_EQ(status_of(response), 200) << response;
    return json::parse(body_of(response));
  };
  const json answer = chat("");
  EXPECT_EQ(answer["object"], "chat.completion");
  EXPECT_TRUE(answer["id"].get<std::string>().starts_with("chatcmpl-"));
  EXPECT_EQ(answer["choices"][0]["message"],
            json::parse(R"({"role":"assistant","content":"hello world","refusal":null})"));
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(answer["choices"][0]["logprobs"], nullptr);
  // <s> u s e r : h i < / s > (typed, so text) </s> a s s i s t a n t :
  EXPECT_EQ(answer["usage"]["prompt_tokens"], 1 + 5 + 2 + 4 + 1 + 10);
  const Request request = engine_->last_request();
  EXPECT_EQ(std::count(request.prompt.begin(), request.prompt.end(), ByteTokenizer::kEos), 1);
  EXPECT_EQ(std::count(request.prompt.begin(), request.prompt.end(), ByteTokenizer::kBos), 1);
  EXPECT_EQ(request.max_tokens, 256 - static_cast<int32_t>(request.prompt.size()))
      << "what the context has left";

  const json few = chat(R"(,"max_completion_tokens":2,"logprobs":true,"top_logprobs":2,"n":2)");
  ASSERT_EQ(few["choices"].size(), 2u);
  EXPECT_EQ(few["choices"][1]["finish_reason"], "length");
  EXPECT_EQ(few["choices"][1]["logprobs"]["content"],
            json::parse(R"([{"token":"h","logprob":-0.5,"bytes":[104],"top_logprobs":[
              {"token":"h","logprob":-0.5,"bytes":[104]},{"token":"i","logprob":-1.5,"bytes":[105]}]},
              {"token":"e","logprob":-0.5,"bytes":[101],"top_logprobs":[
              {"token":"e","logprob":-0.5,"bytes":[101]},{"token":"f","logprob":-1.5,"bytes":[102]}]}])"));
}

TEST_F(HttpServerTest, ChatStream) {
  chat_format_ = small_format();
  start();
  const std::string response =
      exchange(post("/v1/chat/completions",
                    R"({"messages":[{"role":"user","content":"hi"}],"stream":true,"stop":"wor","n":2,
                        "stream_options":{"include_usage":true}})",
                    "Connection: close\r\n"));
  const std::vector<std::string> data = events(response);
  ASSERT_GT(data.size(), 6u);
  EXPECT_EQ(data.back(), "[DONE]");
  std::map<int, std::string> texts;
  std::map<int, std::vector<json>> deltas;
  for (size_t i = 0; i + 2 < data.size(); ++i) {
    const json event = json::parse(data[i]);
    EXPECT_EQ(event["object"], "chat.completion.chunk");
    EXPECT_EQ(event["usage"], nullptr);
    ASSERT_EQ(event["choices"].size(), 1u);
    const json& choice = event["choices"][0];
    deltas[choice["index"]].push_back(choice);
    if (choice["delta"].contains("content")) texts[choice["index"]] += choice["delta"]["content"];
  }
  ASSERT_EQ(deltas.size(), 2u);
  for (const auto& [index, choices] : deltas) {
    EXPECT_EQ(choices.front()["delta"], json::parse(R"({"role":"assistant","content":""})")) << index;
    EXPECT_EQ(choices.front()["finish_reason"], nullptr);
    EXPECT_EQ(choices.back()["delta"], json::object());
    EXPECT_EQ(choices.back()["finish_reason"], "stop");
    EXPECT_EQ(choices.back()["stop_reason"], "wor");
    for (size_t i = 1; i + 1 < choices.size(); ++i) EXPECT_EQ(choices[i]["finish_reason"], nullptr);
    EXPECT_EQ(texts[index], "hello ");
  }
  const json usage = json::parse(data[data.size() - 2]);
  EXPECT_EQ(usage["choices"], json::array());
  EXPECT_GT(usage["usage"]["completion_tokens"], 0);
}

TEST_F(HttpServerTest, ChatErrors) {
  const auto error_of = [&](const std::string& fields,
                            const std::string& messages = R"([{"role":"user","content":"hi"}])") {
    const std::string response = exchange(
        post("/v1/chat/completions", "{\"messages\":" + messages + fields + "}", "Connection: close\r\n"));
    EXPECT_EQ(status_of(response), 400) << response;
    return json::parse(body_of(response))["error"];
  };
  start();
  EXPECT_EQ(error_of("")["code"], "no_chat_template");
  chat_format_ = small_format("{% for m in messages %}{{ m.content + 1 }}{% endfor %}");
  start();
  EXPECT_EQ(error_of("")["param"], "messages");
  EXPECT_NE(error_of("")["message"].get<std::string>().find("line 1, column"), std::string::npos);
  chat_format_ = small_format("{{ raise_exception('one role only') }}");
  start();
  EXPECT_EQ(error_of("")["message"], "one role only");
  chat_format_ =
      small_format("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}");
  start();
  EXPECT_EQ(error_of("")["code"], "template_limit");
  chat_format_ = small_format();
  start();
  EXPECT_EQ(error_of("", R"([{"role":"user","content":")" + std::string(300, 'x') + "\"}]")["code"],
            "context_length_exceeded");
  EXPECT_EQ(error_of("", R"([{"role":"user","content":")" + std::string(300, 'x') + "\"}]")["param"],
            "messages");
}

TEST_F(HttpServerTest, ChatErrorAfterTheStart) {
  chat_format_ = small_format();
  start({.nan_at = 3});
  const std::vector<std::string> data = events(
      exchange(post("/v1/chat/completions", R"({"messages":[{"role":"user","content":"hi"}],"stream":true})",
                    "Connection: close\r\n")));
  ASSERT_GE(data.size(), 3u);
  EXPECT_EQ(json::parse(data[data.size() - 2])["error"]["code"], "nan_logits");
  EXPECT_EQ(data.back(), "[DONE]");
}

TEST_F(HttpServerTest, ChoicesOfSeveralPrompts) {
  start();
  const json answer = complete_json(R"({"prompt":["a","bc"],"n":2,"echo":true,"max_tokens":2})");
  ASSERT_EQ(answer["choices"].size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(answer["choices"][i]["index"], i);
    EXPECT_EQ(answer["choices"][i]["text"], i < 2 ? "ahe" : "bche");
  }
  EXPECT_EQ(answer["usage"]["prompt_tokens"], 5);
  EXPECT_EQ(answer["usage"]["completion_tokens"], 8);
}

TEST_F(HttpServerTest, StopStringUsageAndLogprobs) {
  start();
  const json answer = complete_json(R"({"prompt":"a","stop":"lo w","logprobs":1,"max_tokens":50})");
  EXPECT_EQ(answer["choices"][0]["text"], "hel");
  EXPECT_EQ(answer["choices"][0]["stop_reason"], "lo w");
  EXPECT_EQ(answer["usage"]["completion_tokens"], 7);
  const json& logprobs = answer["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"], json({"h", "e", "l"}));
  EXPECT_EQ(logprobs["text_offset"], json({0, 1, 2}));
  EXPECT_EQ(logprobs["top_logprobs"][0], json({{"h", -0.5}}));
  const json echo = complete_json(R"({"prompt":"ab","echo":true,"logprobs":0,"max_tokens":0})");
  EXPECT_EQ(echo["choices"][0]["text"], "ab");
  EXPECT_EQ(echo["choices"][0]["logprobs"]["token_logprobs"], json({nullptr, -2.0, -2.0}));
}

TEST_F(HttpServerTest, Stream) {
  start();
  const std::string response =
      complete(R"({"prompt":"hi","stream":true,"stream_options":{"include_usage":true}})");
  EXPECT_EQ(status_of(response), 200);
  EXPECT_NE(response.find("Content-Type: text/event-stream; charset=utf-8\r\n"), std::string::npos);
  const std::vector<std::string> data = events(response);
  ASSERT_GE(data.size(), 3u);
  EXPECT_EQ(data.back(), "[DONE]");
  std::string text;
  for (size_t i = 0; i + 2 < data.size(); ++i) {
    const json chunk = json::parse(data[i]);
    EXPECT_EQ(chunk["usage"], nullptr);
    text += chunk["choices"][0]["text"].get<std::string>();
    EXPECT_EQ(chunk["choices"][0]["finish_reason"].is_null(), i + 3 < data.size());
  }
  EXPECT_EQ(text, "hello world");
  const json usage = json::parse(data[data.size() - 2]);
  EXPECT_TRUE(usage["choices"].empty());
  EXPECT_EQ(usage["usage"]["completion_tokens"], 12);
}

TEST_F(HttpServerTest, StreamOverHttp10EndsWithTheConnection) {
  start();
  const std::string body = R"({"prompt":"hi","stream":true})";
  const std::string response = exchange(
      "POST /v1/completions HTTP/1.0\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
  EXPECT_EQ(response.find("Transfer-Encoding"), std::string::npos);
  EXPECT_TRUE(response.ends_with("data: [DONE]\n\n"));
}

TEST_F(HttpServerTest, KeepAliveAndPipelining) {
  start();
  RawClient client(server_->port());
  const std::string streamed = post("/v1/completions", R"({"prompt":"hi","stream":true})");
  client.send("\r\n" + get("/version") + streamed + get("/health/live") +
              get("/ping", "Connection: close\r\n"));
  const std::string all = client.receive_all();
  size_t count = 0;
  for (size_t at = all.find("HTTP/1.1 200"); at != std::string::npos; at = all.find("HTTP/1.1 200", at + 1))
    ++count;
  EXPECT_EQ(count, 4u) << all;
  EXPECT_TRUE(client.is_closed());
}

TEST_F(HttpServerTest, ExpectContinueAndChunkedBody) {
  start();
  RawClient client(server_->port());
  client.send(
      "POST /tokenize HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n");
  EXPECT_EQ(client.receive_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send("5\r\n{\"pro\r\nb\r\nmpt\":\"abc\"}\r\n0\r\n\r\n");
  EXPECT_NE(client.receive_until("token_x", 1).find("\"tokens\":[256,97,98,99]"), std::string::npos);
}

TEST_F(HttpServerTest, HeadAndHeaders) {
  start();
  const std::string head =
      exchange("HEAD /v1/models HTTP/1.1\r\nHost: a\r\nX-Request-Id: my-1\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(status_of(head), 200);
  EXPECT_EQ(body_of(head), "");
  EXPECT_NE(head.find("X-Request-Id: my-1\r\n"), std::string::npos);
  EXPECT_NE(head.find("openai-processing-ms: "), std::string::npos);
  const std::string bad_id = exchange(get("/ping", "X-Request-Id: a b\r\nConnection: close\r\n"));
  EXPECT_NE(bad_id.find("X-Request-Id: req-"), std::string::npos);
}

TEST_F(HttpServerTest, RoutesAndErrors) {
  start();
  const auto error_of = [&](const std::string& request, int status) {
    const std::string response = exchange(request);
    EXPECT_EQ(status_of(response), status) << response;
    return json::parse(body_of(response))["error"];
  };
  const std::string close = "Connection: close\r\n";
  EXPECT_EQ(error_of(get("/nothing", close), 404)["type"], "not_found_error");
  EXPECT_EQ(error_of(get("/v1/completions", close), 405)["code"], "method_not_allowed");
  EXPECT_EQ(error_of(post("/v1/chat/completions", "{}", close), 400)["param"], "messages");
  EXPECT_EQ(error_of(get("/v1/models/other", close), 404)["code"], "model_not_found");
  EXPECT_EQ(error_of(post("/v1/completions", R"({"prompt":"a","model":"other"})", close), 404)["code"],
            "model_not_found");
  EXPECT_EQ(error_of(post("/v1/completions", R"({"prompt":"a","n":17})", close), 400)["param"], "n");
  EXPECT_EQ(error_of(post("/v1/completions", "nonsense", close), 400)["type"], "invalid_request_error");
  EXPECT_EQ(error_of(post("/v1/completions", R"({"prompt":"a","max_tokens":1000})", close), 400)["code"],
            "context_length_exceeded");
  const json models = json::parse(body_of(exchange(get("/v1/models", close))));
  EXPECT_EQ(models["data"][0]["id"], "test-model");
  EXPECT_EQ(json::parse(body_of(exchange(get("/v1/models/test-model", close))))["object"], "model");
}

TEST_F(HttpServerTest, NanEndsARequestAsAnError) {
  start({.nan_at = 2});
  const std::string response = complete(R"({"prompt":"a"})");
  EXPECT_EQ(status_of(response), 500);
  EXPECT_EQ(json::parse(body_of(response))["error"]["code"], "nan_logits");
  const std::vector<std::string> data = events(complete(R"({"prompt":"a","stream":true})"));
  ASSERT_GE(data.size(), 2u);
  EXPECT_EQ(data.back(), "[DONE]");
  EXPECT_EQ(json::parse(data[data.size() - 2])["error"]["code"], "nan_logits");
}

TEST_F(HttpServerTest, RefusedRequestsAreAnsweredAndClosed) {
  settings_.server.max_body_size = 100;
  start();
  const struct {
    std::string bytes;
    int status;
  } rows[] = {
      {"GET / HTTP/1.1\nHost: a\n\n", 400},
      {"GET / HTTP/1.1\r\nHost: a/v1/x?\r\n\r\n", 400},
      {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
      {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\n", 400},
      {post("/tokenize", std::string(101, ' ')), 413},
      {"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 101\r\nExpect: 100-continue\r\n\r\n", 413},
      {"GET /" + std::string(9000, 'a') + " HTTP/1.1\r\n\r\n", 414},
      {get("/", "A: " + std::string(17000, 'a') + "\r\n"), 431},
  };
  for (const auto& row : rows) {
    RawClient client(server_->port());
    client.send(row.bytes);
    client.shut_down_sending();
    const std::string response = client.receive_all();
    EXPECT_EQ(status_of(response), row.status) << row.bytes.substr(0, 80);
    EXPECT_NE(response.find("Connection: close\r\n"), std::string::npos);
    EXPECT_TRUE(client.is_closed());
  }
  EXPECT_EQ(status_of(exchange(
                post("/tokenize", R"({"prompt":"a"})" + std::string(86, ' '), "Connection: close\r\n"))),
            200);
}

TEST_F(HttpServerTest, SlowHeadersAndIdleConnections) {
  settings_.server.header_timeout = 200ms;
  settings_.server.idle_timeout = 300ms;
  start();
  RawClient slow(server_->port());
  slow.send("GET / HTTP/1.1\r\nHost");
  EXPECT_EQ(status_of(slow.receive_all(3)), 408);
  RawClient silent(server_->port());
  EXPECT_EQ(silent.receive_all(3), "");
  EXPECT_TRUE(silent.is_closed());
  RawClient idle(server_->port());
  idle.send(get("/ping"));
  EXPECT_EQ(status_of(idle.receive_until("\"ok\"}")), 200);
  idle.receive_all(3);
  EXPECT_TRUE(idle.is_closed());
}

TEST_F(HttpServerTest, SlowBody) {
  settings_.server.body_timeout = 300ms;
  start();
  RawClient client(server_->port());
  client.send("POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{");
  EXPECT_EQ(status_of(client.receive_all(3)), 408);
}

TEST_F(HttpServerTest, BodyBelowTheRate) {
  settings_.server.header_timeout = 200ms;  // the grace, too
  settings_.server.min_body_rate = 1000;
  start();
  const std::string head = "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 3000\r\n\r\n";
  RawClient slow(server_->port());
  slow.send(head + std::string(100, ' '));
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(status_of(slow.receive_all(3)), 408);
  EXPECT_GT(std::chrono::steady_clock::now() - begin, 250ms);
  RawClient steady(server_->port());  // 2,000 bytes a second
  steady.send(head);
  for (int i = 0; i < 15; ++i) {
    steady.send(i == 14 ? std::string(188, ' ') + R"({"prompt":"a"})" : std::string(i == 0 ? 198 : 200, ' '));
    std::this_thread::sleep_for(100ms);
  }
  EXPECT_EQ(status_of(steady.receive_until("}")), 200);
}

TEST_F(HttpServerTest, PingsWhileNothingComes) {
  settings_.server.ping_interval = 100ms;
  start();
  engine_->hold(true);
  RawClient client(server_->port());
  client.send(post("/v1/completions", R"({"prompt":"a","stream":true,"max_tokens":2})"));
  EXPECT_NE(client.receive_until(": ping\n\n").find(": ping\n\n"), std::string::npos);
  engine_->hold(false);
  EXPECT_NE(client.receive_until("[DONE]").find("[DONE]"), std::string::npos);
}

TEST_F(HttpServerTest, FullQueueAnswersAtOnce) {
  start({.max_queue = 2});
  engine_->hold(true);
  RawClient first(server_->port()), second(server_->port());
  first.send(post("/v1/completions", R"({"prompt":"a"})"));
  second.send(post("/v1/completions", R"({"prompt":"a"})"));
  ASSERT_TRUE(becomes_true([&] { return engine_->stats().waiting == 2; }));
  const auto begin = std::chrono::steady_clock::now();
  const std::string response = complete(R"({"prompt":"a"})");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 500ms);
  EXPECT_EQ(status_of(response), 429);
  EXPECT_NE(response.find("Retry-After: 1\r\n"), std::string::npos);
  EXPECT_EQ(json::parse(body_of(response))["error"]["type"], "rate_limit_error");
  EXPECT_EQ(status_of(exchange(get("/health", "Connection: close\r\n"))), 200);
  engine_->hold(false);
  EXPECT_EQ(status_of(first.receive_until("timings")), 200);
}

TEST_F(HttpServerTest, ListThatDoesNotFitTheQueueLeavesNothingBehind) {
  start({.max_queue = 2});
  engine_->hold(true);
  EXPECT_EQ(status_of(complete(R"({"prompt":["a","b","c"]})")), 429);
  EXPECT_TRUE(becomes_true([&] { return engine_->is_idle(); }));
  EXPECT_EQ(engine_->num_cancelled(), 2);
}

TEST_F(HttpServerTest, GoneClientsCancel) {
  start({.answer = "x", .step = 1ms, .max_model_len = 1'000'000});
  const std::string fields = R"("prompt":"a","ignore_eos":true,"max_tokens":900000,"n":2)";
  const std::string bodies[] = {"{" + fields + "}", "{" + fields + ",\"stream\":true}"};
  int64_t expected = 0;
  for (const std::string& body : bodies) {
    for (const bool is_killed : {true, false}) {
      RawClient client(server_->port());
      client.send(post("/v1/completions", body));
      const int64_t before = engine_->num_tokens();
      ASSERT_TRUE(becomes_true([&] { return engine_->num_tokens() > before + 20; }));
      if (is_killed) {
        client.reset();
      } else {
        client.shut_down_sending();
      }
      expected += 2;
      EXPECT_TRUE(becomes_true([&] { return engine_->num_cancelled() == expected; })) << body;
      EXPECT_TRUE(becomes_true([&] { return server_->is_idle(); }));
    }
  }
  // Queued, never started.
  ASSERT_TRUE(becomes_true([&] { return engine_->is_idle(); }));
  engine_->hold(true);
  RawClient client(server_->port());
  client.send(post("/v1/completions", bodies[0]));
  ASSERT_TRUE(becomes_true([&] { return engine_->stats().waiting == 2; }));
  client.reset();
  EXPECT_TRUE(becomes_true([&] { return engine_->num_cancelled() == expected + 2; }));
}

TEST_F(HttpServerTest, StopStringCancelsItsChoiceAlone) {
  start({.answer = "abc", .step = 1ms, .max_model_len = 100'000});
  const json answer =
      complete_json(R"({"prompt":"a","ignore_eos":true,"max_tokens":50000,"n":3,"stop":"bca"})");
  for (const json& choice : answer["choices"]) EXPECT_EQ(choice["text"], "a");
  EXPECT_EQ(answer["usage"]["completion_tokens"], 12);
  EXPECT_TRUE(becomes_true([&] { return engine_->num_choices_cancelled() == 3; }));
}

TEST_F(HttpServerTest, ReaderThatStandsStillIsDropped) {
  settings_.server.write_timeout = 400ms;
  start({.answer = std::string(64, 'x'), .max_model_len = 10'000'000});
  RawClient client(server_->port(), 4096);
  client.send(
      post("/v1/completions", R"({"prompt":"a","ignore_eos":true,"max_tokens":2000000,"stream":true})"));
  EXPECT_TRUE(becomes_true([&] { return engine_->num_cancelled() == 1; }, 20s));
  EXPECT_TRUE(becomes_true([&] { return server_->is_idle(); }));
}

TEST_F(HttpServerTest, SlowReaderGetsEverything) {
  start({.answer = std::string(64, 'x'), .max_model_len = 10'000'000});
  RawClient client(server_->port(), 4096);
  client.send(post("/v1/completions", R"({"prompt":"a","ignore_eos":true,"max_tokens":40000,"stream":true})",
                   "Connection: close\r\n"));
  std::this_thread::sleep_for(300ms);
  const std::vector<std::string> data = events(client.receive_all(30));
  ASSERT_GT(data.size(), 2u);
  EXPECT_EQ(data.back(), "[DONE]");
  size_t len = 0;
  for (size_t i = 0; i + 1 < data.size(); ++i)
    len += json::parse(data[i])["choices"][0]["text"].get<std::string>().size();
  EXPECT_EQ(len, 40000u);
}

TEST_F(HttpServerTest, HealthFollowsTheEngine) {
  start();
  const std::string close = "Connection: close\r\n";
  EXPECT_EQ(status_of(exchange(get("/health/ready", close))), 200);
  engine_->fail();
  EXPECT_EQ(status_of(exchange(get("/health", close))), 503);
  EXPECT_EQ(status_of(exchange(get("/health/live", close))), 200);
}

TEST_F(HttpServerTest, DrainFinishesWhatRuns) {
  start({.answer = std::string(100, 'x'), .step = 2ms});
  RawClient idle(server_->port()), running(server_->port());
  idle.send(get("/ping"));
  idle.receive_until("\"ok\"}");
  running.send(post("/v1/completions", R"({"prompt":"a","max_tokens":100,"stream":true})"));
  running.receive_until("data: ");
  server_->drain();
  EXPECT_FALSE(server_->is_idle());
  idle.receive_all(2);
  EXPECT_TRUE(idle.is_closed());
  EXPECT_EQ(status_of(exchange(get("/health/ready"))), 503);
  EXPECT_EQ(status_of(exchange(post("/v1/completions", R"({"prompt":"a"})"))), 503);
  EXPECT_TRUE(running.receive_all(5).ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"));
  EXPECT_TRUE(becomes_true([&] { return server_->is_idle(); }));
}

TEST_F(HttpServerTest, StopEndsRunningStreams) {
  start({.answer = "x", .step = 1ms, .max_model_len = 1'000'000});
  RawClient client(server_->port());
  client.send(
      post("/v1/completions", R"({"prompt":"a","ignore_eos":true,"max_tokens":900000,"stream":true})"));
  client.receive_until("data: ");
  server_->stop();
  client.receive_all(2);
  EXPECT_TRUE(client.is_closed());
  EXPECT_TRUE(becomes_true([&] { return engine_->num_cancelled() == 1; }));
}

TEST_F(HttpServerTest, PortInUse) {
  start();
  Settings second = settings_;
  second.server.port = server_->port();
  const auto result = HttpServer::start(serving("m", second));
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.status().message().find("in use"), std::string::npos);
  EXPECT_NE(result.status().message().find("--port"), std::string::npos);
  second.server.host = "localhost";
  EXPECT_FALSE(HttpServer::start(serving("m", second)).ok());
}

TEST_F(HttpServerTest, TooManyConnectionsAreClosed) {
  settings_.server.max_connections = 2;
  start();
  RawClient first(server_->port()), second(server_->port());
  first.send(get("/ping"));
  second.send(get("/ping"));
  EXPECT_EQ(status_of(first.receive_until("}")), 200);
  EXPECT_EQ(status_of(second.receive_until("}")), 200);
  RawClient third(server_->port());
  EXPECT_EQ(third.receive_all(2), "");
  EXPECT_TRUE(third.is_closed());
}

TEST_F(HttpServerTest, UnknownFieldsUnderStrictParams) {
  settings_.server.strict_params = true;
  start();
  EXPECT_EQ(status_of(complete(R"({"prompt":"a","colour":1})")), 400);
}

}  // namespace
}  // namespace restkv

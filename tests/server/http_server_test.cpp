// Answers and streams of the HTTP server.
#include "server/http/loading_server.h"
#include "tests/server/http_server_fixture.h"

namespace restkv {
namespace {

using nlohmann::json;
using namespace std::chrono_literals;

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

// While the model loads the port answers; then the server takes it over, with whoever waits there.
TEST_F(HttpServerTest, TakesOverThePortOfTheLoadingServer) {
  Result<std::unique_ptr<LoadingServer>> loading = LoadingServer::start(settings_.server);
  ASSERT_TRUE(loading.ok()) << loading.status().message();
  const uint16_t port = (*loading)->port();
  const auto ask = [&](const std::string& request) {
    RawClient client(port);
    client.send(request);
    return client.receive_all();
  };
  for (const char* path : {"/health", "/health/ready", "/v1/models", "/metrics", "/", "/nowhere"}) {
    const std::string response = ask(get(path));
    EXPECT_EQ(status_of(response), 503) << path;
    EXPECT_NE(response.find("Retry-After: "), std::string::npos);
    EXPECT_EQ(json::parse(body_of(response))["error"]["code"], "loading");
  }
  for (const char* path : {"/health/live", "/ping", "/v2/health/live"})
    EXPECT_EQ(body_of(ask(get(path))), R"({"status":"ok"})") << path;
  EXPECT_EQ(json::parse(body_of(ask(get("/version"))))["name"], "restkv");
  EXPECT_EQ(status_of(ask(post("/v1/completions", std::string(100'000, 'x')))), 503);
  EXPECT_EQ(body_of(ask("HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n")), "");
  EXPECT_EQ(status_of(ask("GET / HTTP/1.1\nHost: a\n\n")), 400);
  EXPECT_EQ(status_of(ask("GET / HTTP/1.1\r\nHost: a\r\nX: " + std::string(20'000, 'x') + "\r\n\r\n")), 431);

  settings_.server.port = port;
  EXPECT_FALSE(LoadingServer::start(settings_.server).ok()) << "the port is taken before anything is loaded";
  RawClient silent(port);  // never asks: it holds nothing up
  engine_ = std::make_shared<FakeEngine>(FakeEngineOptions{});
  const int listener = (*loading)->release();
  RawClient early(port);
  early.send(get("/health/ready", "Connection: close\r\n"));
  Result<std::unique_ptr<HttpServer>> server = HttpServer::start(serving("test-model", settings_), listener);
  ASSERT_TRUE(server.ok()) << server.status().message();
  server_ = *std::move(server);
  EXPECT_EQ(server_->port(), port);
  EXPECT_EQ(status_of(early.receive_all()), 200);
}

// Paths that other servers have: an error of OpenAI's shape, behind the key as everything.
TEST_F(HttpServerTest, SaysWhatItDoesNotServe) {
  start();
  for (const char* path :
       {"/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/infill"}) {
    const std::string response = exchange(post(path, "{}", "Connection: close\r\n"));
    EXPECT_EQ(status_of(response), 501) << path;
    const json error = json::parse(body_of(response))["error"];
    EXPECT_EQ(error["type"], "not_implemented_error");
    EXPECT_NE(error["message"].get<std::string>().find(path), std::string::npos);
    EXPECT_EQ(status_of(exchange(get(path, "Connection: close\r\n"))), 405) << path;
  }
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

// What watched the client of one answer must not take the next one's client for gone.
TEST_F(HttpServerTest, PipelinedCompletionsAreAllAnswered) {
  start();
  RawClient client(server_->port());
  std::string requests;
  for (int i = 0; i < 20; ++i) requests += post("/v1/completions", R"({"prompt":"hi","max_tokens":2})");
  client.send(requests + get("/ping", "Connection: close\r\n"));
  const std::string all = client.receive_all();
  size_t count = 0;
  for (size_t at = all.find("\"usage\":{"); at != std::string::npos; at = all.find("\"usage\":{", at + 1))
    ++count;
  EXPECT_EQ(count, 20u) << all;
  EXPECT_TRUE(all.ends_with("\"ok\"}")) << all;
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

// A seed that was drawn is reported as a JSON number, and readers of JSON keep 53 bits of one.
TEST_F(HttpServerTest, DrawnSeedsAreNumbersThatJsonKeeps) {
  start();
  for (int i = 0; i < 8; ++i) {
    complete_json(R"({"prompt":"a"})");
    EXPECT_LT(engine_->last_request().sampling.seed, uint64_t{1} << 53);
  }
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
  // Clients escape what may stand in an id: '/' and ':' of org/repo:quant.
  for (const char* id : {"test-model", "t%65st%2Dmodel", "test%2dmodel"})
    EXPECT_EQ(json::parse(body_of(exchange(get(std::string("/v1/models/") + id, close))))["object"], "model")
        << id;
  for (const char* id : {"test%model", "test-model%", "test-model%2", "test%252Dmodel", "test-model%00"})
    EXPECT_EQ(error_of(get(std::string("/v1/models/") + id, close), 404)["code"], "model_not_found") << id;
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

}  // namespace
}  // namespace restkv

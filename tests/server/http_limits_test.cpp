// Limits, slow and gone clients, the end of the HTTP server.
#include <atomic>
#include <thread>

#include "tests/server/http_server_fixture.h"

namespace restkv {
namespace {

using nlohmann::json;
using namespace std::chrono_literals;

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
      {"POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\n", 400},
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

TEST_F(HttpServerTest, WhatItsHeadRefusesIsNotReadWhole) {
  start();
  const std::string large = "Host: a\r\nContent-Length: 8000000\r\n\r\n";
  for (const auto& [line, status] : {std::pair("POST /nothing", 404), std::pair("POST /v1/models", 405)}) {
    RawClient client(server_->port());
    client.send(std::string(line) + " HTTP/1.1\r\n" + large);
    EXPECT_EQ(status_of(client.receive_all(1)), status);
    EXPECT_TRUE(client.is_closed());
  }
  // A small body is taken, and the connection goes on.
  RawClient client(server_->port());
  client.send(post("/nothing", "{}") + get("/ping"));
  EXPECT_NE(client.receive_until("\"ok\"}").find("HTTP/1.1 200 OK"), std::string::npos);
}

// Bodies count together from the moment they come in; small ones do not.
TEST_F(HttpServerTest, AllBodiesTogetherAreBounded) {
  settings_.server.max_body_memory = 1 << 20;
  start();
  const auto held = [&] {
    const std::string metrics = exchange(get("/metrics", "Connection: close\r\n"));
    return std::stoll(metrics.substr(metrics.find("} ", metrics.rfind("restkv_http_body_bytes{")) + 2));
  };
  const std::string large =
      post("/v1/completions", R"({"prompt":"a","max_tokens":1})" + std::string(600'000, ' '),
           "Connection: close\r\n");
  {
    RawClient half(server_->port());
    half.send(std::string_view(large).substr(0, 599'000));
    ASSERT_TRUE(becomes_true([&] { return held() >= 590'000; }));
    for (const std::string& framing :
         {std::string("Content-Length: 900000"), std::string("Transfer-Encoding: chunked")}) {
      RawClient refused(server_->port());
      const bool is_chunked = framing.starts_with("Transfer");
      refused.send("POST /tokenize HTTP/1.1\r\nHost: a\r\n" + framing + "\r\n\r\n" +
                   (is_chunked ? "dbba0\r\n" : "") + std::string(899'000, ' '));
      const std::string response = refused.receive_all();
      EXPECT_EQ(status_of(response), 503) << response;
      EXPECT_NE(response.find("Retry-After: 1\r\n"), std::string::npos);
      EXPECT_NE(response.find("1048576 bytes"), std::string::npos);
    }
    EXPECT_LE(held(), 1 << 20);
    EXPECT_EQ(status_of(complete(R"({"prompt":"a"})" + std::string(60'000, ' '))), 200) << "a small one";
    half.send(std::string_view(large).substr(599'000));
    EXPECT_EQ(status_of(half.receive_all()), 200);
    EXPECT_TRUE(becomes_true([&] { return held() == 0; }));
  }
  {
    RawClient gone(server_->port());
    gone.send(std::string_view(large).substr(0, 599'000));
    ASSERT_TRUE(becomes_true([&] { return held() > 0; }));
  }
  EXPECT_TRUE(becomes_true([&] { return held() == 0; })) << "its client went";
  // While it is answered the body is gone already.
  engine_->hold(true);
  RawClient waits(server_->port());
  waits.send(large);
  ASSERT_TRUE(becomes_true([&] { return engine_->stats().waiting == 1; }));
  EXPECT_TRUE(becomes_true([&] { return held() == 0; }));
  engine_->hold(false);
  EXPECT_EQ(status_of(waits.receive_all()), 200);
  EXPECT_EQ(status_of(exchange(post("/tokenize", std::string(1'100'000, ' ')))), 413) << "never fits";
}

// Whoever may not send one, and paths that take none, keep no memory for it.
TEST_F(HttpServerTest, PathsWithoutABodyTakeNone) {
  start();
  EXPECT_EQ(status_of(exchange("GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 65537\r\n\r\n")), 413);
  EXPECT_EQ(
      status_of(exchange("GET /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10001\r\n")),
      413);
  EXPECT_EQ(status_of(exchange(
                "GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 65536\r\n\r\n" +
                std::string(65536, ' '))),
            200);
}

TEST_F(HttpServerTest, WorkersHaveABoundedQueue) {
  start({.max_queue = 1});
  const std::string body = R"({"content":")" + std::string(2'000'000, 'a') + R"("})";
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 6; ++i) {
    clients.push_back(std::make_unique<RawClient>(server_->port()));
    clients.back()->send(post("/tokenize", body));
  }
  int num_done = 0, num_refused = 0;
  for (const auto& client : clients) {
    const int status = status_of(client->receive_until("\r\n\r\n"));
    num_done += status == 200;
    num_refused += status == 429;
  }
  EXPECT_EQ(num_done + num_refused, 6);
  EXPECT_GE(num_done, 1);
  EXPECT_GE(num_refused, 1);
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

// The only I/O thread is free for others and for its clock while a client sends as fast as the server reads.
TEST_F(HttpServerTest, ClientThatSendsWithoutPauseKeepsNobodyWaiting) {
  settings_.server.io_threads = 1;
  settings_.server.header_timeout = 400ms;
  settings_.server.idle_timeout = 400ms;
  start();
  std::string empty_lines, requests;
  while (empty_lines.size() < 65536) empty_lines += "\r\n";
  while (requests.size() < 65536) requests += get("/ping");
  const struct {
    const char* what;
    std::string begin, again;
    bool is_ended;  // by a deadline
  } rows[] = {{"empty lines", "", empty_lines, true},
              {"behind a refused request", "GET / HTTP/2.0\r\n\r\n", empty_lines, true},
              {"requests", "", requests, false}};
  for (const auto& row : rows) {
    RawClient sender(server_->port());
    sender.send(row.begin);
    std::atomic<bool> stops{false}, has_ended{false};
    std::thread sending([&] {
      while (!stops && !has_ended) has_ended = !sender.send(row.again);
    });
    std::thread receiving([&] { sender.receive_all(10); });
    std::this_thread::sleep_for(100ms);
    for (int i = 0; i < 5; ++i) {
      RawClient other(server_->port());
      other.send(get("/health"));
      EXPECT_EQ(status_of(other.receive_until("\"ok\"}", 2)), 200) << row.what;
    }
    if (row.is_ended) {
      EXPECT_TRUE(becomes_true([&] { return has_ended.load(); })) << row.what;
    }
    stops = true;
    sender.shut_down();
    sending.join();
    receiving.join();
  }
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
  start({.max_queue = 3});
  engine_->hold(true);
  RawClient first(server_->port());
  first.send(post("/v1/completions", R"({"prompt":"a"})"));
  ASSERT_TRUE(becomes_true([&] { return engine_->stats().waiting == 1; }));
  EXPECT_EQ(status_of(complete(R"({"prompt":["a","b","c"]})")), 429);
  EXPECT_TRUE(becomes_true([&] { return engine_->stats().waiting == 1; }));
  EXPECT_EQ(engine_->num_cancelled(), 2);
  engine_->hold(false);
  EXPECT_EQ(status_of(first.receive_until("timings")), 200);
}

// No later try would help: 400 with the numbers, and not the 429 that clients send again.
TEST_F(HttpServerTest, ListLongerThanTheQueueIsRefused) {
  start({.max_queue = 4});
  for (const char* body : {R"({"prompt":["a","b","c","d","e"]})", R"({"prompt":["a","b","c"],"n":2})"}) {
    const std::string response = complete(body);
    EXPECT_EQ(status_of(response), 400) << response;
    EXPECT_EQ(json::parse(body_of(response))["error"]["param"], "prompt");
    EXPECT_NE(response.find("at most 4"), std::string::npos) << response;
  }
  EXPECT_EQ(status_of(complete(R"({"prompt":["a","b"],"n":2})")), 200);
}

// Who is cancelled by id is not told to try again, which clients do by themselves after a 503.
TEST_F(HttpServerTest, CancelByIdIsNoReasonToTryAgain) {
  start({.answer = "x", .step = 1ms, .max_model_len = 1'000'000});
  const std::string fields = R"({"prompt":"a","ignore_eos":true,"max_tokens":900000,"request_id":"one")";
  RawClient whole(server_->port());
  whole.send(post("/v1/completions", fields + "}"));
  ASSERT_TRUE(becomes_true([&] { return engine_->cancel("cmpl-one", ""); }));
  const std::string answer = whole.receive_until("\"code\":");
  EXPECT_EQ(status_of(answer), 499) << answer;
  EXPECT_EQ(answer.find("Retry-After"), std::string::npos);
  RawClient streamed(server_->port());
  streamed.send(post("/v1/completions", fields + ",\"stream\":true}", "Connection: close\r\n"));
  streamed.receive_until("data: ");
  ASSERT_TRUE(engine_->cancel("cmpl-one", ""));
  const std::string rest = streamed.receive_all();
  EXPECT_NE(rest.find(R"("code":"cancelled")"), std::string::npos) << rest;
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
  client.send(post("/v1/completions", R"({"prompt":"a","ignore_eos":true,"max_tokens":20000,"stream":true})",
                   "Connection: close\r\n"));
  std::this_thread::sleep_for(300ms);
  const std::vector<std::string> data = events(client.receive_all(120));
  ASSERT_GT(data.size(), 2u);
  EXPECT_EQ(data.back(), "[DONE]");
  size_t len = 0;
  for (size_t i = 0; i + 1 < data.size(); ++i)
    len += json::parse(data[i])["choices"][0]["text"].get<std::string>().size();
  EXPECT_EQ(len, 20000u);
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

// It is refused at once, and what its client still sends is taken, so that the answer is read.
TEST_F(HttpServerTest, DrainRefusesWhatIsNotHereWhole) {
  settings_.server.io_threads = 1;  // in the order in which the bytes came
  start();
  const std::string large = post("/v1/completions", R"({"prompt":"a"})" + std::string(600'000, ' '));
  const std::string chunked =
      "POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"pro";
  RawClient head(server_->port()), body(server_->port()), chunks(server_->port()), last(server_->port());
  head.send(std::string_view(large).substr(0, 30));
  body.send(std::string_view(large).substr(0, 300'000));
  chunks.send(chunked);
  last.send(get("/ping"));
  last.receive_until("\"ok\"}");
  server_->drain();
  EXPECT_FALSE(server_->is_idle());
  RawClient late(server_->port()), asks(server_->port());
  late.send(std::string_view(large).substr(0, 300'000));
  asks.send("POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_TRUE(head.send(std::string_view(large).substr(30)));
  EXPECT_TRUE(body.send(std::string_view(large).substr(300'000)));
  EXPECT_TRUE(chunks.send("\r\n0\r\n\r\n"));
  for (RawClient* client : {&head, &body, &chunks, &late, &asks}) {
    const std::string response = client->receive_all(1);
    EXPECT_EQ(status_of(response), 503) << response;
    EXPECT_NE(response.find("Retry-After: "), std::string::npos);
    EXPECT_NE(response.find("Connection: close\r\n"), std::string::npos);
    EXPECT_EQ(json::parse(body_of(response))["error"]["code"], "draining");
    EXPECT_TRUE(client->is_closed());
    client->shut_down();
  }
  EXPECT_TRUE(becomes_true([&] { return server_->is_idle(); }, 1s)) << "its clients are done";
}

// It lies in the socket when the server begins to drain, or has been read.
TEST_F(HttpServerTest, DrainAnswersWhatHasJustCome) {
  settings_.server.io_threads = 1;
  for (int i = 0; i < 10; ++i) {
    start();
    RawClient client(server_->port());
    client.send(get("/ping"));
    client.receive_until("\"ok\"}");
    client.send(post("/v1/completions", R"({"prompt":"a","max_tokens":1})"));
    server_->drain();
    const std::string response = client.receive_all(1);
    EXPECT_TRUE(status_of(response) == 503 || status_of(response) == 200) << i << response;
    EXPECT_TRUE(becomes_true([&] { return server_->is_idle(); }, 1s));
  }
}

// Nor is an empty line a request, or half of one.
TEST_F(HttpServerTest, DrainWaitsForNoEmptyLine) {
  settings_.server.io_threads = 1;
  for (const bool is_first : {false, true}) {
    for (const std::string_view line : {"\r", "\r\n"}) {
      start();
      RawClient client(server_->port()), last(server_->port());
      if (!is_first) {
        client.send(get("/ping"));
        client.receive_until("\"ok\"}");
      }
      client.send(line);
      last.send(get("/ping"));
      last.receive_until("\"ok\"}");
      if (line.size() > 1) client.send(line);  // unread, or just read
      server_->drain();
      EXPECT_TRUE(becomes_true([&] { return server_->is_idle(); }, 1s)) << is_first << line.size();
    }
  }
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

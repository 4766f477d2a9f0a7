// The HTTP server in this process, with a fake engine, over real sockets: what its tests share.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "server/config/logging.h"
#include "server/http/server.h"
#include "tests/server/fake_engine.h"
#include "tests/server/raw_client.h"

namespace restkv {

inline int status_of(const std::string& response) {
  return response.size() > 12 ? std::stoi(response.substr(9, 3)) : -1;
}
inline std::string body_of(const std::string& response) {
  const size_t end = response.find("\r\n\r\n");
  return end == std::string::npos ? "" : response.substr(end + 4);
}
inline std::string post(const std::string& path, const std::string& body, const std::string& headers = "") {
  return "POST " + path + " HTTP/1.1\r\nHost: a\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" +
         headers + "\r\n" + body;
}
inline std::string get(const std::string& path, const std::string& headers = "") {
  return "GET " + path + " HTTP/1.1\r\nHost: a\r\n" + headers + "\r\n";
}

template <class Condition>
bool becomes_true(Condition condition, std::chrono::milliseconds limit = std::chrono::seconds(5)) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
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
  nlohmann::json complete_json(const std::string& body) {
    const std::string response = complete(body);
    EXPECT_EQ(status_of(response), 200) << response;
    return nlohmann::json::parse(body_of(response));
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

}  // namespace restkv

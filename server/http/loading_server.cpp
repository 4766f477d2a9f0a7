// One thread, one answer a connection, bounds of its own: what it says fits a packet.
#include "server/http/loading_server.h"

#include <pthread.h>

#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <csignal>
#include <thread>

#include "server/http/listener.h"
#include "server/http/request_head.h"
#include "server/http/response_head.h"
#include "server/http/routes.h"
#include "server/openai/api_error.h"

namespace restkv {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
constexpr auto kAwaitTuple = asio::as_tuple(asio::use_awaitable);

namespace {

constexpr std::chrono::seconds kConnectionTime{5};      // from accepting to closing
constexpr std::chrono::milliseconds kLastAnswers{200};  // to those that are there when the model is
constexpr int32_t kMaxConnections = 64;
constexpr size_t kReadSize = 4 << 10;

struct Answer {
  int status = 503;
  std::string body;
};

Answer error_answer(int status, std::string message, std::string code) {
  return {status, error_body(http_error(status, std::move(message), std::move(code)))};
}

Answer answer_to(const RequestHead& head) {
  for (const std::string_view path : {"/health/live", "/ping", "/v2/health/live"}) {
    if (head.path == path) return {200, "{\"status\":\"ok\"}"};
  }
  if (head.path == "/version") return {200, version_body()};
  return error_answer(503, "the model is loading", "loading");
}

class AsioLoadingServer final : public LoadingServer {
 public:
  AsioLoadingServer() : acceptor_(context_), retry_(context_) {}
  ~AsioLoadingServer() override { stop(); }

  Status listen(const ServerSettings& settings);
  uint16_t port() const override { return port_; }
  int release() override;

 private:
  void accept();
  asio::awaitable<void> answer(std::shared_ptr<tcp::socket> client);
  void stop();

  const HttpLimits limits_;
  asio::io_context context_{1};
  tcp::acceptor acceptor_;
  asio::steady_timer retry_;  // after an accept that failed for want of descriptors
  std::atomic<int32_t> num_connections_{0};
  uint16_t port_ = 0;
  std::thread thread_;
};

Status AsioLoadingServer::listen(const ServerSettings& settings) {
  if (Status status = open_listener(settings, acceptor_); !status.ok()) return status;
  port_ = acceptor_.local_endpoint().port();
  accept();
  // Ctrl-C during the load is the main thread's: it ends the program.
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { context_.run(); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return {};
}

void AsioLoadingServer::accept() {
  acceptor_.async_accept([this](error_code error, tcp::socket socket) {
    if (error == asio::error::operation_aborted) return;
    if (error) {
      retry_.expires_after(std::chrono::milliseconds(50));
      retry_.async_wait([this](error_code stopped) {
        if (!stopped) accept();
      });
      return;
    }
    if (num_connections_ < kMaxConnections)
      asio::co_spawn(context_, answer(std::make_shared<tcp::socket>(std::move(socket))), asio::detached);
    accept();
  });
}

asio::awaitable<void> AsioLoadingServer::answer(std::shared_ptr<tcp::socket> client) {
  ++num_connections_;
  tcp::socket& socket = *client;
  asio::steady_timer timer(context_, kConnectionTime);
  timer.async_wait([client](error_code stopped) {
    error_code ignored;
    if (!stopped) client->close(ignored);
  });
  RequestHead head;
  std::string in;
  size_t scanned = 0, head_len = 0;
  std::optional<HttpFailure> bad;
  error_code error;
  char buffer[kReadSize];
  while (!bad && head_len == 0 && !error) {
    const auto [read_error, len] = co_await socket.async_read_some(asio::buffer(buffer), kAwaitTuple);
    error = read_error;
    in.append(buffer, len);
    bad = find_head_end(in, limits_, scanned, head_len);
  }
  if (!bad && head_len > 0) bad = parse_head(std::string_view(in).substr(0, head_len), limits_, head);
  if (bad || head_len > 0) {
    const Answer answer = bad ? error_answer(bad->status, bad->message, {}) : answer_to(head);
    HeaderList headers;
    if (answer.status == 503) headers.emplace_back("Retry-After", "5");
    std::string out = response_head(answer.status, "application/json",
                                    "Content-Length: " + std::to_string(answer.body.size()), true, headers);
    if (head.method != "HEAD") out += answer.body;
    co_await asio::async_write(socket, asio::buffer(out), kAwaitTuple);
    // A body that is still on its way would otherwise reset the connection under the answer.
    socket.shutdown(tcp::socket::shutdown_send, error);
    while (!error) {
      const auto [read_error, len] = co_await socket.async_read_some(asio::buffer(buffer), kAwaitTuple);
      error = read_error;
    }
  }
  timer.cancel();
  --num_connections_;
}

int AsioLoadingServer::release() {
  asio::post(context_, [this] {
    error_code ignored;
    acceptor_.cancel(ignored);
    retry_.cancel();
  });
  const auto deadline = std::chrono::steady_clock::now() + kLastAnswers;
  while (num_connections_ > 0 && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  stop();
  return acceptor_.release();
}

void AsioLoadingServer::stop() {
  if (!thread_.joinable()) return;
  context_.stop();
  thread_.join();
}

}  // namespace

Result<std::unique_ptr<LoadingServer>> LoadingServer::start(const ServerSettings& settings) {
  auto server = std::make_unique<AsioLoadingServer>();
  if (Status status = server->listen(settings); !status.ok()) return status;
  return std::unique_ptr<LoadingServer>(std::move(server));
}

}  // namespace restkv

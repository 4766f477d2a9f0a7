// Accepting and ending.
#include "server/http/server.h"

#include <algorithm>
#include <atomic>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <future>
#include <vector>

#include "server/config/logging.h"
#include "server/http/connection.h"
#include "server/http/listener.h"

namespace restkv {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

constexpr std::chrono::seconds kWarningInterval{10};  // a flood of connections is no flood of lines

// True at most once an interval.
bool may_warn(Clock::time_point& next) {
  const Clock::time_point now = Clock::now();
  if (now < next) return false;
  next = now + kWarningInterval;
  return true;
}

class AsioServer final : public HttpServer {
 public:
  explicit AsioServer(std::shared_ptr<Serving> serving)
      : state_(std::move(serving)),
        acceptor_(context_of(state_.settings)),
        retry_(acceptor_.get_executor()) {}
  ~AsioServer() override { stop(); }

  Status listen(int listener);
  uint16_t port() const override { return port_; }
  void drain() override;
  bool is_idle() const override { return state_.num_active == 0; }
  void stop() override;

 private:
  asio::io_context& context_of(const Settings& settings) {
    const int32_t count = std::max(1, settings.server.io_threads);
    for (int32_t i = 0; i < count; ++i) threads_.push_back(std::make_unique<IoThread>());
    return threads_.front()->context();
  }
  void accept();
  void take(tcp::socket socket, IoThread& thread);
  // Runs `visit` for every connection on its own thread and waits.
  void for_each_connection(void (Connection::*visit)());

  std::vector<std::unique_ptr<IoThread>> threads_;  // before what uses them
  ServerState state_;
  tcp::acceptor acceptor_;    // on the first thread
  asio::steady_timer retry_;  // after an accept that failed for want of descriptors
  size_t next_thread_ = 0;
  int64_t num_refused_ = 0;
  Clock::time_point next_wait_warning_{}, next_refused_warning_{};
  uint16_t port_ = 0;
  bool is_stopped_ = false;
};

Status AsioServer::listen(int listener) {
  if (listener < 0) {
    if (Status status = open_listener(state_.settings.server, acceptor_); !status.ok()) return status;
  } else {
    const bool is_v6 = state_.settings.server.host.find(':') != std::string::npos;
    acceptor_.assign(is_v6 ? tcp::v6() : tcp::v4(), listener);
  }
  port_ = acceptor_.local_endpoint().port();
  for (const auto& thread : threads_) thread->run();
  asio::post(acceptor_.get_executor(), [this] { accept(); });
  return {};
}

void AsioServer::accept() {
  IoThread& thread = *threads_[next_thread_++ % threads_.size()];
  acceptor_.async_accept(thread.context(), [this, &thread](error_code error, tcp::socket socket) {
    if (error == asio::error::operation_aborted || !acceptor_.is_open()) return;
    if (!error) {
      take(std::move(socket), thread);
      return accept();
    }
    // Out of descriptors, most likely: connections end, so try again soon.
    if (may_warn(next_wait_warning_))
      log_event(LogLevel::kWarning, "connections wait: none can be taken now", {{"error", error.message()}});
    retry_.expires_after(std::chrono::milliseconds(50));
    retry_.async_wait([this](error_code stopped) {
      if (!stopped) accept();
    });
  });
}

void AsioServer::take(tcp::socket socket, IoThread& thread) {
  if (state_.num_connections >= state_.settings.server.max_connections) {
    ++num_refused_;
    if (may_warn(next_refused_warning_)) {
      log_event(LogLevel::kWarning, "connection refused: too many",
                {{"max_connections", state_.settings.server.max_connections}, {"refused", num_refused_}});
    }
    return;  // closes it
  }
  asio::post(thread.context(), [this, &thread, socket = std::move(socket)]() mutable {
    auto connection = std::make_shared<Connection>(std::move(socket), thread, state_);
    asio::co_spawn(thread.context(), connection->run(), asio::detached);
  });
}

void AsioServer::for_each_connection(void (Connection::*visit)()) {
  std::vector<std::future<void>> done;
  for (const auto& thread : threads_) {
    auto promise = std::make_shared<std::promise<void>>();
    done.push_back(promise->get_future());
    asio::post(thread->context(), [thread = thread.get(), visit, promise] {
      std::vector<std::shared_ptr<Connection>> all;
      for (Connection* connection : thread->connections()) all.push_back(connection->shared_from_this());
      for (const auto& connection : all) ((*connection).*visit)();
      promise->set_value();
    });
  }
  for (auto& one : done) one.wait();
}

void AsioServer::drain() {
  if (is_stopped_) return;
  state_.serving->drain();
  for_each_connection(&Connection::drain);
}

void AsioServer::stop() {
  if (is_stopped_) return;
  is_stopped_ = true;
  state_.serving->is_draining = true;
  if (port_ == 0) return;  // never listened
  std::promise<void> closed;
  asio::post(acceptor_.get_executor(), [this, &closed] {
    error_code error;
    acceptor_.close(error);
    retry_.cancel();
    closed.set_value();
  });
  closed.get_future().wait();
  // A connection may have been on its way to its thread; jobs on the workers come back to theirs.
  while (state_.num_connections > 0) {
    for_each_connection(&Connection::abort);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  for (const auto& thread : threads_) thread->stop();
}

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::start(std::shared_ptr<Serving> serving, int listener) {
  auto server = std::make_unique<AsioServer>(std::move(serving));
  if (Status status = server->listen(listener); !status.ok()) return status;
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace restkv

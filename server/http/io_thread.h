// One I/O thread: an io_context, the connections that live on it, the wake-ups from the engine and a tick that looks at
// deadlines. Whatever the number of streams, the engine thread posts one message a step here.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_set>
#include <vector>

#include "engine/request.h"
#include "server/http/event.h"

namespace restkv {

class Connection;

// Engine thread -> I/O thread. Outlives both ends: the engine may hold a request longer than the server lives.
class WakeList {
 public:
  explicit WakeList(boost::asio::io_context& context) : context_(&context) {}
  // Any thread: `event` is notified on the I/O thread, unless the reader let go of it before.
  void wake(const std::shared_ptr<Event>& event);
  void close();  // no more posts; the context may go

 private:
  void deliver();
  std::mutex post_mutex_;                      // guards context_; never taken with mutex_ held
  boost::asio::io_context* context_;           // null: closed
  std::mutex mutex_;                           // guards ready_, is_posted_ and is_closed_
  std::vector<std::shared_ptr<Event>> ready_;  // since the last post
  std::vector<std::shared_ptr<Event>> taken_;  // I/O thread
  bool is_posted_ = false, is_closed_ = false;
};

class IoThread {
 public:
  IoThread();
  ~IoThread();  // stops at once; connections were closed before
  IoThread(const IoThread&) = delete;

  void run();   // starts the thread
  void stop();  // ends it after the handlers that are due
  boost::asio::io_context& context() { return context_; }
  const std::shared_ptr<WakeList>& wake_list() const { return wake_list_; }
  // Of this thread: where a read puts its bytes for a moment. [kScratchSize]
  char* scratch() { return scratch_.data(); }
  static constexpr size_t kScratchSize = 64 << 10;

  // I/O thread.
  void add(Connection* connection);
  void remove(Connection* connection);
  const std::unordered_set<Connection*>& connections() const { return connections_; }

 private:
  void tick();

  boost::asio::io_context context_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  boost::asio::steady_timer timer_;
  bool is_ticking_ = false;
  std::shared_ptr<WakeList> wake_list_;
  std::unordered_set<Connection*> connections_;
  std::vector<char> scratch_;
  std::thread thread_;
};

}  // namespace restkv

// Wake-ups and ticks.
#include "server/http/io_thread.h"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>

#include "server/http/connection.h"

namespace restkv {

constexpr std::chrono::milliseconds kTick{50};

void WakeList::wake(const std::shared_ptr<Event>& event) {
  {
    const std::lock_guard lock(mutex_);
    if (is_closed_) return;
    ready_.push_back(event);
    if (is_posted_) return;
    is_posted_ = true;
  }
  // Not under `mutex_`: the thread that this wakes would wait for it first.
  const std::lock_guard lock(post_mutex_);
  if (context_) boost::asio::post(*context_, [this] { deliver(); });
}

void WakeList::deliver() {
  {
    const std::lock_guard lock(mutex_);
    is_posted_ = false;
    taken_.swap(ready_);
  }
  for (const std::shared_ptr<Event>& event : taken_) event->notify();
  taken_.clear();
}

void WakeList::close() {
  {
    const std::lock_guard lock(post_mutex_);
    context_ = nullptr;
  }
  const std::lock_guard lock(mutex_);
  is_closed_ = true;
  ready_.clear();
}

IoThread::IoThread()
    : work_(context_.get_executor()),
      timer_(context_),
      wake_list_(std::make_shared<WakeList>(context_)),
      scratch_(kScratchSize) {}

IoThread::~IoThread() {
  wake_list_->close();
  context_.stop();
  if (thread_.joinable()) thread_.join();
}

void IoThread::run() {
  thread_ = std::thread([this] { context_.run(); });
}

void IoThread::stop() {
  work_.reset();
  if (thread_.joinable()) thread_.join();
}

void IoThread::add(Connection* connection) {
  connections_.insert(connection);
  if (!is_ticking_) {
    is_ticking_ = true;
    tick();
  }
}

void IoThread::remove(Connection* connection) { connections_.erase(connection); }

void IoThread::tick() {
  timer_.expires_after(kTick);
  timer_.async_wait([this](boost::system::error_code error) {
    if (error || connections_.empty()) {
      is_ticking_ = false;
      return;
    }
    const Clock::time_point now = Clock::now();
    // A connection that is woken may end and leave the set.
    const std::vector<Connection*> all(connections_.begin(), connections_.end());
    for (Connection* connection : all) {
      if (connections_.contains(connection)) connection->check_time(now);
    }
    tick();
  });
}

}  // namespace restkv

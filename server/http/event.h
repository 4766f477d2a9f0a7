// A wake-up for one coroutine of one I/O thread: wait() returns after notify(), also if notify() came first.
#pragma once

#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <memory>
#include <utility>

namespace restkv {

class Event {
 public:
  boost::asio::awaitable<void> wait() {
    if (!is_set_) {
      co_await boost::asio::async_initiate<const boost::asio::use_awaitable_t<>, void()>(
          [this](auto handler) {
            waiter_ = std::make_unique<WaiterOf<decltype(handler)>>(std::move(handler));
          },
          boost::asio::use_awaitable);
    }
    is_set_ = false;
  }

  // Resumes the waiting coroutine inside this call.
  void notify() {
    is_set_ = true;
    if (const std::unique_ptr<Waiter> waiter = std::move(waiter_)) waiter->resume();
  }

 private:
  struct Waiter {
    virtual ~Waiter() = default;
    virtual void resume() = 0;
  };
  template <class Handler>
  struct WaiterOf final : Waiter {
    explicit WaiterOf(Handler handler) : handler(std::move(handler)) {}
    void resume() override { std::move(handler)(); }
    Handler handler;
  };

  std::unique_ptr<Waiter> waiter_;
  bool is_set_ = false;
};

}  // namespace restkv

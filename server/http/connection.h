// One client connection on its I/O thread: reads requests within the limits, hands each to the routes, writes answers and
// event streams, and notices a client that is gone or stands still. All members are of that thread.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "server/http/body_reader.h"
#include "server/http/body_room.h"
#include "server/http/io_thread.h"
#include "server/http/request_head.h"
#include "server/http/response_head.h"
#include "server/http/server_state.h"
#include "server/openai/api_error.h"
#include "server/serving/request_log.h"

namespace restkv {

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(boost::asio::ip::tcp::socket socket, IoThread& thread, ServerState& server);
  ~Connection();

  boost::asio::awaitable<void> run();  // to the connection's end
  void check_time(Clock::time_point now);
  void drain();  // closed if idle; a request that is not here yet is refused
  void abort();  // at once: what runs for it is cancelled

  // For routes. The request, whole:
  const RequestHead& head() const { return head_; }
  std::string& body() { return body_.body(); }
  void drop_body();  // it was read: its memory is free for others
  const std::string& request_id() const { return request_id_; }
  Clock::time_point arrival() const { return arrival_; }
  ServerState& server() { return server_; }
  // Who sent it; set by handle_request on routes that are not public.
  const Caller& caller() const { return *caller_; }
  void set_caller(Caller caller) { caller_ = std::move(caller); }

  // What the answer's tokens and time were, for the log; before its last byte.
  void note_usage(const OutputUsage& usage) { usage_ = usage; }

  boost::asio::awaitable<void> respond(int status, std::string_view content_type, std::string body,
                                       HeaderList headers = {});
  boost::asio::awaitable<void> respond_error(const ApiError& error, int64_t retry_after_s = 1,
                                             HeaderList headers = {});

  // Runs `work` on a worker thread and gives its result. The client may be gone afterwards.
  template <class Work>
  boost::asio::awaitable<std::invoke_result_t<Work>> offload(Work work);

  // Notified for tokens (through the wake list), when the client is gone and when a stream has room again.
  const std::shared_ptr<Event>& event() const { return event_; }
  const std::shared_ptr<WakeList>& wake_list() const { return thread_.wake_list(); }
  // From watch() to the answer the socket is peeked at, so that a client that goes is noticed while it waits.
  void watch();
  bool is_gone() const { return is_gone_; }

  // An event stream: append whole events to stream(), then flush(); end_stream() waits until all is sent.
  void start_stream();
  std::string& stream() { return filling_; }
  void flush();
  // Whether as much is unsent as may be; if so, the event is notified when there is room.
  bool is_full();
  boost::asio::awaitable<void> end_stream();

 private:
  enum class Phase : uint8_t { kIdle, kHead, kBody, kRunning, kClosing };

  boost::asio::awaitable<bool> read_head(bool is_first);
  // `takes_body`: else a small one is let pass.
  boost::asio::awaitable<bool> read_body(bool takes_body);
  boost::asio::awaitable<bool> read_some();
  boost::asio::awaitable<bool> write(std::string_view head, std::string_view body);
  boost::asio::awaitable<void> refuse(const HttpFailure& failure);
  boost::asio::awaitable<void> refuse_draining();
  bool may_be_large() const;  // the body
  bool has_unread() const;    // bytes that nobody has looked at yet
  boost::asio::awaitable<void> linger();
  void reset_request();
  void begin_refusal();
  void set_active(bool is_active);  // counts in num_active
  void set_body_deadline();
  void on_readable();
  void stop_watch();
  void write_on();
  void on_writable(const boost::system::error_code& error);
  void go();  // the client is gone
  void log_answer(int status);
  HeaderList answer_headers() const;
  size_t unsent() const;

  boost::asio::ip::tcp::socket socket_;
  IoThread& thread_;
  ServerState& server_;
  const HttpLimits& limits_;
  std::shared_ptr<Event> event_;

  Phase phase_ = Phase::kIdle;
  Clock::time_point deadline_ = Clock::time_point::max();  // of the read or write that runs
  bool has_timed_out_ = false, is_gone_ = false, must_close_ = false;
  bool must_refuse_ = false;  // what is being read: the server drains
  bool is_active_ = false;

  std::string in_;         // read, not taken yet
  bool has_read_ = false;  // and has not waited since
  size_t scanned_ = 0;
  RequestHead head_;
  BodyReader body_;
  BodyShare body_share_;
  std::string request_id_;
  std::string_view route_path_;  // of the route table
  std::optional<Caller> caller_;
  TraceContext trace_;                // of the caller
  std::optional<OutputUsage> usage_;  // of an answer with tokens
  Clock::time_point arrival_{}, body_begin_{};
  bool has_answered_ = false;

  bool is_watching_ = false, has_wait_ = false;
  boost::asio::cancellation_signal stop_wait_;

  // Stream: `filling_` becomes `sending_` when the write before is done.
  bool is_streaming_ = false, is_chunked_ = false, is_ending_ = false, is_writing_ = false,
       wants_room_ = false;
  std::string filling_, sending_, framing_;
  size_t sent_ = 0;  // bytes of the write in flight
  Clock::time_point last_event_{};
};

template <class Work>
boost::asio::awaitable<std::invoke_result_t<Work>> Connection::offload(Work work) {
  std::optional<std::invoke_result_t<Work>> result;
  co_await boost::asio::async_initiate<const boost::asio::use_awaitable_t<>, void()>(
      [&](auto handler) {
        auto resume = std::make_shared<decltype(handler)>(std::move(handler));
        server_.serving->post([&, resume] {
          result.emplace(work());
          boost::asio::post(thread_.context(), [resume]() mutable { std::move (*resume)(); });
        });
      },
      boost::asio::use_awaitable);
  co_return std::move(*result);
}

}  // namespace restkv

// Reading, answering, watching.
#include "server/http/connection.h"

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <utility>

#include "server/http/routes.h"

namespace restkv {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
constexpr auto kAwaitTuple = asio::as_tuple(asio::use_awaitable);

namespace {

constexpr std::string_view kNoRoute = "other";

double milliseconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double, std::milli>(end - begin).count();
}

double milliseconds_since(Clock::time_point begin) { return milliseconds_between(begin, Clock::now()); }

std::string hex_text(size_t value) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  do {
    out.insert(out.begin(), kHex[value & 15]);
    value >>= 4;
  } while (value > 0);
  return out;
}

}  // namespace

Connection::Connection(tcp::socket socket, IoThread& thread, ServerState& server)
    : socket_(std::move(socket)),
      thread_(thread),
      server_(server),
      limits_(server.limits),
      event_(std::make_shared<Event>()),
      body_share_(server.body_room) {
  ++server_.num_connections;
  thread_.add(this);
}

Connection::~Connection() {
  thread_.remove(this);
  --server_.num_connections;
}

asio::awaitable<void> Connection::run() {
  const std::shared_ptr<Connection> self = shared_from_this();
  error_code error;
  socket_.set_option(tcp::no_delay(true), error);
  socket_.non_blocking(true, error);
  for (bool is_first = true; !must_close_ && !is_gone_; is_first = false) {
    reset_request();
    if (!co_await read_head(is_first)) break;
    const Admission admission = admit(*this);
    if (!admission.path.empty()) route_path_ = admission.path;
    if (!admission.route && may_be_large()) {
      begin_refusal();
      co_await respond_refused(*this, admission);
      co_await linger();
      break;
    }
    const bool takes_body = admission.route && admission.route->method == "POST";
    if (!co_await read_body(takes_body)) break;
    phase_ = Phase::kRunning;
    arrival_ = Clock::now();
    deadline_ = Clock::time_point::max();
    set_active(true);
    co_await handle_request(*this, admission);
    stop_watch();
    set_active(false);
    if (!in_.empty()) co_await asio::post(socket_.get_executor(), asio::use_awaitable);
    if (!has_answered_) {  // the client went first
      log_answer(499);
      break;
    }
  }
  phase_ = Phase::kClosing;
  is_gone_ = true;
  socket_.close(error);
  set_active(false);
}

void Connection::set_active(bool is_active) {
  if (std::exchange(is_active_, is_active) != is_active) server_.num_active += is_active ? 1 : -1;
}

void Connection::begin_refusal() {
  must_close_ = true;
  has_timed_out_ = must_refuse_ = false;
  phase_ = Phase::kClosing;
  set_active(true);
}

void Connection::reset_request() {
  head_ = RequestHead();
  drop_body();
  request_id_.clear();
  route_path_ = kNoRoute;
  caller_.reset();
  trace_ = {};
  usage_.reset();
  arrival_ = {};
  scanned_ = 0;
  has_answered_ = has_timed_out_ = false;
}

asio::awaitable<bool> Connection::read_head(bool is_first) {
  phase_ = Phase::kIdle;
  deadline_ = Clock::now() + (is_first ? limits_.header_timeout : limits_.idle_timeout);
  for (;;) {
    // Empty lines before a request are skipped, as RFC 9112 asks.
    if (phase_ == Phase::kIdle) {
      size_t blank = 0;
      while (in_.compare(blank, 2, "\r\n") == 0) blank += 2;
      in_.erase(0, blank);
    }
    if (!in_.empty()) {
      if (phase_ == Phase::kIdle && in_ != "\r") {
        phase_ = Phase::kHead;
        if (!is_first) deadline_ = Clock::now() + limits_.header_timeout;
      }
      size_t head_len = 0;
      std::optional<HttpFailure> bad = find_head_end(in_, limits_, scanned_, head_len);
      if (!bad && head_len > 0) {
        bad = parse_head(std::string_view(in_).substr(0, head_len), limits_, head_);
        if (!bad) {
          in_.erase(0, head_len);
          const std::string_view given_id = head_.header("x-request-id");
          request_id_ = is_request_id(given_id) ? std::string(given_id) : server_.new_id("req-");
          trace_ = parse_traceparent(head_.header("traceparent"));
          co_return true;
        }
      }
      if (bad) {
        co_await refuse(*bad);
        co_return false;
      }
    }
    if (server_.serving->is_draining && phase_ == Phase::kIdle && (!is_first || is_active_)) {
      if (!has_unread()) co_return false;
      set_active(true);
    }
    must_refuse_ = server_.serving->is_draining && phase_ == Phase::kHead;
    if (co_await read_some()) continue;
    if (must_refuse_) {
      co_await refuse_draining();
    } else if (has_timed_out_ && phase_ == Phase::kHead) {
      const HttpFailure late{
          408, "the headers did not arrive within " + std::to_string(limits_.header_timeout.count()) + " ms"};
      co_await refuse(late);
    }
    co_return false;
  }
}

// A small one comes with the head, mostly; to take it keeps the connection.
bool Connection::may_be_large() const {
  return head_.is_chunked || head_.expects_continue ||
         head_.content_length.value_or(0) > std::min(limits_.pipelined, limits_.body);
}

void Connection::drop_body() {
  body_ = BodyReader();
  body_share_.release();
}

asio::awaitable<bool> Connection::read_body(bool takes_body) {
  phase_ = Phase::kBody;
  body_begin_ = Clock::now();
  const size_t max_size = takes_body ? limits_.body : std::min(limits_.pipelined, limits_.body);
  if (std::optional<HttpFailure> bad = body_.start(head_, limits_, max_size)) {
    co_await refuse(*bad);
    co_return false;
  }
  if (head_.expects_continue && in_.empty() && !body_.is_done() && !server_.serving->is_draining) {
    deadline_ = Clock::now() + limits_.write_timeout;
    if (!co_await write("HTTP/1.1 100 Continue\r\n\r\n", std::string_view())) co_return false;
  }
  for (;;) {
    if (std::optional<HttpFailure> bad = body_.feed(in_)) {
      co_await refuse(*bad);
      co_return false;
    }
    const size_t held = body_.body().capacity();
    if (held > limits_.pipelined && !body_share_.resize(held)) {
      drop_body();
      const HttpFailure busy{503,
                             "bodies of other requests take all of the " + std::to_string(limits_.bodies) +
                                 " bytes that this server holds of them (max_body_memory); try again later"};
      co_await refuse(busy);
      co_return false;
    }
    if (body_.is_done()) co_return true;
    set_body_deadline();
    must_refuse_ = server_.serving->is_draining;
    if (co_await read_some()) continue;
    if (must_refuse_) {
      co_await refuse_draining();
    } else if (has_timed_out_) {
      const HttpFailure late{408, "the body came in too slowly (at least " +
                                      std::to_string(limits_.body_rate) + " bytes a second)"};
      co_await refuse(late);
    }
    co_return false;
  }
}

// In time t at least (t - grace) * rate bytes must have come, and all of them within body_timeout.
void Connection::set_body_deadline() {
  milliseconds allowed = limits_.body_timeout;
  if (limits_.body_rate > 0) {
    const auto earned = static_cast<int64_t>(body_.received()) * 1000 / limits_.body_rate;
    allowed = std::min(allowed, limits_.body_grace + milliseconds(earned));
  }
  deadline_ = body_begin_ + allowed;
}

// Tries first and waits only if nothing is there, so that no buffer belongs to a connection that waits. Between two reads that
// did not wait the thread goes round: a client that sends without a pause keeps neither the others nor the clock waiting.
asio::awaitable<bool> Connection::read_some() {
  for (;;) {
    if (std::exchange(has_read_, false)) co_await asio::post(socket_.get_executor(), asio::use_awaitable);
    if (is_gone_ || has_timed_out_ || must_refuse_) co_return false;
    error_code error;
    const size_t len = socket_.read_some(asio::buffer(thread_.scratch(), IoThread::kScratchSize), error);
    if (!error && len > 0) {
      in_.append(thread_.scratch(), len);
      has_read_ = true;
      co_return true;
    }
    if (error != asio::error::would_block) co_return false;
    const auto [wait_error] = co_await socket_.async_wait(tcp::socket::wait_read, kAwaitTuple);
    if (wait_error) co_return false;
  }
}

asio::awaitable<bool> Connection::write(std::string_view head, std::string_view body) {
  while (!head.empty() || !body.empty()) {
    const std::array<asio::const_buffer, 2> buffers{asio::buffer(head), asio::buffer(body)};
    error_code error;
    const size_t sent = socket_.write_some(buffers, error);
    const size_t of_head = std::min(sent, head.size());
    head.remove_prefix(of_head);
    body.remove_prefix(sent - of_head);
    if (error == asio::error::would_block) {
      deadline_ = Clock::now() + limits_.write_timeout;
      const auto [wait_error] = co_await socket_.async_wait(tcp::socket::wait_write, kAwaitTuple);
      error = wait_error;
    }
    if (error) {
      is_gone_ = true;
      break;
    }
  }
  deadline_ = Clock::time_point::max();
  co_return !is_gone_;
}

HeaderList Connection::answer_headers() const {
  HeaderList headers;
  headers.emplace_back("X-Request-Id", request_id_);
  if (arrival_ != Clock::time_point{}) {
    headers.emplace_back("openai-processing-ms",
                         std::to_string(static_cast<int64_t>(milliseconds_since(arrival_))));
  }
  return headers;
}

asio::awaitable<void> Connection::respond(int status, std::string_view content_type, std::string body,
                                          HeaderList headers) {
  stop_watch();
  if (server_.serving->is_draining || !head_.keep_alive) must_close_ = true;
  HeaderList all = answer_headers();
  for (auto& header : headers) all.push_back(std::move(header));
  const std::string head =
      response_head(status, content_type, "Content-Length: " + std::to_string(body.size()), must_close_, all);
  has_answered_ = true;
  log_answer(status);
  co_await write(head, head_.method == "HEAD" ? std::string_view() : std::string_view(body));
}

asio::awaitable<void> Connection::respond_error(const ApiError& error, int64_t retry_after_s,
                                                HeaderList headers) {
  if (error.http_status == 429 || error.http_status == 503)
    headers.emplace_back("Retry-After", std::to_string(retry_after_s));
  if (error.http_status == 401) headers.emplace_back("WWW-Authenticate", "Bearer");
  co_await respond(error.http_status, "application/json", error_body(error), std::move(headers));
}

// An answer to what could not be read as a request; nothing behind it can be trusted, so the connection closes.
// gcc 12 destroys a braced temporary in a co_await expression twice: failures are named first.
asio::awaitable<void> Connection::refuse(const HttpFailure& failure) {
  begin_refusal();
  if (request_id_.empty()) request_id_ = server_.new_id("req-");
  co_await respond_error(http_error(failure.status, failure.message, failure.code));
  co_await linger();
}

// Its client learns at once what it would learn behind the last byte, and the server's end does not wait for that.
asio::awaitable<void> Connection::refuse_draining() {
  drop_body();
  const HttpFailure draining{503, "the server is shutting down", "draining"};
  co_await refuse(draining);
}

// Closing with unread bytes would reset the connection and take the answer with it.
asio::awaitable<void> Connection::linger() {
  error_code error;
  socket_.shutdown(tcp::socket::shutdown_send, error);
  deadline_ = Clock::now() + limits_.linger_timeout;
  in_.clear();
  while (!is_gone_ && co_await read_some()) in_.clear();
}

void Connection::check_time(Clock::time_point now) {
  if (now >= deadline_) {
    deadline_ = Clock::time_point::max();
    has_timed_out_ = true;
    error_code error;
    socket_.cancel(error);
    if (phase_ == Phase::kRunning) {
      if (is_writing_) ++server_.serving->num_slow_clients;
      go();
    }
    return;
  }
  if (is_streaming_ && !is_writing_ && !is_ending_ && now - last_event_ >= limits_.ping_interval) {
    filling_ += ": ping\n\n";
    flush();
  }
}

void Connection::drain() {
  if (phase_ == Phase::kIdle && !has_unread()) return abort();
  if (phase_ == Phase::kRunning || phase_ == Phase::kClosing) return;
  set_active(true);
  if (phase_ == Phase::kIdle) return;
  must_refuse_ = true;
  error_code error;
  socket_.cancel(error);
}

bool Connection::has_unread() const {
  error_code error;
  return (!in_.empty() && in_ != "\r") || socket_.available(error) > 0;  // half an empty line is no request
}

void Connection::abort() {
  error_code error;
  must_close_ = true;
  socket_.close(error);
  go();
}

void Connection::go() {
  is_gone_ = true;
  event_->notify();
}

void Connection::watch() {
  is_watching_ = true;
  if (has_wait_ || is_gone_) return;
  has_wait_ = true;
  socket_.async_wait(
      tcp::socket::wait_read,
      asio::bind_cancellation_slot(stop_wait_.slot(), [self = shared_from_this()](error_code error) {
        self->has_wait_ = false;
        if (!self->is_watching_) return;
        if (error == asio::error::operation_aborted) {
          self->watch();  // the watch of an answer before was stopped, and the next one began already
        } else if (error) {
          self->go();
        } else {
          self->on_readable();
        }
      }));
}

void Connection::on_readable() {
  error_code error;
  const size_t len = socket_.read_some(asio::buffer(thread_.scratch(), IoThread::kScratchSize), error);
  if (error == asio::error::would_block) return watch();
  if (error || len == 0) return go();
  in_.append(thread_.scratch(), len);  // the next request, early
  if (in_.size() < limits_.pipelined) watch();
}

void Connection::stop_watch() {
  is_watching_ = false;
  if (has_wait_) stop_wait_.emit(asio::cancellation_type::all);
}

void Connection::start_stream() {
  is_streaming_ = true;
  is_ending_ = false;
  has_answered_ = true;
  is_chunked_ = head_.version >= 11;
  if (server_.serving->is_draining || !head_.keep_alive || !is_chunked_) must_close_ = true;
  HeaderList headers = answer_headers();
  headers.emplace_back("Cache-Control", "no-cache");
  headers.emplace_back("X-Accel-Buffering", "no");
  framing_ = response_head(200, "text/event-stream; charset=utf-8",
                           is_chunked_ ? "Transfer-Encoding: chunked" : "", must_close_, headers);
  last_event_ = Clock::now();
  flush();
}

size_t Connection::unsent() const {
  return filling_.size() + (is_writing_ ? framing_.size() + sending_.size() - sent_ : 0);
}

bool Connection::is_full() {
  wants_room_ = unsent() >= limits_.unsent;
  return wants_room_;
}

// Sends what there is at once, as far as the socket takes it, which is nearly always all. Appends while the rest waits for room
// go out together with the next one.
void Connection::flush() {
  if (is_writing_ || is_gone_) return;
  const bool is_last = is_ending_ && is_streaming_;
  if (filling_.empty() && framing_.empty() && !is_last) return;
  sending_.clear();
  sending_.swap(filling_);
  if (is_chunked_ && !sending_.empty()) {
    framing_ += hex_text(sending_.size()) + "\r\n";
    sending_ += "\r\n";
  }
  if (is_last) {
    is_streaming_ = false;
    if (is_chunked_) sending_ += "0\r\n\r\n";
    if (sending_.empty() && framing_.empty()) return;
  }
  is_writing_ = true;
  sent_ = 0;
  last_event_ = Clock::now();
  write_on();
  if (wants_room_ && !is_writing_ && !is_full()) event_->notify();
}

// The rest of framing_ and sending_. Afterwards is_writing_ says whether some of it waits for room.
void Connection::write_on() {
  const size_t total = framing_.size() + sending_.size();
  while (sent_ < total) {
    const size_t of_framing = std::min(sent_, framing_.size());
    const std::array<asio::const_buffer, 2> buffers{asio::buffer(framing_) + of_framing,
                                                    asio::buffer(sending_) + (sent_ - of_framing)};
    error_code error;
    sent_ += socket_.write_some(buffers, error);
    if (error == asio::error::would_block) {
      deadline_ = Clock::now() + limits_.write_timeout;
      socket_.async_wait(tcp::socket::wait_write, [self = shared_from_this()](error_code wait_error) {
        self->on_writable(wait_error);
      });
      return;
    }
    if (error) {
      is_writing_ = false;
      return go();
    }
  }
  is_writing_ = false;
  framing_.clear();
  deadline_ = Clock::time_point::max();
}

void Connection::on_writable(const error_code& error) {
  if (error) {
    is_writing_ = false;
    return go();
  }
  write_on();
  if (is_writing_ || is_gone_) return;
  flush();
  if (is_ending_ || (wants_room_ && !is_full())) event_->notify();
}

asio::awaitable<void> Connection::end_stream() {
  is_ending_ = true;
  flush();
  while (!is_gone_ && (is_streaming_ || is_writing_)) co_await event_->wait();
  is_streaming_ = is_ending_ = false;
  filling_.clear();
  stop_watch();
  log_answer(is_gone_ ? 499 : 200);
}

void Connection::log_answer(int status) {
  server_.serving->responses.count(ResponseCounts::Protocol::kHttp, route_path_, status);
  const bool is_probe = status == 200 && (head_.path.starts_with("/health") || head_.path == "/ping" ||
                                          head_.path == "/metrics");
  const bool is_ours = status >= 500 && status != 501;  // 501: what a client asks in vain
  const LogLevel level = is_ours ? LogLevel::kWarning : is_probe ? LogLevel::kDebug : LogLevel::kInfo;
  const bool is_whole = arrival_ != Clock::time_point{};
  log_request(level,
              {.method = head_.method,
               .path = head_.path,
               .status = status,
               .ms = is_whole ? milliseconds_since(arrival_) : 0.0,
               .receive_ms = is_whole ? milliseconds_between(body_begin_, arrival_) : 0.0,
               .id = request_id_,
               .key = caller_ ? std::string_view(caller_->name()) : std::string_view(),
               .trace = trace_,
               .usage = usage_},
              server_.settings.logging.slow_request);
}

}  // namespace restkv

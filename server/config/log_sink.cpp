// poll() says whether a pipe has room for PIPE_BUF bytes: pieces of that size never block. (A pipe set to a single page has,
// by poll(), none from its first byte on, and loses all but one line at a time.)
#include "server/config/log_sink.h"

#include <algorithm>
#include <cerrno>
#include <climits>

#include <poll.h>
#include <unistd.h>

namespace restkv {

bool LogSink::wait_for_room() const {
  pollfd one = {.fd = file_, .events = POLLOUT, .revents = 0};
  const int limit = lost_ > 0 ? 0 : static_cast<int>(patience_.count());
  int ready = 0;
  do {
    ready = poll(&one, 1, limit);
  } while (ready < 0 && errno == EINTR);
  return ready > 0;
}

bool LogSink::write_whole(std::string_view text) {
  while (!text.empty()) {
    if (!wait_for_room()) return false;
    const ssize_t written = write(file_, text.data(), std::min<size_t>(text.size(), PIPE_BUF));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    text.remove_prefix(static_cast<size_t>(written));
    is_broken_ = !text.empty();
  }
  return true;
}

void LogSink::sink_it_(const spdlog::details::log_msg& message) {
  std::string text;
  if (is_broken_) text += '\n';
  if (lost_ > 0) {  // by itself: a line behind it that gets stuck is not in its number
    text += notice_(lost_) + '\n';
    if (!write_whole(text)) {
      ++lost_;
      return;
    }
    lost_ = 0;
    text.clear();
  }
  spdlog::memory_buf_t line;
  formatter_->format(message, line);
  text.append(line.data(), line.size());
  lost_ = write_whole(text) ? 0 : lost_ + 1;
}

}  // namespace restkv

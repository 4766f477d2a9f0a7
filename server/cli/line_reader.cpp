// read(2) by hand: a stream would take an interrupted call for the end of its file.
#include "server/cli/line_reader.h"

#include <cerrno>

#include <unistd.h>

namespace restkv {

LineReader::End LineReader::read(std::string& line) {
  for (;;) {
    if (const size_t end = buffer_.find('\n'); end != std::string::npos) {
      line = buffer_.substr(0, end);
      if (line.ends_with('\r')) line.pop_back();
      buffer_.erase(0, end + 1);
      return End::kLine;
    }
    if (is_at_end_) {
      line = std::move(buffer_);
      buffer_.clear();
      return End::kEndOfInput;
    }
    char bytes[4096];
    const ssize_t count = ::read(file_, bytes, sizeof bytes);
    if (count > 0) {
      buffer_.append(bytes, static_cast<size_t>(count));
    } else if (count < 0 && errno == EINTR) {
      buffer_.clear();
      return End::kInterrupted;
    } else {
      is_at_end_ = true;
    }
  }
}

}  // namespace restkv

// Where the log's lines go: a file descriptor that may be a pipe nobody reads. A line waits for room for a short time only,
// and as long as there is none the next ones not at all: they are lost and counted, and the first that gets out again comes
// behind a line that says so. Whoever logs holds up a request.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>

#include <spdlog/sinks/base_sink.h>

namespace restkv {

class LogSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  using Notice = std::function<std::string(int64_t lost)>;  // a line, without its newline
  // `file` stays the caller's.
  LogSink(int file, Notice notice, std::chrono::milliseconds patience = std::chrono::milliseconds(200))
      : file_(file), notice_(std::move(notice)), patience_(patience) {}

 private:
  void sink_it_(const spdlog::details::log_msg& message) override;
  void flush_() override {}
  bool write_whole(std::string_view text);
  bool wait_for_room() const;

  const int file_;
  const Notice notice_;
  const std::chrono::milliseconds patience_;
  bool is_broken_ = false;  // what is out ends within a line
  int64_t lost_ = 0;        // since the last line that got out
};

}  // namespace restkv

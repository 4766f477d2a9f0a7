// Lines of a terminal or a pipe, where a signal may come between.
#pragma once

#include <string>

namespace restkv {

class LineReader {
 public:
  explicit LineReader(int file) : file_(file) {}
  enum class End { kLine, kEndOfInput, kInterrupted };
  // The next line without its newline; at the end of the input what is left, which may be empty. Interrupted: a signal
  // came, the line begun is dropped.
  End read(std::string& line);

 private:
  int file_;
  std::string buffer_;
  bool is_at_end_ = false;
};

}  // namespace restkv

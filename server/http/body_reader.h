// The body of a request: so many bytes, or chunks. Strict about chunks: hexadecimal size, CRLF everywhere, bounded
// extensions, count and trailers.
//   size [;extension] CRLF data CRLF ... 0 CRLF *(trailer CRLF) CRLF
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "server/http/request_head.h"

namespace restkv {

class BodyReader {
 public:
  // Failure: the announced length is over the limit.
  std::optional<HttpFailure> start(const RequestHead& head, const HttpLimits& limits) {
    return start(head, limits, limits.body);
  }
  std::optional<HttpFailure> start(const RequestHead& head, const HttpLimits& limits, size_t max_size);
  // Takes what belongs to the body from the front of `in`.
  std::optional<HttpFailure> feed(std::string& in);

  bool is_done() const { return state_ == State::kDone; }
  uint64_t received() const { return received_; }  // bytes taken from the wire
  std::string& body() { return body_; }
  const std::string& body() const { return body_; }

 private:
  enum class State : uint8_t { kBytes, kChunkSize, kChunkData, kChunkEnd, kTrailer, kDone };

  // One step from `in`; false: more bytes are needed.
  bool step(std::string_view& in, std::optional<HttpFailure>& bad);
  // Cuts a line off `in`; false: not there yet. Bare LF or CR and long lines fail.
  bool take_line(std::string_view& in, size_t max_len, std::string_view& line,
                 std::optional<HttpFailure>& bad);
  std::optional<HttpFailure> read_size(std::string_view line);

  const HttpLimits* limits_ = nullptr;
  size_t max_size_ = 0;  // of the body
  State state_ = State::kDone;
  uint64_t left_ = 0;  // bytes of the body or the chunk still to come
  size_t num_chunks_ = 0;
  size_t trailer_size_ = 0, num_trailers_ = 0;
  uint64_t received_ = 0;
  std::string body_;
};

}  // namespace restkv

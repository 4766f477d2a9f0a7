// The state machine of a chunked body.
#include "server/http/body_reader.h"

#include <algorithm>

namespace restkv {
namespace {

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::optional<HttpFailure> BodyReader::start(const RequestHead& head, const HttpLimits& limits,
                                             size_t max_size) {
  *this = BodyReader();
  limits_ = &limits;
  max_size_ = max_size;
  if (head.is_chunked) {
    state_ = State::kChunkSize;
    return std::nullopt;
  }
  left_ = head.content_length.value_or(0);
  if (left_ > max_size_) {
    return HttpFailure{413, "the body is larger than " + std::to_string(max_size_) + " bytes"};
  }
  if (left_ > 0) state_ = State::kBytes;
  return std::nullopt;
}

std::optional<HttpFailure> BodyReader::feed(std::string& in) {
  std::string_view rest = in;
  std::optional<HttpFailure> bad;
  while (!bad && state_ != State::kDone && step(rest, bad)) {
  }
  const size_t taken = in.size() - rest.size();
  received_ += taken;
  in.erase(0, taken);
  return bad;
}

bool BodyReader::step(std::string_view& in, std::optional<HttpFailure>& bad) {
  switch (state_) {
    case State::kBytes:
    case State::kChunkData: {
      const auto len = static_cast<size_t>(std::min<uint64_t>(left_, in.size()));
      body_.append(in.substr(0, len));
      in.remove_prefix(len);
      left_ -= len;
      if (left_ > 0) return false;
      state_ = state_ == State::kBytes ? State::kDone : State::kChunkEnd;
      return true;
    }
    case State::kChunkSize: {
      std::string_view line;
      if (!take_line(in, limits_->chunk_line, line, bad)) return false;
      bad = read_size(line);
      return true;
    }
    case State::kChunkEnd: {
      std::string_view line;
      if (!take_line(in, 0, line, bad)) return false;
      state_ = State::kChunkSize;
      return true;
    }
    case State::kTrailer: {
      std::string_view line;
      if (!take_line(in, limits_->headers_size, line, bad)) return false;
      if (line.empty()) {
        state_ = State::kDone;
        return true;
      }
      trailer_size_ += line.size() + 2;
      if (++num_trailers_ > limits_->headers || trailer_size_ > limits_->headers_size) {
        bad = HttpFailure{431, "the trailers are too large"};
      }
      return true;
    }
    case State::kDone: break;
  }
  return false;
}

bool BodyReader::take_line(std::string_view& in, size_t max_len, std::string_view& line,
                           std::optional<HttpFailure>& bad) {
  const std::string_view seen = in.substr(0, max_len + 2);
  const size_t end = seen.find_first_of("\r\n");
  if (end == std::string_view::npos) {
    if (seen.size() > max_len) bad = HttpFailure{400, "malformed chunk"};
    return false;
  }
  if (end > max_len || seen[end] == '\n' || (end + 1 < in.size() && in[end + 1] != '\n')) {
    bad = HttpFailure{400, "malformed chunk"};
    return false;
  }
  if (end + 1 >= in.size()) return false;
  line = in.substr(0, end);
  in.remove_prefix(end + 2);
  return true;
}

std::optional<HttpFailure> BodyReader::read_size(std::string_view line) {
  constexpr size_t kMaxDigits = 15;  // fits 64 bits
  uint64_t size = 0;
  size_t digits = 0;
  while (digits < line.size() && hex_value(line[digits]) >= 0) {
    if (digits == kMaxDigits) return HttpFailure{413, "a chunk is too large"};
    size = size * 16 + static_cast<uint64_t>(hex_value(line[digits]));
    ++digits;
  }
  const std::string_view extension = line.substr(digits);
  const bool has_control = std::any_of(extension.begin(), extension.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 && c != '\t';
  });
  if (digits == 0 || has_control || (!extension.empty() && extension.front() != ';')) {
    return HttpFailure{400, "malformed chunk size"};
  }
  if (size == 0) {
    state_ = State::kTrailer;
    return std::nullopt;
  }
  if (++num_chunks_ > limits_->chunks) {
    return HttpFailure{413, "the body has more than " + std::to_string(limits_->chunks) + " chunks"};
  }
  if (size > max_size_ - body_.size()) {
    return HttpFailure{413, "the body is larger than " + std::to_string(max_size_) + " bytes"};
  }
  left_ = size;
  state_ = State::kChunkData;
  return std::nullopt;
}

}  // namespace restkv

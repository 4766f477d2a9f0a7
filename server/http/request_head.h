// The head of a request: strict checks over its raw bytes first, because Beast's parser lets through what other servers
// read differently (bare LF, obs-fold, two lengths), then Beast's parser for what it means.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/http/limits.h"

namespace restkv {

// Why a request cannot be read: the answer's status, then the connection closes.
struct HttpFailure {
  int status = 400;
  std::string message;
  std::string code = {};
};

struct RequestHead {
  std::string method;
  std::string path;   // without the query, as sent (not percent-decoded)
  std::string query;  // behind '?'
  int version = 11;   // 10 or 11
  bool keep_alive = true;
  bool is_chunked = false;
  bool expects_continue = false;
  std::optional<uint64_t> content_length;
  std::vector<std::pair<std::string, std::string>> headers;  // names in lower case

  // The first value, or "".
  std::string_view header(std::string_view lower_case_name) const;
};

// Bytes of the head at the start of `in` with its empty line, 0 if it is not complete yet. Only bytes behind `scanned` are
// looked at; it moves on. Failure: a limit is passed or a line does not end in CRLF.
std::optional<HttpFailure> find_head_end(std::string_view in, const HttpLimits& limits, size_t& scanned,
                                         size_t& head_len);

// `raw` is one whole head as find_head_end cuts it.
std::optional<HttpFailure> parse_head(std::string_view raw, const HttpLimits& limits, RequestHead& head);

}  // namespace restkv

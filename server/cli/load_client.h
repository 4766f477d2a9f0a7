// A blocking HTTP client for load: one streamed completion on a connection of its own, with the times at which its parts
// came. No TLS; for servers on this machine or a trusted network.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace restkv {

struct ServerAddress {
  std::string host, port;
};
// "http://127.0.0.1:8000", with or without "http://"; a path is not taken.
Result<ServerAddress> parse_server_url(std::string_view url);

struct LoadAnswer {
  std::string error;  // empty: it ran to its end
  int status = 0;
  std::chrono::steady_clock::time_point start{}, end{};
  std::vector<std::chrono::steady_clock::time_point> chunks;  // with text of the answer
  int64_t prompt_tokens = 0, completion_tokens = 0;  // as the server counts; completion: else the chunks
};

// POSTs `body` (a completion with "stream": true) to `path`.
LoadAnswer stream_completion(const ServerAddress& server, std::string_view path, std::string_view body,
                             std::string_view api_key, std::chrono::milliseconds timeout);
// The body of a GET; errors: no connection, a status other than 200.
Result<std::string> get_body(const ServerAddress& server, std::string_view path, std::string_view api_key);

}  // namespace restkv

// The bounds of what a client may send, as reliability.md sets them; from the settings, except where they are no matter of
// taste.
#pragma once

#include <chrono>
#include <cstdint>

#include "server/config/settings.h"

namespace restkv {

struct HttpLimits {
  size_t request_line = 8 << 10;   // bytes without CRLF; one more is 414
  size_t headers_size = 16 << 10;  // bytes of all header lines with their CRLF; one more is 431
  size_t headers = 100;            // one more is 431
  size_t body = 8 << 20;           // bytes; one more is 413
  size_t bodies = 256 << 20;       // bytes of all bodies of more than `pipelined`; no room is 503
  size_t chunks = 65'536;          // of one body; one more is 413
  size_t chunk_line = 256;         // bytes of a chunk's size line with extensions; more is 400
  int64_t body_rate = 1 << 10;     // bytes a second; 0: any
  size_t unsent =
      64 << 10;  // bytes of a stream held for one connection; then its tokens wait in the TokenStream
  size_t pipelined = 64 << 10;  // bytes read ahead while a request runs; and of a body where none is taken
  milliseconds header_timeout{10'000};
  milliseconds body_grace{5'000};  // before body_rate counts; at most header_timeout
  milliseconds body_timeout{600'000};
  milliseconds idle_timeout{60'000};
  milliseconds write_timeout{30'000};
  milliseconds linger_timeout{2'000};  // to take what a refused client still sends, so that it can read why
  milliseconds ping_interval{10'000};  // of a stream without an event
};

// `max_model_len`: a prompt of so many token ids fits the body.
HttpLimits http_limits(const ServerSettings& settings, int64_t max_model_len);

}  // namespace restkv

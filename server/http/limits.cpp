// Limits from the settings.
#include "server/http/limits.h"

#include <algorithm>

namespace restkv {

HttpLimits http_limits(const ServerSettings& settings, int64_t max_model_len) {
  HttpLimits limits;
  limits.request_line = static_cast<size_t>(settings.max_request_line);
  limits.headers_size = static_cast<size_t>(settings.max_header_size);
  limits.headers = static_cast<size_t>(settings.max_headers);
  constexpr int64_t kBytesPerToken = 8;
  limits.body = static_cast<size_t>(settings.max_body_size > 0
                                        ? settings.max_body_size
                                        : std::max<int64_t>(8 << 20, kBytesPerToken * max_model_len));
  limits.bodies = static_cast<size_t>(settings.max_body_memory);
  limits.body = std::min(limits.body, limits.bodies);
  limits.chunks = static_cast<size_t>(settings.max_chunks);
  limits.unsent = static_cast<size_t>(settings.max_unsent_size);
  limits.body_rate = settings.min_body_rate;
  limits.body_grace = std::min(limits.body_grace, settings.header_timeout);
  limits.ping_interval = settings.ping_interval;
  limits.header_timeout = settings.header_timeout;
  limits.body_timeout = settings.body_timeout;
  limits.idle_timeout = settings.idle_timeout;
  limits.write_timeout = settings.write_timeout;
  return limits;
}

}  // namespace restkv

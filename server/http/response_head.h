// Status line and headers of an answer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace restkv {

using HeaderList = std::vector<std::pair<std::string_view, std::string>>;

std::string_view reason_phrase(int status);

// Ends with the empty line. `framing`: "Content-Length: 12" or "Transfer-Encoding: chunked" or "".
std::string response_head(int status, std::string_view content_type, std::string_view framing, bool closes,
                          const HeaderList& headers);

}  // namespace restkv

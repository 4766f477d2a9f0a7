// W3C trace context: what a caller's `traceparent` says, for the lines of the log. Nothing is exported.
#pragma once

#include <string>
#include <string_view>

namespace restkv {

struct TraceContext {
  std::string trace_id;   // 32 lower-case hexadecimal digits; empty: there is none
  std::string parent_id;  // 16 digits: the caller's span

  bool is_known() const { return !trace_id.empty(); }
};

// "00-<32 digits>-<16 digits>-<2 digits>", and of later versions what begins so. Anything else, ids of zeros and version ff are
// no context, as the standard asks; it is never an error of the request.
TraceContext parse_traceparent(std::string_view header);

}  // namespace restkv

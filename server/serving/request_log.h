// What a request leaves in the log, whatever protocol it came by: a line with ids, times and token counts, and one more that
// says where the time went if it took long. Never content.
#pragma once

#include <optional>
#include <string_view>

#include "server/config/logging.h"
#include "server/openai/output_assembler.h"
#include "server/serving/trace_context.h"

namespace restkv {

struct RequestLog {
  std::string_view method, path;  // "POST", "/v1/completions"; "gRPC", "restkv.v1.Inference/Generate"
  int64_t status = 0;             // of the protocol
  double ms = 0;                  // from the whole request to its answer's end
  double receive_ms = 0;          // before that: while the request came in
  std::string_view id, key;
  TraceContext trace = {};                // of the caller
  std::optional<OutputUsage> usage = {};  // of an answer with tokens
};

// `slow`: from when on a request is slow; 0: none is.
void log_request(LogLevel level, const RequestLog& request, milliseconds slow);

}  // namespace restkv

// Metadata, deadlines, one log line a call.
#include "server/grpc/call_context.h"

#include <algorithm>

namespace restkv {

std::chrono::nanoseconds time_left(const grpc::CallbackServerContext& context, const Settings& settings) {
  std::chrono::nanoseconds limit = settings.server.request_timeout;
  const auto deadline = context.deadline();
  const auto now = std::chrono::system_clock::now();
  if (deadline - now > std::chrono::hours(24 * 365)) return limit;  // none given
  const std::chrono::nanoseconds left =
      std::max<std::chrono::nanoseconds>(deadline - now, std::chrono::nanoseconds(1));
  return limit.count() > 0 ? std::min(limit, left) : left;
}

Result<Caller> caller_of(const grpc::CallbackServerContext& context, const Serving& serving) {
  const auto& metadata = context.client_metadata();
  for (const char* name : {"authorization", "x-api-key"}) {
    const auto found = metadata.find(name);
    if (found != metadata.end())
      return serving.access.authorize(std::string_view(found->second.data(), found->second.size()));
  }
  return serving.access.authorize(std::string_view());
}

std::string request_id_of(const grpc::CallbackServerContext& context, Serving& serving) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find("x-request-id");
  if (found != metadata.end()) {
    const std::string_view id(found->second.data(), found->second.size());
    if (is_request_id(id)) return std::string(id);
  }
  return serving.new_id("req-");
}

TraceContext trace_of(const grpc::CallbackServerContext& context) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find("traceparent");
  if (found == metadata.end()) return {};
  return parse_traceparent(std::string_view(found->second.data(), found->second.size()));
}

void log_call(Serving& serving, const CallLog& call) {
  serving.responses.count(ResponseCounts::Protocol::kGrpc, call.method, call.status.error_code());
  const double ms = std::chrono::duration<double, std::milli>(Clock::now() - call.arrival).count();
  log_request(LogLevel::kInfo,
              {.method = "gRPC",
               .path = call.method,
               .status = static_cast<int64_t>(call.status.error_code()),
               .ms = ms,
               .id = call.id,
               .key = call.caller,
               .trace = call.trace,
               .usage = call.usage},
              serving.settings.logging.slow_request);
}

}  // namespace restkv

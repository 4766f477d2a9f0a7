// Metadata, deadlines, one log line a call.
#include "server/grpc/call_context.h"

#include <algorithm>

#include "server/config/logging.h"

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

void log_call(const char* method, const std::string& id, const std::string& caller,
              const grpc::Status& status, Clock::time_point arrival) {
  if (!logs(LogLevel::kInfo)) return;
  const double ms = std::chrono::duration<double, std::milli>(Clock::now() - arrival).count();
  log_event(LogLevel::kInfo, "request",
            {{"method", "gRPC"},
             {"path", method},
             {"status", static_cast<int64_t>(status.error_code())},
             {"ms", ms},
             {"key", caller},
             {"id", id}});
}

}  // namespace restkv

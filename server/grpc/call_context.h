// What every gRPC call starts from: who calls, its id, its deadline.
#pragma once

#include <grpcpp/server_context.h>

#include <optional>
#include <string>

#include "server/grpc/ready_queue.h"
#include "server/serving/request_log.h"
#include "server/serving/serving.h"

namespace restkv {

// Of one gRPC server; outlives its calls.
struct GrpcShared {
  std::shared_ptr<Serving> serving;
  std::atomic<int64_t> num_waiting{0};  // calls that stay open between two requests
  std::shared_ptr<ReadyQueue> ready =
      std::make_shared<ReadyQueue>();  // the engine may wake it later than the server lives
};

// Time the call may still take: its deadline or the server's request_timeout, whichever comes first. 0: no limit.
std::chrono::nanoseconds time_left(const grpc::CallbackServerContext& context, const Settings& settings);
// By metadata authorization (or x-api-key).
Result<Caller> caller_of(const grpc::CallbackServerContext& context, const Serving& serving);
// Metadata x-request-id of the client, or a new one.
std::string request_id_of(const grpc::CallbackServerContext& context, Serving& serving);
// Metadata traceparent of the client, if any.
TraceContext trace_of(const grpc::CallbackServerContext& context);

// For the log's line of a call.
struct CallLog {
  const char* method;  // a literal
  const std::string& id;
  const std::string& caller;
  const grpc::Status& status;
  Clock::time_point arrival;
  TraceContext trace = {};
  std::optional<OutputUsage> usage = {};
};
// And counts it for /metrics.
void log_call(Serving& serving, const CallLog& call);

}  // namespace restkv

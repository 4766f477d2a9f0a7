// Calls that compute one answer without the engine: run on a worker, then finish. The request and the answer belong to gRPC
// until the call is finished, which happens here alone, so a cancelled call may compute to its end.
#pragma once

#include <functional>

#include "server/grpc/call_context.h"

namespace restkv {

grpc::ServerUnaryReactor* run_unary(GrpcShared& shared, grpc::CallbackServerContext& context,
                                    const char* method, std::function<Status(const Caller&)> work);

}  // namespace restkv

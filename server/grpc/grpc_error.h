// The one table from Status to gRPC: the codes have gRPC's names already. Details as google.rpc knows them: ErrorInfo with the
// reason, BadRequest with the field, RetryInfo where later helps.
#pragma once

#include <grpcpp/support/status.h>

#include <cstdint>

#include "kernels/base/status.h"

namespace restkv {

grpc::Status grpc_error(const Status& status, int64_t retry_after_s = 1);

}  // namespace restkv

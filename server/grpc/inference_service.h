// restkv.v1.Inference (proto/restkv/v1/inference.proto).
#pragma once

#include <grpcpp/server_builder.h>

#include <memory>

#include "server/grpc/call_context.h"

namespace restkv {

std::unique_ptr<grpc::Service> make_inference_service(GrpcShared& shared);

}  // namespace restkv

// inference.GRPCInferenceService: KServe's open inference protocol v2, with Triton's ModelStreamInfer and RepositoryIndex.
#pragma once

#include <grpcpp/server_builder.h>

#include <memory>

#include "server/grpc/call_context.h"

namespace restkv {

std::unique_ptr<grpc::Service> make_open_inference_service(GrpcShared& shared);

}  // namespace restkv

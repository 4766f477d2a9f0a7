// grpc.reflection.v1alpha: names of services and their descriptors, for grpcurl and its like.
#pragma once

#include <grpcpp/server_builder.h>

#include <memory>
#include <string>
#include <vector>

#include "server/grpc/call_context.h"

namespace restkv {

// `services`: full names, in the order they are listed.
std::unique_ptr<grpc::Service> make_reflection_service(GrpcShared& shared, std::vector<std::string> services);

}  // namespace restkv

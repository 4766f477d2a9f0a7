// Clients that read gRPC streams as fast as they come; a file of its own, because generated headers are slow to compile.
#pragma once

#include <cstdint>

namespace restkv {

struct GrpcReading {
  int64_t messages = 0;
  int failures = 0;  // streams that did not end well with all their tokens
};

GrpcReading read_grpc(uint16_t port, int num_streams, int num_tokens);

}  // namespace restkv

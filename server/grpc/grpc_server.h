// The gRPC server: restkv.v1.Inference, the open inference protocol, health, reflection. Fenced, because Debian's gRPC has open
// denial-of-service faults: a memory quota, limits on streams, message and metadata sizes; loopback unless told otherwise.
#pragma once

#include <cstdint>
#include <memory>

#include "server/serving/serving.h"

namespace restkv {

class GrpcServer {
 public:
  // Listens when it returns. `port` 0: any free one. Errors: a port in use (with what to do).
  static Result<std::unique_ptr<GrpcServer>> start(std::shared_ptr<Serving> serving, uint16_t port);
  virtual ~GrpcServer() = default;  // as stop()

  virtual uint16_t port() const = 0;
  // Health says NOT_SERVING, new work gets UNAVAILABLE (Serving::drain); running calls go on.
  virtual void drain() = 0;
  virtual bool is_idle() const = 0;  // no call generates
  virtual void stop() = 0;           // at once: running calls are cancelled
};

}  // namespace restkv

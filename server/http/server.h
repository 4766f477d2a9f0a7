// The HTTP server: listens, spreads connections over I/O threads, drains and stops.
#pragma once

#include <cstdint>
#include <memory>

#include "server/serving/serving.h"

namespace restkv {

class HttpServer {
 public:
  // Listens when it returns, or goes on with `listener`, a listening socket that it takes over. Errors: no address, a port in
  // use (with what to do).
  static Result<std::unique_ptr<HttpServer>> start(std::shared_ptr<Serving> serving, int listener = -1);
  virtual ~HttpServer() = default;  // as stop()

  virtual uint16_t port() const = 0;
  // New work gets 503 from now on, readiness too (Serving::drain), and so do requests that are not here whole; idle connections
  // close, running requests go on.
  virtual void drain() = 0;
  virtual bool is_idle() const = 0;  // no request runs, and whoever was refused had time to read it
  // Ends everything at once: running requests are cancelled, connections closed.
  virtual void stop() = 0;
};

}  // namespace restkv

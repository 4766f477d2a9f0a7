// Answers on the server's port while the model is downloaded and loaded: the process lives, everything else is a 503 with
// Retry-After. Nothing is asked of keys and nothing is said of the model. Then the listening socket goes on to HttpServer, with
// the clients that wait on it.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/base/status.h"
#include "server/config/settings.h"

namespace restkv {

class LoadingServer {
 public:
  // Listens when it returns; errors as open_listener's. Its thread takes no signals.
  static Result<std::unique_ptr<LoadingServer>> start(const ServerSettings& settings);
  virtual ~LoadingServer() = default;

  virtual uint16_t port() const = 0;
  // Ends the answers and gives the listening socket away.
  virtual int release() = 0;
};

}  // namespace restkv

// The socket that HTTP listens on.
#pragma once

#include <boost/asio/ip/tcp.hpp>

#include "kernels/base/status.h"
#include "server/config/settings.h"

namespace restkv {

// Opens, binds and listens. Errors: no address, a port in use (with what to do).
Status open_listener(const ServerSettings& settings, boost::asio::ip::tcp::acceptor& acceptor);

}  // namespace restkv

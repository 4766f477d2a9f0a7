// What an operator can do about an address that cannot be had is in the error.
#include "server/http/listener.h"

#include <boost/asio/ip/address.hpp>

namespace restkv {

namespace asio = boost::asio;
using asio::ip::tcp;

Status open_listener(const ServerSettings& settings, tcp::acceptor& acceptor) {
  boost::system::error_code error;
  const asio::ip::address address = asio::ip::make_address(settings.host, error);
  if (error) return invalid_argument("server.host: '" + settings.host + "' is not an IP address");
  const tcp::endpoint endpoint(address, static_cast<uint16_t>(settings.port));
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (!error) return {};
  const std::string place = settings.host + ":" + std::to_string(settings.port);
  if (error == asio::error::address_in_use) {
    return {StatusCode::kFailedPrecondition,
            "cannot listen on " + place +
                ": the port is in use; stop what uses it or choose another with --port"};
  }
  if (error == asio::error::access_denied) {
    return {StatusCode::kFailedPrecondition,
            "cannot listen on " + place + ": permission denied; choose a port above 1023 with --port"};
  }
  return {StatusCode::kFailedPrecondition, "cannot listen on " + place + ": " + error.message()};
}

}  // namespace restkv

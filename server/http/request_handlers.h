// GET /v1/requests and DELETE /v1/requests/{id}: what the caller's own key has in flight.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <string_view>

namespace restkv {

class Connection;

inline constexpr std::string_view kRequestPath = "/v1/requests/";

boost::asio::awaitable<void> handle_requests(Connection& connection);
boost::asio::awaitable<void> handle_cancel_request(Connection& connection);

}  // namespace restkv

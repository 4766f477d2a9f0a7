// Which handler answers which method and path. A path that nobody has is 404, a method it does not take 405.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <span>
#include <string_view>

namespace restkv {

class Connection;

struct Route {
  std::string_view method;  // GET also answers HEAD
  std::string_view path;    // "/v1/models/{id}": the rest of the path is the id
  bool is_public = false;   // answers without a key, where keys are set
  boost::asio::awaitable<void> (*handle)(Connection&) = nullptr;
};

std::span<const Route> route_table();

// Answers the request that `connection` holds.
boost::asio::awaitable<void> handle_request(Connection& connection);

}  // namespace restkv

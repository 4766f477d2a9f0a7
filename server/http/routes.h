// Which handler answers which method and path. A path that nobody has is 404, a method it does not take 405.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <span>
#include <string>
#include <string_view>

#include "server/http/response_head.h"
#include "server/openai/api_error.h"

namespace restkv {

class Connection;

// Who may use a route where keys are set. A new route is for keys unless it says otherwise.
enum class RouteAccess : uint8_t {
  kKey,
  kPublic,   // health, version
  kMetrics,  // everybody on a loopback address or with metrics.public, else a key
};

struct Route {
  std::string_view method;  // GET also answers HEAD
  std::string_view path;    // "/v1/models/{id}": the rest of the path is the id
  RouteAccess access = RouteAccess::kKey;
  boost::asio::awaitable<void> (*handle)(Connection&) = nullptr;
};

std::span<const Route> route_table();
std::string version_body();  // of /version

// What a request's head alone decides: where it goes, or why it goes nowhere.
struct Admission {
  const Route* route = nullptr;  // null: `error` is the answer
  std::string_view path = {};    // of the route, of one that is refused, too; empty: there is none
  ApiError error = {};
  HeaderList headers = {};
};

// Sets the connection's caller, too. What is refused is refused before anybody keeps memory for its body.
Admission admit(Connection& connection);
boost::asio::awaitable<void> respond_refused(Connection& connection, const Admission& admission);
// Answers the request that `connection` holds.
boost::asio::awaitable<void> handle_request(Connection& connection, const Admission& admission);

}  // namespace restkv

// GET /v1/requests, DELETE /v1/requests/{id} and GET /slots: what the caller's own key has in flight.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <string>
#include <string_view>

namespace restkv {

class Connection;

// The {id} of a request's path: what is behind `prefix`, with its escapes (%2F, %3A) read. What is no escape stays as it is.
std::string path_id(const Connection& connection, std::string_view prefix);

inline constexpr std::string_view kRequestPath = "/v1/requests/";

boost::asio::awaitable<void> handle_requests(Connection& connection);
boost::asio::awaitable<void> handle_cancel_request(Connection& connection);
// llama.cpp's GET /slots: a place for each sequence that may run. What runs for other keys is a taken place and nothing more.
boost::asio::awaitable<void> handle_slots(Connection& connection);

}  // namespace restkv

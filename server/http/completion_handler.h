// POST /v1/completions and /v1/chat/completions: body -> engine requests (on a worker) -> submit -> answer or stream.
#pragma once

#include <boost/asio/awaitable.hpp>

namespace restkv {

class Connection;
boost::asio::awaitable<void> handle_completions(Connection& connection);
boost::asio::awaitable<void> handle_chat_completions(Connection& connection);

}  // namespace restkv

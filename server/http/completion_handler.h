// POST /v1/completions, /v1/chat/completions and llama.cpp's /completion: body -> engine requests (on a worker) -> submit -> answer or stream.
#pragma once

#include <boost/asio/awaitable.hpp>

namespace restkv {

class Connection;
boost::asio::awaitable<void> handle_completions(Connection& connection);
boost::asio::awaitable<void> handle_chat_completions(Connection& connection);
boost::asio::awaitable<void> handle_llama_completion(Connection& connection);

}  // namespace restkv

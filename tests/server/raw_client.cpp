// Plain POSIX sockets.
#include "tests/server/raw_client.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "kernels/base/check.h"

namespace restkv {

RawClient::RawClient(uint16_t port, int receive_buffer) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
  CHECK(socket_ >= 0) << "no socket";
  if (receive_buffer > 0)
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) << "cannot connect";
}

RawClient::~RawClient() {
  if (socket_ >= 0) ::close(socket_);
}

bool RawClient::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t len = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (len <= 0) return false;  // the server refused and closed
    bytes.remove_prefix(static_cast<size_t>(len));
  }
  return true;
}

std::string RawClient::receive_until(std::string_view end, double seconds) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::string all;
  size_t looked_at = 0;  // `end` is not in all[0, looked_at)
  while (end.empty() || all.find(end, looked_at) == std::string::npos) {
    looked_at = all.size() - std::min(all.size(), end.size());
    const auto left =
        std::chrono::duration<double, std::milli>(deadline - std::chrono::steady_clock::now()).count();
    pollfd wait{socket_, POLLIN, 0};
    if (left <= 0 || ::poll(&wait, 1, static_cast<int>(left) + 1) <= 0) break;
    char buffer[4096];
    const ssize_t len = ::recv(socket_, buffer, sizeof buffer, 0);
    if (len <= 0) {
      is_closed_ = true;
      break;
    }
    all.append(buffer, static_cast<size_t>(len));
  }
  return all;
}

std::string RawClient::receive_all(double seconds) { return receive_until({}, seconds); }

void RawClient::reset() {
  const linger now{1, 0};
  ::setsockopt(socket_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  ::close(socket_);
  socket_ = -1;
}

void RawClient::shut_down_sending() { ::shutdown(socket_, SHUT_WR); }

void RawClient::shut_down() { ::shutdown(socket_, SHUT_RDWR); }

}  // namespace restkv

#include "tests/bench/sse_reader.h"

#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <vector>

#include "kernels/base/check.h"

namespace restkv {
namespace {

constexpr std::string_view kEnd = "data: [DONE]\n\n\r\n0\r\n\r\n";

struct Stream {
  int socket = -1;
  std::string tail;  // the last bytes read, as many as kEnd has
};

int connect_to(uint16_t port) {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  CHECK(socket >= 0) << "no socket";
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(::connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) << "cannot connect";
  return socket;
}

void keep_tail(std::string& tail, std::string_view bytes) {
  if (bytes.size() >= kEnd.size()) {
    tail = bytes.substr(bytes.size() - kEnd.size());
    return;
  }
  tail += bytes;
  if (tail.size() > kEnd.size()) tail.erase(0, tail.size() - kEnd.size());
}

}  // namespace

int read_event_streams(uint16_t port, int num_streams, const std::string& request) {
  const int poller = ::epoll_create1(0);
  CHECK(poller >= 0) << "no epoll";
  std::vector<Stream> streams(static_cast<size_t>(num_streams));
  for (size_t i = 0; i < streams.size(); ++i) {
    streams[i].socket = connect_to(port);
    CHECK(::send(streams[i].socket, request.data(), request.size(), MSG_NOSIGNAL) ==
          static_cast<ssize_t>(request.size()))
        << "cannot send";
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = i;
    CHECK(::epoll_ctl(poller, EPOLL_CTL_ADD, streams[i].socket, &event) == 0) << "cannot watch a socket";
  }
  std::array<epoll_event, 256> events{};
  std::vector<char> buffer(64 << 10);
  int failures = 0;
  for (int num_open = num_streams; num_open > 0;) {
    const int count = ::epoll_wait(poller, events.data(), static_cast<int>(events.size()), 600'000);
    CHECK(count > 0) << "nothing came for ten minutes";
    for (int i = 0; i < count; ++i) {
      Stream& stream = streams[events[static_cast<size_t>(i)].data.u64];
      const ssize_t len = ::recv(stream.socket, buffer.data(), buffer.size(), 0);
      if (len > 0) {
        keep_tail(stream.tail, std::string_view(buffer.data(), static_cast<size_t>(len)));
        continue;
      }
      failures += stream.tail != kEnd;
      ::close(stream.socket);
      --num_open;
    }
  }
  ::close(poller);
  return failures;
}

}  // namespace restkv

// A blocking socket to a server on loopback, for bytes that no HTTP library would send.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace restkv {

class RawClient {
 public:
  explicit RawClient(uint16_t port, int receive_buffer = 0);
  ~RawClient();
  RawClient(const RawClient&) = delete;

  bool send(std::string_view bytes);  // false: the server has closed
  // Until `end` was seen, the server closed, or `seconds` passed; all bytes so far.
  std::string receive_until(std::string_view end, double seconds = 5);
  std::string receive_all(double seconds = 5);  // until the server closes
  bool is_closed() const { return is_closed_; }
  void reset();  // closes with RST: a killed client
  void shut_down_sending();
  void shut_down();  // both ways: a send or a receive that waits in another thread ends

 private:
  int socket_ = -1;
  bool is_closed_ = false;
};

}  // namespace restkv

// POSIX sockets; the body is read line by line, chunk headers between events are skipped over.
#include "server/cli/load_client.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include <nlohmann/json.hpp>

namespace restkv {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr size_t kMaxLine = 1 << 20;

class Connection {
 public:
  Connection() = default;
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() {
    if (socket_ >= 0) ::close(socket_);
  }

  Status open(const ServerAddress& server, milliseconds timeout) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (::getaddrinfo(server.host.c_str(), server.port.c_str(), &hints, &found) != 0)
      return {StatusCode::kUnavailable, "the host " + server.host + " is not known"};
    for (const addrinfo* one = found; one && socket_ < 0; one = one->ai_next) {
      const int fd = ::socket(one->ai_family, one->ai_socktype | SOCK_CLOEXEC, one->ai_protocol);
      if (fd < 0) continue;
      if (::connect(fd, one->ai_addr, one->ai_addrlen) == 0) {
        socket_ = fd;
      } else {
        ::close(fd);
      }
    }
    ::freeaddrinfo(found);
    if (socket_ < 0) return {StatusCode::kUnavailable, "no connection: " + std::string(std::strerror(errno))};
    const int yes = 1;
    ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    timeval limit{};
    limit.tv_sec = static_cast<time_t>(timeout.count() / 1000);
    limit.tv_usec = static_cast<suseconds_t>(timeout.count() % 1000 * 1000);
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return {};
  }

  bool send(std::string_view data) {
    while (!data.empty()) {
      const ssize_t sent = ::send(socket_, data.data(), data.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      data.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }

  // The next line without its end; false: the connection ended.
  bool read_line(std::string& line) {
    line.clear();
    for (;;) {
      const size_t end = buffer_.find('\n', begin_);
      if (end != std::string::npos) {
        line.assign(buffer_, begin_, end - begin_);
        if (!line.empty() && line.back() == '\r') line.pop_back();
        begin_ = end + 1;
        return true;
      }
      if (!fill()) return false;
    }
  }
  // What is left until the connection ends.
  std::string read_rest() {
    while (fill()) {
    }
    return buffer_.substr(begin_);
  }

 private:
  bool fill() {
    if (begin_ > 0) {
      buffer_.erase(0, begin_);
      begin_ = 0;
    }
    if (buffer_.size() > kMaxLine) return false;
    char data[16384];
    const ssize_t count = ::recv(socket_, data, sizeof data, 0);
    if (count <= 0) return false;
    buffer_.append(data, static_cast<size_t>(count));
    return true;
  }

  int socket_ = -1;
  std::string buffer_;
  size_t begin_ = 0;
};

std::string request_head(std::string_view method, std::string_view path, const ServerAddress& server,
                         std::string_view api_key) {
  std::string head = std::string(method) + " " + std::string(path) + " HTTP/1.1\r\nHost: " + server.host +
                     ":" + server.port + "\r\nConnection: close\r\n";
  if (!api_key.empty()) head += "Authorization: Bearer " + std::string(api_key) + "\r\n";
  return head;
}

// Reads status and headers; 0: none came.
int read_head(Connection& connection) {
  std::string line;
  if (!connection.read_line(line) || line.size() < 12 || !line.starts_with("HTTP/1.")) return 0;
  const int status = std::atoi(line.c_str() + 9);
  while (connection.read_line(line) && !line.empty()) {
  }
  return status;
}

// One event of the stream. False: the answer failed.
bool take_event(const std::string& data, LoadAnswer& answer) {
  const nlohmann::json event = nlohmann::json::parse(data, nullptr, false);
  if (!event.is_object()) {
    answer.error = "an event that is no JSON object";
    return false;
  }
  if (event.contains("error")) {
    answer.error = "an error event";
    return false;
  }
  if (const auto usage = event.find("usage"); usage != event.end() && usage->is_object()) {
    const auto count = [&](const char* name) {
      const auto field = usage->find(name);
      return field != usage->end() && field->is_number_integer() ? field->get<int64_t>() : int64_t{0};
    };
    answer.prompt_tokens = count("prompt_tokens");
    answer.completion_tokens = count("completion_tokens");
  }
  const auto choices = event.find("choices");
  if (choices == event.end() || !choices->is_array() || choices->empty()) return true;
  const nlohmann::json& choice = choices->front();
  const auto text = choice.find("text");
  if (text != choice.end() && text->is_string() && !text->get_ref<const std::string&>().empty())
    answer.chunks.push_back(steady_clock::now());
  return true;
}

}  // namespace

Result<ServerAddress> parse_server_url(std::string_view url) {
  constexpr std::string_view kScheme = "http://";
  std::string_view rest = url;
  if (rest.starts_with(kScheme)) rest.remove_prefix(kScheme.size());
  if (rest.ends_with('/')) rest.remove_suffix(1);
  const size_t colon = rest.rfind(':');
  ServerAddress server{std::string(rest.substr(0, colon)),
                       colon == std::string_view::npos ? "80" : std::string(rest.substr(colon + 1))};
  if (server.host.starts_with('[') && server.host.ends_with(']'))
    server.host = server.host.substr(1, server.host.size() - 2);
  const bool is_port =
      !server.port.empty() && server.port.find_first_not_of("0123456789") == std::string::npos;
  if (server.host.empty() || !is_port || rest.find('/') != std::string_view::npos ||
      url.find("https://") == 0) {
    return invalid_argument("'" + std::string(url.substr(0, 64)) +
                            "' is not the URL of a server (example: http://127.0.0.1:8000)");
  }
  return server;
}

LoadAnswer stream_completion(const ServerAddress& server, std::string_view path, std::string_view body,
                             std::string_view api_key, milliseconds timeout) {
  LoadAnswer answer;
  answer.start = answer.end = steady_clock::now();
  Connection connection;
  if (const Status status = connection.open(server, timeout); !status.ok()) {
    answer.error = status.message();
    return answer;
  }
  const std::string head =
      request_head("POST", path, server, api_key) +
      "Content-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n";
  if (!connection.send(head) || !connection.send(body)) {
    answer.error = "the request could not be sent";
    return answer;
  }
  answer.status = read_head(connection);
  if (answer.status != 200) {
    answer.error = "status " + std::to_string(answer.status);
    answer.end = steady_clock::now();
    return answer;
  }
  bool is_done = false;
  std::string line;
  while (!is_done && connection.read_line(line)) {
    if (!line.starts_with("data:")) continue;
    std::string data = line.substr(5);
    data.erase(0, data.find_first_not_of(' '));
    is_done = data == "[DONE]";
    if (!is_done && !take_event(data, answer)) break;
  }
  answer.end = steady_clock::now();
  if (!is_done && answer.error.empty()) answer.error = "the stream ended early";
  if (answer.completion_tokens == 0) answer.completion_tokens = static_cast<int64_t>(answer.chunks.size());
  return answer;
}

Result<std::string> get_body(const ServerAddress& server, std::string_view path, std::string_view api_key) {
  Connection connection;
  if (Status status = connection.open(server, milliseconds(10'000)); !status.ok()) return status;
  if (!connection.send(request_head("GET", path, server, api_key) + "\r\n"))
    return Status(StatusCode::kUnavailable, "the request could not be sent");
  const int status = read_head(connection);
  std::string body = connection.read_rest();
  if (status != 200)
    return Status(StatusCode::kUnavailable, std::string(path) + ": status " + std::to_string(status));
  // A chunked body: what lies between the first brace and the last.
  const size_t begin = body.find('{'), end = body.rfind('}');
  if (begin == std::string::npos || end == std::string::npos || end < begin)
    return Status(StatusCode::kUnavailable, std::string(path) + ": no JSON object");
  return body.substr(begin, end - begin + 1);
}

}  // namespace restkv

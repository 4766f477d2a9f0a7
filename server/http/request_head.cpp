// Strict checks of header lines, then Beast. The only translation unit that includes Beast.
#include "server/http/request_head.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>

namespace restkv {
namespace {

namespace http = boost::beast::http;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_alnum(char c) { return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_token_char(char c) {
  return is_alnum(c) || std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
}
bool is_token(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), is_token_char);
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// host [":" port]: a name, an IPv4 address or "[IPv6]"; empty is allowed.
bool is_host(std::string_view host) {
  if (host.starts_with('[')) {
    const size_t close = host.find(']');
    if (close == std::string_view::npos) return false;
    const std::string_view address = host.substr(1, close - 1);
    if (address.find_first_not_of("0123456789abcdefABCDEF:.") != std::string_view::npos) return false;
    host.remove_prefix(close + 1);
    if (host.empty()) return true;
    if (host.front() != ':') return false;
  }
  const size_t colon = host.find(':');
  const std::string_view name = host.substr(0, colon);
  const bool is_name = std::all_of(name.begin(), name.end(),
                                   [](char c) { return is_alnum(c) || c == '-' || c == '.' || c == '_'; });
  if (!is_name || name.size() > 255) return false;
  if (colon == std::string_view::npos) return true;
  const std::string_view port = host.substr(colon + 1);
  return port.size() <= 5 && std::all_of(port.begin(), port.end(), is_digit);
}

std::optional<HttpFailure> check_request_line(std::string_view line) {
  const size_t first = line.find(' '), last = line.rfind(' ');
  if (first == std::string_view::npos || first == last) return HttpFailure{400, "malformed request line"};
  const std::string_view target = line.substr(first + 1, last - first - 1), version = line.substr(last + 1);
  if (!is_token(line.substr(0, first))) return HttpFailure{400, "malformed method"};
  if (target.empty() ||
      std::any_of(target.begin(), target.end(), [](char c) { return c <= ' ' || c > '~'; })) {
    return HttpFailure{400, "malformed request target"};
  }
  if (version.size() != 8 || !version.starts_with("HTTP/") || !is_digit(version[5]) || version[6] != '.' ||
      !is_digit(version[7])) {
    return HttpFailure{400, "malformed HTTP version"};
  }
  if (version != "HTTP/1.0" && version != "HTTP/1.1")
    return HttpFailure{505, "only HTTP/1.0 and HTTP/1.1 are spoken here"};
  return std::nullopt;
}

std::optional<HttpFailure> check_header_line(std::string_view line) {
  if (line.front() == ' ' || line.front() == '\t') return HttpFailure{400, "folded header lines are refused"};
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos || !is_token(line.substr(0, colon)))
    return HttpFailure{400, "malformed header name"};
  for (const char c : line.substr(colon + 1)) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte < 0x20 && c != '\t') || byte == 0x7F) return HttpFailure{400, "control character in a header"};
  }
  return std::nullopt;
}

std::optional<HttpFailure> read_framing(const RequestHead& head, RequestHead& out) {
  size_t lengths = 0, codings = 0, hosts = 0;
  std::string_view length, coding, host, expect, encoding;
  for (const auto& [name, value] : head.headers) {
    if (name == "content-length") ++lengths, length = value;
    if (name == "transfer-encoding") ++codings, coding = value;
    if (name == "host") ++hosts, host = value;
    if (name == "expect") expect = value;
    if (name == "content-encoding" && !value.empty() && lower(value) != "identity") encoding = value;
  }
  if (lengths > 1) return HttpFailure{400, "more than one Content-Length"};
  if (codings > 1) return HttpFailure{400, "more than one Transfer-Encoding"};
  if (lengths > 0 && codings > 0) return HttpFailure{400, "both Content-Length and Transfer-Encoding"};
  if (codings > 0) {
    if (head.version < 11) return HttpFailure{400, "Transfer-Encoding in HTTP/1.0"};
    if (lower(coding) != "chunked") return HttpFailure{400, "no transfer coding but chunked is taken"};
    out.is_chunked = true;
  }
  if (lengths > 0) {
    constexpr size_t kMaxDigits = 18;  // fits 64 bits
    if (length.empty() || !std::all_of(length.begin(), length.end(), is_digit))
      return HttpFailure{400, "malformed Content-Length"};
    if (length.size() > kMaxDigits) return HttpFailure{413, "the body is too large"};
    out.content_length = std::stoull(std::string(length));
  }
  if (hosts > 1) return HttpFailure{400, "more than one Host"};
  if (hosts == 0 && head.version >= 11) return HttpFailure{400, "Host is missing"};
  if (!is_host(host)) return HttpFailure{400, "malformed Host"};
  if (!encoding.empty())
    return HttpFailure{415, "Content-Encoding: bodies are taken uncompressed (identity)"};
  if (!expect.empty()) {
    if (lower(expect) != "100-continue") return HttpFailure{417, "no expectation but 100-continue is met"};
    out.expects_continue = head.version >= 11;
  }
  return std::nullopt;
}

// "/path?query", "http://host/path?query" or "*".
std::optional<HttpFailure> read_target(std::string_view target, RequestHead& head) {
  if (lower(target.substr(0, 7)) == "http://") {
    target.remove_prefix(7);
    const size_t slash = target.find('/');
    if (!is_host(target.substr(0, slash))) return HttpFailure{400, "malformed request target"};
    target = slash == std::string_view::npos ? "/" : target.substr(slash);
  }
  if (target.front() != '/' && target != "*") return HttpFailure{400, "malformed request target"};
  const size_t question = target.find('?');
  head.path = target.substr(0, question);
  if (question != std::string_view::npos) head.query = target.substr(question + 1);
  return std::nullopt;
}

}  // namespace

std::string_view RequestHead::header(std::string_view lower_case_name) const {
  for (const auto& [name, value] : headers) {
    if (name == lower_case_name) return value;
  }
  return {};
}

std::optional<HttpFailure> find_head_end(std::string_view in, const HttpLimits& limits, size_t& scanned,
                                         size_t& head_len) {
  head_len = 0;
  // A CR may be the last byte that was seen.
  for (size_t i = scanned > 0 ? scanned - 1 : 0; i < in.size(); ++i) {
    if (in[i] == '\n' && (i == 0 || in[i - 1] != '\r'))
      return HttpFailure{400, "a line ends in LF without CR"};
    if (in[i] == '\r' && i + 1 < in.size() && in[i + 1] != '\n') return HttpFailure{400, "CR without LF"};
    if (in[i] == '\n' && i >= 3 && in[i - 2] == '\n') {
      head_len = i + 1;
      break;
    }
  }
  scanned = in.size();
  const size_t first_line = in.substr(0, head_len > 0 ? head_len : in.size()).find('\r');
  if (first_line == std::string_view::npos) {
    if (in.size() > limits.request_line) return HttpFailure{414, "the request line is too long"};
    return std::nullopt;
  }
  if (first_line > limits.request_line) return HttpFailure{414, "the request line is too long"};
  // Header lines lie between the request line's CRLF and the empty line.
  const size_t begin = first_line + 2;
  const size_t size =
      head_len > 0 ? std::max(head_len - 2, begin) - begin : (in.size() > begin ? in.size() - begin : 0);
  if (size > limits.headers_size + (head_len > 0 ? 0 : 2))
    return HttpFailure{431, "the headers are too large"};
  return std::nullopt;
}

std::optional<HttpFailure> parse_head(std::string_view raw, const HttpLimits& limits, RequestHead& head) {
  size_t begin = 0, num_lines = 0;
  for (; begin + 2 < raw.size(); ++num_lines) {
    const size_t end = raw.find("\r\n", begin);
    const std::string_view line = raw.substr(begin, end - begin);
    if (num_lines > limits.headers) return HttpFailure{431, "too many headers"};
    if (auto bad = num_lines == 0 ? check_request_line(line) : check_header_line(line)) return bad;
    begin = end + 2;
  }

  http::request_parser<http::empty_body> parser;
  parser.header_limit(static_cast<uint32_t>(raw.size() + 1));
  parser.body_limit(boost::none);
  boost::system::error_code error;
  parser.put(boost::asio::buffer(raw.data(), raw.size()), error);
  if (error || !parser.is_header_done()) return HttpFailure{400, "malformed request head"};
  const auto& message = parser.get();
  head.method = message.method_string();
  head.version = static_cast<int>(message.version());
  head.keep_alive = message.keep_alive();
  for (const auto& field : message) {
    head.headers.emplace_back(lower({field.name_string().data(), field.name_string().size()}),
                              trim({field.value().data(), field.value().size()}));
  }
  if (auto bad = read_framing(head, head)) return bad;
  return read_target({message.target().data(), message.target().size()}, head);
}

}  // namespace restkv

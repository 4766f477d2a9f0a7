// Heads of requests: limits at the limit and one past, and what must be refused.
#include "server/http/request_head.h"

#include <gtest/gtest.h>

namespace restkv {
namespace {

// Status of reading `text` as a head: 0 taken, -1 not complete.
int status_of(const std::string& text, RequestHead* out = nullptr) {
  const HttpLimits limits;
  // In one piece and byte by byte the result is the same.
  int results[2];
  for (const size_t piece : {text.size(), size_t{1}}) {
    size_t scanned = 0, head_len = 0;
    std::optional<HttpFailure> bad;
    std::string seen;
    for (size_t at = 0; at < text.size() && !bad && head_len == 0; at += piece) {
      seen += text.substr(at, piece);
      bad = find_head_end(seen, limits, scanned, head_len);
    }
    RequestHead head;
    if (!bad && head_len > 0) bad = parse_head(std::string_view(seen).substr(0, head_len), limits, head);
    results[piece == 1] = bad ? bad->status : head_len > 0 ? 0 : -1;
    if (out) *out = head;
  }
  if (text.size() > 1) {
    EXPECT_EQ(results[0], results[1]) << text.substr(0, 200);
  }
  return results[1];
}

std::string get(const std::string& headers) { return "GET / HTTP/1.1\r\nHost: a\r\n" + headers + "\r\n"; }

TEST(RequestHead, ReadsWhatItMeans) {
  RequestHead head;
  ASSERT_EQ(
      status_of(
          "POST /v1/x?a=b HTTP/1.1\r\nHost: localhost:8000\r\nContent-Length: 12\r\nX-Request-ID:  abc \r\n"
          "Expect: 100-continue\r\n\r\n",
          &head),
      0);
  EXPECT_EQ(head.method, "POST");
  EXPECT_EQ(head.path, "/v1/x");
  EXPECT_EQ(head.query, "a=b");
  EXPECT_EQ(head.content_length, 12u);
  EXPECT_EQ(head.header("x-request-id"), "abc");
  EXPECT_TRUE(head.expects_continue);
  EXPECT_TRUE(head.keep_alive);
  ASSERT_EQ(status_of("GET http://a:1/b HTTP/1.0\r\n\r\n", &head), 0);
  EXPECT_EQ(head.path, "/b");
  EXPECT_FALSE(head.keep_alive);
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\nHost: a\r\n"), -1);
}

TEST(RequestHead, RequestLineLimit) {
  const size_t frame = std::string("GET  HTTP/1.1").size();
  EXPECT_EQ(status_of("GET /" + std::string(8192 - frame - 1, 'a') + " HTTP/1.1\r\nHost: a\r\n\r\n"), 0);
  EXPECT_EQ(status_of("GET /" + std::string(8192 - frame, 'a') + " HTTP/1.1\r\nHost: a\r\n\r\n"), 414);
  EXPECT_EQ(status_of(std::string(8193, 'a')), 414);
}

TEST(RequestHead, HeaderLimits) {
  std::string many = "GET / HTTP/1.1\r\nHost: a\r\n";
  for (int i = 0; i < 99; ++i) many += "A: b\r\n";
  EXPECT_EQ(status_of(many + "\r\n"), 0);
  EXPECT_EQ(status_of(many + "A: b\r\n\r\n"), 431);
  const size_t frame = std::string("Host: a\r\nA: \r\n").size();
  EXPECT_EQ(status_of(get("A: " + std::string(16384 - frame, 'x') + "\r\n")), 0);
  EXPECT_EQ(status_of(get("A: " + std::string(16384 - frame + 1, 'x') + "\r\n")), 431);
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\nHost: a\r\nA: " + std::string(20000, 'x')), 431);
}

TEST(RequestHead, Framing) {
  EXPECT_EQ(status_of(get("Content-Length: 1\r\nContent-Length: 1\r\n")), 400);
  EXPECT_EQ(status_of(get("Content-Length: 1, 1\r\n")), 400);
  EXPECT_EQ(status_of(get("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n")), 400);
  EXPECT_EQ(status_of(get("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n")), 400);
  EXPECT_EQ(status_of(get("Transfer-Encoding: gzip, chunked\r\n")), 400);
  EXPECT_EQ(status_of(get("Transfer-Encoding: chunked\r\n")), 0);
  EXPECT_EQ(status_of("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
  for (const char* length : {"-1", "+1", "0x1", "1 1", "", "1e3"}) {
    EXPECT_EQ(status_of(get(std::string("Content-Length: ") + length + "\r\n")), 400) << length;
  }
  EXPECT_EQ(status_of(get("Content-Length: 9999999999999999999\r\n")), 413);
  for (const char* encoding : {"gzip", "deflate", "br", "identity, gzip"}) {
    EXPECT_EQ(status_of(get(std::string("Content-Encoding: ") + encoding + "\r\n")), 415) << encoding;
  }
  EXPECT_EQ(status_of(get("Content-Encoding: Identity\r\n")), 0);
  EXPECT_EQ(status_of(get("Content-Encoding: gzip\r\nContent-Encoding: identity\r\n")), 415);
}

TEST(RequestHead, Lines) {
  EXPECT_EQ(status_of("GET / HTTP/1.1\nHost: a\n\n"), 400);
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\nHost: a\n\r\n"), 400);
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n"), 400);
  EXPECT_EQ(status_of(get("A: b\r\n c\r\n")), 400);
  EXPECT_EQ(status_of(get("A : b\r\n")), 400);
  EXPECT_EQ(status_of(get(": b\r\n")), 400);
  EXPECT_EQ(status_of(get("no colon\r\n")), 400);
  EXPECT_EQ(status_of(get(std::string("A: b\0c\r\n", 8))), 400);
  EXPECT_EQ(status_of("GET  / HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
  EXPECT_EQ(status_of("GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
  EXPECT_EQ(status_of("GET x HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
  EXPECT_EQ(status_of("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), 505);
  EXPECT_EQ(status_of("GET / FTP/1.1\r\nHost: a\r\n\r\n"), 400);
  EXPECT_EQ(status_of("G@T / HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
  EXPECT_EQ(status_of("\x16\x03\x01\x02\n"), 400);
}

TEST(RequestHead, Hosts) {
  const auto host = [](const std::string& value) {
    return status_of("GET / HTTP/1.1\r\nHost: " + value + "\r\n\r\n");
  };
  for (const char* good : {"a", "a.b:80", "127.0.0.1:8000", "[::1]", "[::1]:8000", ""})
    EXPECT_EQ(host(good), 0) << good;
  for (const char* bad : {"a/v1/x?", "a b", "a@b", "a:b", "a:123456", "[::1", "[g]", "a,b", "a:1:2"}) {
    EXPECT_EQ(host(bad), 400) << bad;
  }
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\n\r\n"), 400);
  EXPECT_EQ(status_of(get("Host: b\r\n")), 400);
  EXPECT_EQ(status_of("GET / HTTP/1.0\r\n\r\n"), 0);
  EXPECT_EQ(status_of(get("Expect: cake\r\n")), 417);
}

}  // namespace
}  // namespace restkv

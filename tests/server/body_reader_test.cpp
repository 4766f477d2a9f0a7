// Bodies: lengths and chunks, whole and byte by byte.
#include "server/http/body_reader.h"

#include <gtest/gtest.h>

namespace restkv {
namespace {

struct Outcome {
  int status = 0;  // 0: no failure
  bool is_done = false;
  std::string body, rest;
};

Outcome read(const RequestHead& head, const std::string& wire, const HttpLimits& limits, size_t piece) {
  BodyReader reader;
  Outcome outcome;
  std::string in;
  std::optional<HttpFailure> bad = reader.start(head, limits);
  for (size_t at = 0; at < wire.size() && !bad; at += piece) {
    in += wire.substr(at, piece);
    bad = reader.feed(in);
  }
  outcome.status = bad ? bad->status : 0;
  outcome.is_done = reader.is_done();
  outcome.body = reader.body();
  outcome.rest = in;
  return outcome;
}

Outcome chunked(const std::string& wire, const HttpLimits& limits = {}) {
  RequestHead head;
  head.is_chunked = true;
  const Outcome whole = read(head, wire, limits, std::max<size_t>(1, wire.size()));
  if (wire.size() < 1000) {
    const Outcome bytes = read(head, wire, limits, 1);
    EXPECT_EQ(whole.status, bytes.status) << wire;
    EXPECT_EQ(whole.is_done, bytes.is_done) << wire;
    EXPECT_TRUE(whole.status != 0 || whole.body == bytes.body) << wire;
  }
  return whole;
}

TEST(BodyReader, Length) {
  RequestHead head;
  head.content_length = 5;
  for (const size_t piece : {1u, 3u, 100u}) {
    const Outcome outcome = read(head, "hellonext", {}, piece);
    EXPECT_TRUE(outcome.is_done);
    EXPECT_EQ(outcome.body, "hello");
    EXPECT_EQ(outcome.rest, "next");
  }
  HttpLimits limits;
  limits.body = 4;
  EXPECT_EQ(read(head, "hello", limits, 5).status, 413);
  limits.body = 5;
  EXPECT_EQ(read(head, "hello", limits, 5).status, 0);
}

TEST(BodyReader, Chunks) {
  EXPECT_EQ(chunked("5\r\nhello\r\n6;name=\"v\"\r\n world\r\n0\r\n\r\n").body, "hello world");
  EXPECT_TRUE(chunked("0\r\n\r\n").is_done);
  EXPECT_TRUE(chunked("1\r\nx\r\n0\r\nTrailer: yes\r\n\r\n").is_done);
  EXPECT_FALSE(chunked("1\r\nx\r\n0\r\n").is_done);
  EXPECT_EQ(chunked("A\r\n0123456789\r\n0\r\n\r\nGET").rest, "GET");
  for (const char* bad : {"-2\r\nxx\r\n", "\r\n", "g\r\n", "0x1\r\nx\r\n", "1\nx\n", "1\r\nxy\r\n0\r\n\r\n",
                          "1 \r\nx\r\n", "1\r\nx\n0\r\n\r\n", "+1\r\nx\r\n", "0\r\nT: a\n\r\n"}) {
    EXPECT_EQ(chunked(bad).status, 400) << bad;
  }
  EXPECT_EQ(chunked("ffffffffffffffff\r\n").status, 413);
  EXPECT_EQ(chunked("fffffffffffffff\r\n").status, 413);
  EXPECT_EQ(chunked("1;" + std::string(300, 'x')).status, 400);
  EXPECT_EQ(chunked("0\r\nA: " + std::string(17000, 'x') + "\r\n\r\n").status, 400);
}

TEST(BodyReader, ChunkLimits) {
  HttpLimits limits;
  limits.body = 10;
  EXPECT_EQ(chunked("5\r\nhello\r\n5\r\nhello\r\n0\r\n\r\n", limits).status, 0);
  EXPECT_EQ(chunked("5\r\nhello\r\n6\r\nhello!\r\n0\r\n\r\n", limits).status, 413);
  std::string many;
  for (int i = 0; i < 65'536; ++i) many += "1\r\nx\r\n";
  EXPECT_EQ(chunked(many + "0\r\n\r\n").status, 0);
  EXPECT_EQ(chunked(many + "1\r\nx\r\n0\r\n\r\n").status, 413);
}

}  // namespace
}  // namespace restkv

// Any bytes as requests on one connection: head, body, next request; in one piece and in small ones the result is the same.
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/base/check.h"
#include "server/http/body_reader.h"
#include "server/http/request_head.h"

namespace {

using namespace restkv;

// What was read, as text; reading stops at the first failure.
std::string read_requests(std::string_view bytes, size_t piece) {
  HttpLimits limits;
  limits.body = 4096;
  limits.chunks = 64;
  std::string in, seen;
  size_t scanned = 0;
  bool is_in_body = false;
  BodyReader body;
  for (size_t at = 0; at < bytes.size(); at += piece) {
    in += bytes.substr(at, piece);
    for (bool is_moving = true; is_moving;) {
      is_moving = false;
      if (!is_in_body) {
        size_t head_len = 0;
        RequestHead head;
        std::optional<HttpFailure> bad = find_head_end(in, limits, scanned, head_len);
        if (!bad && head_len == 0) break;
        if (!bad) bad = parse_head(std::string_view(in).substr(0, head_len), limits, head);
        if (!bad) bad = body.start(head, limits);
        if (bad) return seen + std::to_string(bad->status);
        CHECK(!head.method.empty() && !head.path.empty()) << "a head has both";
        seen += head.method + head.path;
        in.erase(0, head_len);
        scanned = 0;
        is_in_body = true;
      }
      if (std::optional<HttpFailure> bad = body.feed(in)) return seen + std::to_string(bad->status);
      CHECK(body.body().size() <= limits.body) << body.body().size();
      if (!body.is_done()) break;
      seen += body.body();
      is_in_body = false;
      is_moving = !in.empty();
    }
  }
  return seen;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::string whole = read_requests(bytes, std::max<size_t>(1, size));
  CHECK(read_requests(bytes, 1) == whole) << "byte by byte";
  CHECK(read_requests(bytes, 7) == whole) << "in sevens";
  return 0;
}

// How many answers went out, by protocol, path and code: what was refused before it became a sequence shows here alone.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace restkv {

class ResponseCounts {
 public:
  enum class Protocol : uint8_t { kHttp, kGrpc };
  struct Row {
    std::string_view protocol, path;
    std::string code;  // "200", "RESOURCE_EXHAUSTED"
    int64_t count = 0;
  };

  ResponseCounts();  // with zeros of what alerts ask for, so that the first refusal is a rise
  // `path`: of a route or method table, which outlives this; so there are never more rows than those have.
  void count(Protocol protocol, std::string_view path, int code);
  std::vector<Row> rows() const;

 private:
  struct Key {
    Protocol protocol;
    std::string_view path;
    int code;
    auto operator<=>(const Key&) const = default;
  };
  mutable std::mutex mutex_;
  std::map<Key, int64_t> counts_;
};

}  // namespace restkv

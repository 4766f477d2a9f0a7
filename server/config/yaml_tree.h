// YAML text to a small tree of maps, lists and scalars with their places. A strict subset for configuration:
// one document, no anchors, aliases, tags or merge keys, no duplicate keys, scalar keys, bounded size, line
// length, depth and node count, so that a hostile file costs at most a few milliseconds.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace restkv {

struct YamlPlace {
  int line = 1, column = 1;  // 1-based
};

struct YamlNode {
  enum class Kind : uint8_t { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  YamlPlace place;
  std::string text;                                     // kScalar
  std::vector<YamlNode> items;                          // kList: the items; kMap: the values
  std::vector<std::pair<std::string, YamlPlace>> keys;  // kMap, [items.size()]
};

struct YamlError {
  YamlPlace place;
  std::string message;
};

inline constexpr size_t kMaxYamlBytes = 1 << 20;
inline constexpr size_t kMaxYamlLine = 8192;  // bytes; bounds what the scanner reads ahead
inline constexpr size_t kMaxYamlDepth = 16;   // maps and lists inside one another
inline constexpr size_t kMaxYamlNodes = 20'000;

// What could be read, and all errors found; reading stops at the first one of syntax.
YamlNode parse_yaml(std::string_view text, std::vector<YamlError>& errors);

}  // namespace restkv

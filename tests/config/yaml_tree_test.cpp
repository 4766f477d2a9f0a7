// The strict YAML subset: what is refused, where, and that hostile files cost little time (attack 13 of
// reliability.md).
#include "server/config/yaml_tree.h"

#include <chrono>
#include <functional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace restkv {
namespace {

using testing::HasSubstr;

// "line:column: message" of every error.
std::vector<std::string> errors_of(const std::string& text) {
  std::vector<YamlError> errors;
  parse_yaml(text, errors);
  std::vector<std::string> lines;
  for (const YamlError& error : errors) {
    lines.push_back(std::to_string(error.place.line) + ":" + std::to_string(error.place.column) + ": " +
                    error.message);
  }
  return lines;
}

TEST(YamlTree, KeepsPlacesAndText) {
  std::vector<YamlError> errors;
  const YamlNode root =
      parse_yaml("version: 1\nserver:\n  port: 80  # why\n  host: \"a: b\"\nlist: [x, ~]\n", errors);
  ASSERT_TRUE(errors.empty()) << errors[0].message;
  ASSERT_EQ(root.items.size(), 3u);
  EXPECT_EQ(root.keys[1].first, "server");
  const YamlNode& server = root.items[1];
  EXPECT_EQ(server.keys[0].first, "port");
  EXPECT_EQ(server.keys[0].second.line, 3);
  EXPECT_EQ(server.keys[0].second.column, 3);
  EXPECT_EQ(server.items[0].text, "80");
  EXPECT_EQ(server.items[0].place.column, 9);
  EXPECT_EQ(server.items[1].text, "a: b");
  EXPECT_EQ(root.items[2].kind, YamlNode::Kind::kList);
  EXPECT_EQ(root.items[2].items[1].kind, YamlNode::Kind::kNull);
}

TEST(YamlTree, RefusesWhatConfigurationsDoNotNeed) {
  using testing::ElementsAre;
  EXPECT_THAT(errors_of("a: 1\nb: 2\na: 3\n"), ElementsAre("3:1: duplicate key 'a' (first in line 1)"));
  EXPECT_THAT(errors_of("a: &x 1\nb: *x\n"),
              ElementsAre("1:4: anchors (&name) are not allowed; write the value out where it is needed"));
  EXPECT_THAT(errors_of("a: !!int 1\n"), ElementsAre("1:4: tags (!name) are not allowed"));
  EXPECT_THAT(errors_of("a: {<<: {b: 1}}\n"), ElementsAre("1:5: merge keys (<<) are not allowed"));
  EXPECT_THAT(errors_of("a: 1\n---\nb: 2\n"),
              ElementsAre("2:1: a second document; one file is one document"));
  EXPECT_THAT(errors_of("[a]: 1\n"), ElementsAre("1:1: a key must be a plain word"));
  EXPECT_THAT(errors_of(std::string("a: \0 1\n", 7)),
              ElementsAre("1:4: a byte that is not text (0x00); the file must be UTF-8"));
  EXPECT_THAT(errors_of("\xff\xfe"
                        "a\n"),
              ElementsAre(HasSubstr("1:1: a byte that is not text (0xff)")));
  EXPECT_THAT(errors_of("a: '1\n"), ElementsAre(HasSubstr("illegal EOF in scalar")));
  EXPECT_THAT(errors_of("a: 1\n b: 2\n"), ElementsAre(HasSubstr("2:")));
}

TEST(YamlTree, LimitsAreTested) {
  const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_TRUE(errors_of(nested(kMaxYamlDepth)).empty());
  EXPECT_THAT(errors_of(nested(kMaxYamlDepth + 1)), testing::ElementsAre(HasSubstr("16 levels of nesting")));

  const auto line = [](size_t bytes) { return "a: " + std::string(bytes - 3, 'x') + "\n"; };
  EXPECT_TRUE(errors_of(line(kMaxYamlLine)).empty());
  EXPECT_THAT(errors_of(line(kMaxYamlLine + 1)), testing::ElementsAre(HasSubstr("longer than 8192 bytes")));

  const auto comment = [](size_t bytes) {
    std::string text;
    while (text.size() + 80 <= bytes) text += "#" + std::string(78, '-') + "\n";
    return text + std::string(bytes - text.size(), '\n');
  };
  EXPECT_TRUE(errors_of(comment(kMaxYamlBytes)).empty());
  EXPECT_THAT(errors_of(comment(kMaxYamlBytes + 1)),
              testing::ElementsAre("1:1: the file is larger than 1 MiB"));
}

// Each of these makes some YAML parser overflow its stack, eat memory or run for minutes.
TEST(YamlTree, HostileFilesEndSoonWithAnError) {
  const auto repeated = [](const std::string& unit, size_t count) {
    std::string text;
    for (size_t i = 0; i < count; ++i) text += unit;
    return text;
  };
  std::string alias_bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n";
  for (char c = 'b'; c <= 'i'; ++c) {
    const std::string last = "*" + std::string(1, static_cast<char>(c - 1));
    alias_bomb += std::string(1, c) + ": &" + c + " [" + repeated(last + ",", 8) + last + "]\n";
  }
  std::string deep_map;
  for (size_t i = 0; i < 1000; ++i) deep_map += std::string(i, ' ') + "a:\n";
  const std::string cases[] = {
      alias_bomb,
      "a: &a [*a]\n",
      deep_map,
      repeated("[", 10'000),
      repeated("[\n", 10'000),
      repeated("{a: ", 10'000),
      repeated("{a:\n", 10'000),
      repeated("- ", 4000),
      repeated("? ", 4000),
      repeated("[{", 4000),
      repeated("? - ", 2000),
      repeated("[", 500'000),
      repeated("- - - - - - - - -\n", 20'000),
      repeated("x: [1, 2\n", 50'000),
      "a: " + repeated("&x ", 2000) + "1\n",
      "a: " + repeated("!x ", 2000) + "1\n",
      repeated("%TAG ! tag:x,2000:\n", 20'000),
      "a: |99999999999\n  x\n",
      repeated("---\n", 100'000),
      repeated("k: v\n", 200'000),
      repeated("- x\n", 200'000),
      repeated("'", 8001) + "\n",
  };
  for (const std::string& text : cases) {
    const auto start = std::chrono::steady_clock::now();
    EXPECT_FALSE(errors_of(text).empty()) << text.substr(0, 40);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    EXPECT_LT(seconds.count(), 1.0) << text.substr(0, 40);
  }
}

}  // namespace
}  // namespace restkv

// Key files: both formats, every limit, and that no error shows a key.
#include "server/access/key_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace restkv {
namespace {

using testing::HasSubstr;

struct Parsed {
  std::vector<ApiKey> keys;
  std::vector<std::string> errors;
};

Parsed parse(const std::string& text) {
  Parsed parsed;
  parsed.keys = parse_keys(text, "keys.yaml", parsed.errors);
  return parsed;
}

TEST(KeyFile, Yaml) {
  const Parsed parsed = parse(
      "version: 1\n"
      "keys:\n"
      "  - name: alice\n"
      "    key: sk-alice-1234\n"
      "    requests_per_minute: 60\n"
      "    tokens_per_minute: 100k\n"
      "    max_concurrent: 4\n"
      "    priority: -3\n"
      "    profile: small\n"
      "  - name: bob\n"
      "    sha256: 9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08\n");
  ASSERT_THAT(parsed.errors, testing::IsEmpty());
  ASSERT_EQ(parsed.keys.size(), 2u);
  EXPECT_EQ(parsed.keys[0].name, "alice");
  EXPECT_EQ(parsed.keys[0].hash, hash_of_key("sk-alice-1234"));
  EXPECT_EQ(parsed.keys[0].requests_per_minute, 60);
  EXPECT_EQ(parsed.keys[0].tokens_per_minute, 100'000);
  EXPECT_EQ(parsed.keys[0].max_concurrent, 4);
  EXPECT_EQ(parsed.keys[0].priority, -3);
  EXPECT_EQ(parsed.keys[0].profile, "small");
  EXPECT_EQ(parsed.keys[1].hash, hash_of_key("test"));  // the published digest of "test"
  EXPECT_FALSE(parsed.keys[1].priority.has_value());
}

TEST(KeyFile, Lines) {
  const Parsed parsed = parse("# the team\nsk-aaaaaaaa\n\n  sk-bbbbbbbb \r\nsk-cccccccc,sk-dddddddd");
  ASSERT_THAT(parsed.errors, testing::IsEmpty());
  ASSERT_EQ(parsed.keys.size(), 4u);
  EXPECT_EQ(parsed.keys[3].name, "key4");
  EXPECT_EQ(parsed.keys[1].hash, hash_of_key("sk-bbbbbbbb"));
}

TEST(KeyFile, ErrorsHavePlacesAndNeverAKey) {
  const struct {
    std::string text, error;
  } rows[] = {
      {"", "keys.yaml: no API key in it"},
      {"# nothing\n", "no API key in it"},
      {"keys: []\n", "no API key in it"},
      {"short77\n", "keys.yaml:1:1: a key must have 8 to 512 characters, not 7"},
      {"sk-good-one\nsk secret words\n", "keys.yaml:2:1: a key must be visible ASCII"},
      {"sk-secret-1\nsk-secret-1\n", "the same API key is there twice"},
      {"keys:\n  - name: a\n    key: sk-secret-1\n  - name: a\n    key: sk-secret-2\n",
       "the name 'a' is there twice"},
      {"keys:\n  - key: sk-secret-1\n", "needs a name"},
      {"keys:\n  - name: a\n", "needs 'key' or 'sha256'"},
      {"keys:\n  - name: a\n    sha256: sk-secret-1\n", "expected 64 hexadecimal digits"},
      {"keys:\n  - name: a\n    key: sk-secret-1\n    sha256: 00\n", "either 'key' or 'sha256'"},
      {"keys:\n  - name: a\n    key: sk-secret-1\n    request_per_minute: 1\n",
       "did you mean 'requests_per_minute'"},
      {"keys:\n  - name: a\n    key: sk-secret-1\n    requests_per_minute: -1\n",
       "keys.yaml:4:26: requests_per_minute"},
      {"keys:\n  - name: a b\n    key: sk-secret-1\n", "name: 1 to 64 letters"},
      {"keys:\n  - sk-secret-1\n", "expected name, key and limits"},
      {"keys: sk-secret-1\n", "expected a list"},
      {"keys:\n  - name: [sk-secret-1\n", "is no YAML"},
      {"version: 2\nkeys:\n  - name: a\n    key: sk-secret-1\n", "only 1 is known"},
      {"keyes:\n", "a key must have"},
  };
  for (const auto& row : rows) {
    const Parsed parsed = parse(row.text);
    ASSERT_FALSE(parsed.errors.empty()) << row.text;
    EXPECT_THAT(parsed.errors, testing::Contains(HasSubstr(row.error))) << row.text;
    for (const std::string& error : parsed.errors)
      EXPECT_EQ(error.find("secret"), std::string::npos) << error;
  }
}

TEST(KeyFile, TooManyKeys) {
  std::string text;
  for (size_t i = 0; i <= kMaxKeys; ++i) text += "sk-key-number-" + std::to_string(i) + "\n";
  EXPECT_THAT(parse(text).errors, testing::Contains(HasSubstr("more than 2000 API keys")));
}

}  // namespace
}  // namespace restkv

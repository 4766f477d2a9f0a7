// The strict JSON reader: what it takes, and everything that it must refuse.
#include "engine/model/json_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

namespace restkv {
namespace {

using ::testing::HasSubstr;

std::string problem(std::string_view text, const JsonLimits& limits = {}) {
  const Result<nlohmann::json> result = parse_json(text, limits);
  return result.ok() ? "accepted" : result.status().message();
}

TEST(JsonReader, ReadsValuesAsNlohmannDoes) {
  for (const std::string text :
       {R"({"a":[1,-2,3.5,true,false,null,"x\u00e9\ud83d\ude00"],"b":{"c":{},"d":[]}})", "[]", "{}", "1",
        "\"s\"", " [ 1 , 2 ] ", "18446744073709551615", "[[1],[2,[3]],{\"a\":[{}]}]"}) {
    const Result<nlohmann::json> result = parse_json(text);
    ASSERT_TRUE(result.ok()) << text << ": " << result.status().message();
    EXPECT_EQ(*result, nlohmann::json::parse(text)) << text;
  }
}

TEST(JsonReader, DepthIsLimitedAlsoInIgnoredFields) {
  const auto nested = [](int depth) {
    return std::string(static_cast<size_t>(depth), '[') + std::string(static_cast<size_t>(depth), ']');
  };
  EXPECT_TRUE(parse_json(nested(64)).ok());
  EXPECT_THAT(problem(nested(65)), HasSubstr("deeper than 64"));
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THAT(problem("{\"ignored\":" + nested(100'000) + "}"), HasSubstr("deeper than 64"));
  EXPECT_THAT(problem(std::string(100'000, '[')), HasSubstr("deeper than 64"));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(1));
}

TEST(JsonReader, KeysAreCountedOverAllObjects) {
  const JsonLimits limits = {.max_depth = 8, .max_keys = 4};
  EXPECT_TRUE(parse_json(R"([{"a":1,"b":2},{"c":3,"d":4}])", limits).ok());
  EXPECT_THAT(problem(R"([{"a":1,"b":2},{"c":3,"d":4,"e":5}])", limits), HasSubstr("more than 4 keys"));
}

TEST(JsonReader, DuplicateKeysAreRefusedPerObject) {
  EXPECT_THAT(problem(R"({"a":1,"b":2,"a":3})"), HasSubstr("same key twice"));
  EXPECT_THAT(problem(R"({"x":{"a":1,"\u0061":2}})"), HasSubstr("same key twice"));
  EXPECT_TRUE(parse_json(R"({"a":{"a":1},"b":{"a":1}})").ok());
}

TEST(JsonReader, NulIsRefusedEverywhere) {
  EXPECT_THAT(problem(std::string_view("{}\0x", 4)), HasSubstr("NUL"));
  EXPECT_THAT(problem(std::string_view("123\0", 4)), HasSubstr("NUL"));
  EXPECT_THAT(problem(std::string_view("\"a\0b\"", 5)), HasSubstr("NUL"));
  EXPECT_THAT(problem(R"("a\u0000b")"), HasSubstr("NUL"));
  EXPECT_THAT(problem(R"({"a\u0000b":1})"), HasSubstr("NUL"));
}

TEST(JsonReader, SyntaxErrorsAreRefusedWithTheirPlace) {
  EXPECT_THAT(problem("{}x"), HasSubstr("syntax error at line 1, column 3"));
  EXPECT_THAT(problem("{\n \"a\": 1,\n \"b\" 2}"), HasSubstr("line 3, column 6"));
  for (const char* text :
       {"", "{", "[1,]", "{\"a\":1,}", "{} {}", "nul", "'a'", "[1 2]", "\"\x01\"", "01", "NaN", R"("\ud800")",
        R"("\udc00")", R"("\ud800\u0041")", "\"\xff\"", "\"\xc3\"", "// c\n1"}) {
    EXPECT_THAT(problem(text), HasSubstr("invalid JSON")) << text;
  }
}

TEST(JsonReader, NumbersOutOfRangeAreRefused) {
  EXPECT_THAT(problem("1e999"), HasSubstr("number out of range"));
  EXPECT_THAT(problem("[-1e999]"), HasSubstr("number out of range"));
  EXPECT_TRUE(parse_json("1e-999").ok());  // zero
}

TEST(JsonReader, ErrorsDoNotQuoteTheText) {
  EXPECT_THAT(problem(R"({"secret_prompt": tru})"), ::testing::Not(HasSubstr("secret")));
  EXPECT_THAT(problem(R"({"secret":1,"secret":2})"), ::testing::Not(HasSubstr("secret")));
}

}  // namespace
}  // namespace restkv

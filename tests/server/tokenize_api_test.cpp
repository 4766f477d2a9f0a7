// Both shapes of /tokenize and /detokenize.
#include "server/openai/tokenize_api.h"

#include <gtest/gtest.h>

#include "tests/server/fake_engine.h"

namespace restkv {
namespace {

using nlohmann::json;

const ByteTokenizer kTokenizer;

json tokenize(const char* request) {
  return json::parse(*tokenize_body(json::parse(request), kTokenizer, 99, "m", {}));
}

TEST(TokenizeApi, VllmShape) {
  const json answer = tokenize(R"({"prompt":"ab","return_token_strs":true})");
  EXPECT_EQ(answer["tokens"], json({256, 'a', 'b'}));
  EXPECT_EQ(answer["count"], 3);
  EXPECT_EQ(answer["max_model_len"], 99);
  EXPECT_EQ(answer["token_strs"], json({"<s>", "a", "b"}));
}

TEST(TokenizeApi, LlamaCppShape) {
  EXPECT_EQ(tokenize(R"({"content":"ab"})")["tokens"], json({'a', 'b'}));
  EXPECT_EQ(tokenize(R"({"content":"a","add_special":true})")["tokens"], json({256, 'a'}));
  const json pieces = tokenize(R"({"content":"é","with_pieces":true})")["tokens"];
  EXPECT_EQ(pieces[0], json::parse(R"({"id":195,"piece":[195]})"));
  EXPECT_EQ(tokenize(R"({"content":"a","with_pieces":true})")["tokens"][0]["piece"], "a");
}

TEST(TokenizeApi, Detokenize) {
  const json answer =
      json::parse(*detokenize_body(json::parse(R"({"tokens":[104,105]})"), kTokenizer, "m", {}));
  EXPECT_EQ(answer["prompt"], "hi");
  EXPECT_EQ(answer["content"], "hi");
}

TEST(TokenizeApi, Errors) {
  const auto param = [](const char* request) {
    return tokenize_body(json::parse(request), kTokenizer, 99, "m", {}).status().param();
  };
  EXPECT_EQ(param("{}"), "prompt");
  EXPECT_EQ(param(R"({"prompt":["a"]})"), "prompt");
  EXPECT_EQ(param(R"({"prompt":"a","model":"x"})"), "model");
  EXPECT_EQ(param(R"({"messages":[{"role":"user","content":"a"}]})"), "messages");
  const auto status = detokenize_body(json::parse(R"({"tokens":[1,258]})"), kTokenizer, "m", {}).status();
  EXPECT_EQ(status.param(), "tokens[1]");
  EXPECT_EQ(detokenize_body(json::parse("{}"), kTokenizer, "m", {}).status().param(), "tokens");
}

}  // namespace
}  // namespace restkv

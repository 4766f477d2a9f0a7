// Both shapes of /tokenize and /detokenize.
#include "server/openai/tokenize_api.h"

#include <gtest/gtest.h>

#include "tests/server/fake_engine.h"

namespace restkv {
namespace {

using json = RequestJson;

const ByteTokenizer kTokenizer;

const ChatFormat kFormat("a test",
                         {{"default",
                           "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
                           "{% if add_generation_prompt %}>{% endif %}"}},
                         "<s>", "</s>");
const TokenizeContext kContext{
    .tokenizer = &kTokenizer, .served_name = "m", .max_model_len = 99, .chat_format = &kFormat};

json tokenize(const char* request) { return json::parse(*tokenize_body(json::parse(request), kContext)); }

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
  const json answer = json::parse(*detokenize_body(json::parse(R"({"tokens":[104,105]})"), kContext));
  EXPECT_EQ(answer["prompt"], "hi");
  EXPECT_EQ(answer["content"], "hi");
}

TEST(TokenizeApi, Messages) {
  const json answer = tokenize(R"({"messages":[{"role":"user","content":"a"}]})");
  EXPECT_EQ(answer["tokens"], json({256, '[', 'a', ']', '>'}));
  EXPECT_EQ(answer["count"], 5);
  EXPECT_EQ(tokenize(R"({"messages":[{"role":"user","content":"a"}],"add_special_tokens":true})")["count"], 5)
      << "no second BOS";
  EXPECT_EQ(
      tokenize(R"({"messages":[{"role":"user","content":"a"}],"add_generation_prompt":false})")["count"], 4);
}

TEST(TokenizeApi, ApplyTemplate) {
  const auto apply = [](const char* request) { return apply_template_body(json::parse(request), kContext); };
  EXPECT_EQ(json::parse(*apply(R"({"messages":[{"role":"user","content":"a"}]})"))["prompt"], "<s>[a]>");
  EXPECT_EQ(
      json::parse(*apply(
          R"({"messages":[{"role":"assistant","content":"a"}],"continue_final_message":true})"))["prompt"],
      "<s>[a");
  EXPECT_EQ(apply("{}").status().param(), "messages");
  TokenizeContext without = kContext;
  without.chat_format = nullptr;
  const Status status =
      apply_template_body(json::parse(R"({"messages":[{"role":"user","content":"a"}]})"), without).status();
  EXPECT_EQ(status.reason(), "no_chat_template");
}

TEST(TokenizeApi, Errors) {
  const auto param = [](const char* request) {
    return tokenize_body(json::parse(request), kContext).status().param();
  };
  EXPECT_EQ(param("{}"), "prompt");
  EXPECT_EQ(param(R"({"prompt":["a"]})"), "prompt");
  EXPECT_EQ(param(R"({"prompt":"a","model":"x"})"), "model");
  EXPECT_EQ(param(R"({"messages":[{"role":"user","content":"a"}],"prompt":"a"})"), "messages");
  EXPECT_EQ(param(R"({"messages":[{"role":"user"}]})"), "messages[0].content");
  const auto status = detokenize_body(json::parse(R"({"tokens":[1,258]})"), kContext).status();
  EXPECT_EQ(status.param(), "tokens[1]");
  EXPECT_EQ(detokenize_body(json::parse("{}"), kContext).status().param(), "tokens");
}

}  // namespace
}  // namespace restkv

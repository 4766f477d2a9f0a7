// Records in, text out: code points, stop strings, counting, log probabilities, echo.
#include "server/openai/output_assembler.h"

#include <gtest/gtest.h>

#include <cmath>

#include "server/config/build_info.h"
#include "server/openai/completion_writer.h"
#include "tests/server/fake_engine.h"

namespace restkv {
namespace {

TokenRecord token_record(int32_t token, TokenRecord::Kind kind = TokenRecord::Kind::kToken) {
  TokenRecord record;
  record.kind = kind;
  record.token = token;
  record.logprob = -0.5f;
  return record;
}
TokenRecord finish_record(FinishReason reason, int32_t token) {
  TokenRecord record = token_record(token, TokenRecord::Kind::kFinish);
  record.finish = reason;
  return record;
}

class OutputAssemblerTest : public testing::Test {
 protected:
  // Gives the bytes of `text` as tokens of choice 0, then the end; the deltas come together in `all`.
  OutputDelta run(const std::string& text, const OutputOptions& options,
                  FinishReason reason = FinishReason::kStop, int32_t end_token = ByteTokenizer::kEos) {
    options_ = options;
    Request request;
    request.prompt = prompt_;
    handle_ = std::make_unique<RequestHandle>(std::move(request), [] {});
    assembler_ = std::make_unique<OutputAssembler>(tokenizer_, options_, *handle_, options.echo ? "hi" : "");
    OutputDelta all;
    if (options.echo && options.logprobs >= 0) {
      for (const int32_t token : prompt_) append(token_record(token, TokenRecord::Kind::kPromptToken), all);
    }
    for (const char c : text) append(token_record(static_cast<unsigned char>(c)), all);
    append(finish_record(reason, end_token), all);
    return all;
  }

  void append(const TokenRecord& record, OutputDelta& all) {
    OutputDelta delta;
    assembler_->append(record, delta);
    pieces_.push_back(delta.text);
    all.text += delta.text;
    for (TokenOutput& token : delta.tokens) all.tokens.push_back(std::move(token));
    if (delta.finish == FinishReason::kNone) return;
    all.finish = delta.finish;
    all.stop_index = delta.stop_index;
    all.stop_token = delta.stop_token;
    all.error = delta.error;
  }

  ByteTokenizer tokenizer_{{"hel", "lo w", "orld"}};
  std::vector<int32_t> prompt_{ByteTokenizer::kBos, 'h', 'i'};
  OutputOptions options_;
  std::unique_ptr<RequestHandle> handle_;
  std::unique_ptr<OutputAssembler> assembler_;
  std::vector<std::string> pieces_;
};

TEST_F(OutputAssemblerTest, PlainTextCountsTheEndToken) {
  const OutputDelta all = run("hello", {});
  EXPECT_EQ(all.text, "hello");
  EXPECT_EQ(all.finish, FinishReason::kStop);
  EXPECT_EQ(assembler_->usage().completion_tokens, 6);
  EXPECT_EQ(assembler_->usage().prompt_tokens, 3);
  EXPECT_TRUE(assembler_->is_finished());
}

TEST_F(OutputAssemblerTest, NeverSplitsACodePoint) {
  const OutputDelta all = run("a✓é😀b", {}, FinishReason::kLength, -1);
  EXPECT_EQ(all.text, "a✓é😀b");
  const std::vector<std::string> expected{"a", "", "", "✓", "", "é", "", "", "", "😀", "b", ""};
  EXPECT_EQ(pieces_, expected);
}

TEST_F(OutputAssemblerTest, AnUnfinishedCodePointEndsAsAReplacementCharacter) {
  EXPECT_EQ(run("a\xE2\x9C", {}, FinishReason::kLength, -1).text, "a\xEF\xBF\xBD");
}

TEST_F(OutputAssemblerTest, StopStringAcrossTokensEndsAndCancelsTheChoice) {
  const OutputDelta all = run("hello world, and more", {.stop = {"wor", "never"}});
  EXPECT_EQ(all.text, "hello ");
  EXPECT_EQ(all.finish, FinishReason::kStop);
  EXPECT_EQ(all.stop_index, 0);
  EXPECT_EQ(handle_->cancelled_choices.load(), 1u);
  // "hello wor": what came behind the match is not counted.
  EXPECT_EQ(assembler_->usage().completion_tokens, 9);
}

TEST_F(OutputAssemblerTest, StopStringInsideOneCodePointBoundary) {
  EXPECT_EQ(run("price: 5€ or 6€", {.stop = {"€"}}).text, "price: 5");
}

TEST_F(OutputAssemblerTest, HeldTextComesOutAtTheEnd) {
  const OutputDelta all = run("a\n", {.stop = {"\n\n"}}, FinishReason::kLength, -1);
  EXPECT_EQ(all.text, "a\n");
  EXPECT_EQ(all.finish, FinishReason::kLength);
}

TEST_F(OutputAssemblerTest, IncludeStopString) {
  EXPECT_EQ(run("one two", {.stop = {" "}, .include_stop_string = true}).text, "one ");
  const OutputDelta all =
      run("ab", {.stop_token_ids = {'c'}, .include_stop_string = true}, FinishReason::kStop, 'c');
  EXPECT_EQ(all.text, "abc");
  EXPECT_EQ(all.stop_token, 'c');
}

TEST_F(OutputAssemblerTest, StopStringsWaitForMinTokens) {
  EXPECT_EQ(run("x.x.x.x.", {.stop = {"."}, .min_tokens = 3}).text, "x.x");
}

TEST_F(OutputAssemblerTest, LogprobsFollowTheVisibleText) {
  const OutputDelta all = run("ab✓cd", {.stop = {"c"}, .logprobs = 1});
  EXPECT_EQ(all.text, "ab✓");
  std::vector<int64_t> offsets;
  for (const TokenOutput& token : all.tokens) offsets.push_back(token.text_offset);
  EXPECT_EQ(offsets, (std::vector<int64_t>{0, 1, 2, 2, 2}));
}

TEST_F(OutputAssemblerTest, EchoComesFirstAndMovesTheOffsets) {
  const OutputDelta all = run("xy", {.logprobs = 0, .echo = true});
  EXPECT_EQ(all.text, "hixy");
  std::vector<int64_t> offsets;
  for (const TokenOutput& token : all.tokens) offsets.push_back(token.text_offset);
  EXPECT_EQ(offsets, (std::vector<int64_t>{0, 0, 1, 2, 3}));  // <s> h i x y
}

// SentencePiece puts a space in front of a text, which no echo shows.
TEST_F(OutputAssemblerTest, OffsetsOfAnEchoLeaveOutTheDummyPrefix) {
  const auto offsets_of = [&](const std::string& echoed) {
    const ByteTokenizer tokenizer({" h"}, LeadingSpaces::kOneGoes);
    options_ = {.logprobs = 0, .echo = true};
    Request request;
    request.prompt = {ByteTokenizer::kBos, ByteTokenizer::kFirstPiece, 'i'};
    handle_ = std::make_unique<RequestHandle>(std::move(request), [] {});
    assembler_ = std::make_unique<OutputAssembler>(tokenizer, options_, *handle_, echoed);
    OutputDelta all;
    for (const int32_t token : handle_->request.prompt)
      append(token_record(token, TokenRecord::Kind::kPromptToken), all);
    append(token_record('x'), all);
    std::vector<int64_t> offsets;
    for (const TokenOutput& token : all.tokens) offsets.push_back(token.text_offset);
    return offsets;
  };
  EXPECT_EQ(offsets_of("hi"), (std::vector<int64_t>{0, 0, 1, 2}));
  // A prompt of ids is shown with its control tokens; behind one the space is the text's own.
  EXPECT_EQ(offsets_of("<s> hi"), (std::vector<int64_t>{0, 3, 5, 6}));
}

TEST_F(OutputAssemblerTest, CountersAreThoseOfTheLastTokenThatCounts) {
  options_ = {.stop = {"b"}};
  Request request;
  request.prompt = prompt_;
  handle_ = std::make_unique<RequestHandle>(std::move(request), [] {});
  assembler_ = std::make_unique<OutputAssembler>(tokenizer_, options_, *handle_, "");
  OutputDelta all;
  for (const char c : {'a', 'b', 'c'}) {
    TokenRecord record = token_record(c);
    record.counters.cached_tokens = 2;
    record.counters.queue_ms = 3;
    record.counters.prefill_ms = 5;
    record.counters.decode_ms = static_cast<float>(c - 'a');
    record.counters.cache.kept = 4 + c - 'a';
    append(record, all);
  }
  EXPECT_EQ(all.finish, FinishReason::kStop);
  const OutputUsage usage = assembler_->usage();
  EXPECT_EQ(usage.cached_tokens, 2);
  EXPECT_EQ(usage.queue_ms, 3);
  EXPECT_EQ(usage.prefill_ms, 5);
  EXPECT_EQ(usage.decode_ms, 1);
  EXPECT_EQ(usage.cache.kept_sum, 5);
}

TEST_F(OutputAssemblerTest, EchoWithoutTokensStillShowsThePrompt) {
  EXPECT_EQ(run("", {.echo = true}, FinishReason::kLength, -1).text, "hi");
}

TEST_F(OutputAssemblerTest, RecordsBehindTheEndAreIgnored) {
  run("ab", {.stop = {"b"}});
  OutputDelta delta;
  assembler_->append(token_record('z'), delta);
  EXPECT_TRUE(delta.empty());
  EXPECT_EQ(assembler_->usage().completion_tokens, 2);
}

TEST_F(OutputAssemblerTest, ErrorsPassThrough) {
  options_ = {};
  Request request;
  request.prompt = prompt_;
  handle_ = std::make_unique<RequestHandle>(std::move(request), [] {});
  assembler_ = std::make_unique<OutputAssembler>(tokenizer_, options_, *handle_, "");
  OutputDelta delta;
  TokenRecord record = finish_record(FinishReason::kError, -1);
  record.error = Status(StatusCode::kInternal, "nan").with_reason("nan_logits");
  assembler_->append(record, delta);
  EXPECT_EQ(delta.error.reason(), "nan_logits");
}

TEST_F(OutputAssemblerTest, ChunksAreTheShapeOfOpenAi) {
  CompletionEvents events({CompletionApi::kText, "cmpl-1", "m\"odel", 7}, tokenizer_, true);
  OutputDelta delta;
  delta.text = "a\"\n";
  delta.tokens = {{.token = 0xE2, .logprob = -0.25f, .top = {{'a', -0.5f}}, .text_offset = 4}};
  std::string out;
  const OutputOptions with_logprobs{.logprobs = 1};
  events.append_chunk(out, 3, delta, with_logprobs);
  EXPECT_EQ(out,
            "data: "
            "{\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"created\":7,\"model\":\"m\\\"odel\","
            "\"system_fingerprint\":\"restkv-" +
                std::string(build_version()) +
                "\",\"choices\":[{"
                "\"index\":3,\"text\":\"a\\\"\\n\",\"logprobs\":{\"tokens\":[\"bytes:\\\\xe2\"],\"token_"
                "logprobs\":[-0."
                "25],"
                "\"top_logprobs\":[{\"a\":-0.5,\"bytes:\\\\xe2\":-0.25}],\"text_offset\":[4]},\"finish_"
                "reason\":null}],"
                "\"usage\":null}\n\n");
}

// `")` ends as `)` does when both are written as JSON, and is another token.
TEST_F(OutputAssemblerTest, TopLogprobsOfTokensThatEndAlike) {
  const ByteTokenizer tokenizer({"\")", ")"});
  constexpr int32_t kQuoted = ByteTokenizer::kFirstPiece, kPlain = kQuoted + 1;
  CompletionEvents events({CompletionApi::kText, "cmpl-1", "m", 7}, tokenizer, false);
  OutputDelta delta;
  delta.tokens = {{.token = kPlain, .logprob = -2, .top = {{kQuoted, -1}, {kPlain, -2}, {')', -3}}}};
  std::string out;
  const OutputOptions with_logprobs{.logprobs = 3};
  events.append_chunk(out, 0, delta, with_logprobs);
  EXPECT_NE(out.find(R"x("top_logprobs":[{"\")":-1,")":-2}])x"), std::string::npos) << out;
}

}  // namespace
}  // namespace restkv

// Keys on a tiny model: it finds nothing, but every mode runs, counts and budgets are right, and errors say what is allowed.
#include "server/eval/passkey.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/tiny_model.h"
#include "tests/server/byte_tokenizer.h"

namespace restkv {
namespace {

using ::testing::HasSubstr;

TEST(Passkey, EveryModeRuns) {
  // A vocabulary of bytes, two special tokens and none beside them.
  const auto model = testing::make_tiny_model({.vocab = 258, .context = 1024});
  const ByteTokenizer tokenizer;
  PasskeyOptions options = {
      .modes = {PasskeyMode::kWindow, PasskeyMode::kAgnostic, PasskeyMode::kLater, PasskeyMode::kWindowLater},
      .budgets = {64, 100},
      .digits = {5, 9},
      .prompt_len = 200};
  std::vector<std::vector<int32_t>> slices;
  for (int text = 0; text < 2; ++text) {
    slices.emplace_back();
    for (int64_t i = 0; i < passkey_slice_len(options); ++i)
      slices.back().push_back(static_cast<int32_t>("The cat sat. A dog ran off. "[(i * (text + 1)) % 28]));
  }
  const auto variants = parse_variants("restkv,restkv[probe=none],snapkv");
  ASSERT_TRUE(variants.ok());
  EngineOptions engine;
  engine.threads = 1;
  engine.max_model_len = passkey_run_len(options);
  const auto runner = GroupRunner::make(model, engine, passkey_settings(options, variants->size()));
  ASSERT_TRUE(runner.ok()) << runner.status().message();
  int64_t last = 0;
  EvalContext context = {
      .prefix = {ByteTokenizer::kBos},
      .limits = {},
      .vocab_size = 258,
      .encode = [&](std::string_view text) { return tokenizer.encode(text, {.add_special = false}); },
      .progress =
          [&](int64_t done, int64_t total) {
            EXPECT_EQ(done, last + 1);
            EXPECT_EQ(total, 16);
            last = done;
          },
      .is_stopped = [] { return false; }};
  const auto rows = run_passkey(**runner, tokenizer, slices, *variants, options, context);
  ASSERT_TRUE(rows.ok()) << rows.status().message();
  ASSERT_EQ(rows->size(), 8u * 7u);
  EXPECT_EQ(last, 16);
  for (const PasskeyRow& row : *rows) {
    EXPECT_EQ(row.n, 2);
    EXPECT_LE(row.found, row.n);
    EXPECT_GT(row.bytes, 0);
    EXPECT_EQ(row.policy == "full", row.budget == 0);
  }
  options.digits = {17};
  EXPECT_THAT(run_passkey(**runner, tokenizer, slices, *variants, options, context).status().message(),
              HasSubstr("between 1 and 16"));
  options.digits = {5};
  options.budgets = {3};
  EXPECT_THAT(run_passkey(**runner, tokenizer, slices, *variants, options, context).status().message(),
              HasSubstr("cache.budget"));
  EXPECT_THAT(parse_passkey_modes("window,window").status().message(), HasSubstr("twice"));
  EXPECT_FALSE(parse_passkey_modes("behind").ok());
}

}  // namespace
}  // namespace restkv

// Fidelity on a tiny model: what must be exactly the full cache is, what is cut is not, and bytes are equal.
#include "server/eval/fidelity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/tiny_model.h"

namespace restkv {
namespace {

using ::testing::HasSubstr;

struct Measurement {
  std::shared_ptr<const Model> model = testing::make_tiny_model();
  FidelityOptions options = {.modes = {EvalMode::kPrefill, EvalMode::kDecode, EvalMode::kAgnostic},
                             .budgets = {64, 300},
                             .prompt_len = 200,
                             .continue_len = 60};
  std::vector<std::vector<int32_t>> slices;
  int stop_after = 1000;

  Measurement() {
    for (int32_t text = 0; text < 3; ++text) {
      slices.emplace_back();
      for (int32_t i = 0; i < fidelity_slice_len(options); ++i)
        slices.back().push_back(3 + (i * i * 7 + i * 11 + text * 29) % 60);
    }
  }

  Result<FidelityRun> run(std::string_view policies) {
    const auto variants = parse_variants(policies);
    EXPECT_TRUE(variants.ok()) << variants.status().message();
    EngineOptions engine;
    engine.threads = 1;
    engine.max_model_len = 400;
    auto runner = GroupRunner::make(model, engine, fidelity_settings(options, variants->size()));
    EXPECT_TRUE(runner.ok()) << runner.status().message();
    int64_t last = 0;
    const EvalContext context = {.prefix = {1},
                                 .limits = {},
                                 .vocab_size = model->config.vocab_size,
                                 .encode =
                                     [](std::string_view text) {
                                       std::vector<int32_t> ids;
                                       for (const char c : text.substr(0, 20)) ids.push_back(3 + c % 60);
                                       return ids;
                                     },
                                 .progress =
                                     [&](int64_t done, int64_t total) {
                                       EXPECT_GE(done, last);
                                       EXPECT_LE(done, total);
                                       last = done;
                                     },
                                 .is_stopped = [&] { return --stop_after <= 0; }};
    const Result<FidelityRun> out = run_fidelity(**runner, slices, *variants, options, context);
    return out;
  }
};

const FidelityRow& find(const FidelityRun& run, std::string_view variant, EvalMode mode, int32_t budget) {
  for (const FidelityRow& row : run.rows)
    if (row.variant == variant && row.mode == mode && row.budget == budget) return row;
  ADD_FAILURE() << variant;
  return run.rows[0];
}

TEST(Fidelity, ExactWhereNothingIsEvictedAndNotWhereSomethingIs) {
  Measurement m;
  const auto run = m.run("full,restkv,restkv:paper,snapkv,restkv[window=16],restkv[probe=none]");
  ASSERT_TRUE(run.ok()) << run.status().message();
  EXPECT_EQ(run->num_texts, 3);
  ASSERT_EQ(run->rows.size(), 36u);
  for (const FidelityRow& row : run->rows) {
    SCOPED_TRACE(row.variant + " " + std::string(eval_mode_name(row.mode)) + " " +
                 std::to_string(row.budget));
    EXPECT_EQ(row.n, 3);
    if (row.policy == "full" || row.budget == 300) {
      EXPECT_EQ(row.kl_mean, 0);
      EXPECT_EQ(row.kl_p95, 0);
      EXPECT_EQ(row.top1, 1);
      EXPECT_EQ(row.dnll, 0);
    } else {
      EXPECT_GT(row.kl_mean, 0);
      EXPECT_GT(row.kl_p95, row.kl_mean);
      EXPECT_LT(row.top1, 1);
      EXPECT_LE(row.kept, row.budget_used + (row.mode == EvalMode::kPrefill ? 60 : 0));
    }
  }
  const FidelityRow& paper = find(*run, "restkv:paper", EvalMode::kDecode, 64);
  EXPECT_EQ(paper.preset, "paper");
  EXPECT_EQ(paper.paper->ratio, 1);
  EXPECT_EQ(find(*run, "snapkv", EvalMode::kDecode, 64).snapkv->ratio, 1);
  EXPECT_NE(find(*run, "restkv", EvalMode::kDecode, 64).paper->ratio, 1);
  EXPECT_NE(find(*run, "restkv", EvalMode::kAgnostic, 64).kl_mean,
            find(*run, "restkv[probe=none]", EvalMode::kAgnostic, 64).kl_mean)
      << "the probe is the default there";
  EXPECT_EQ(find(*run, "restkv", EvalMode::kDecode, 64).kl_mean,
            find(*run, "restkv[probe=none]", EvalMode::kDecode, 64).kl_mean);
  EXPECT_NE(find(*run, "restkv", EvalMode::kAgnostic, 64).kl_mean,
            find(*run, "restkv", EvalMode::kDecode, 64).kl_mean);
}

TEST(Fidelity, BytesAreEqual) {
  Measurement m;
  const auto run = m.run("streamingllm,restkv:paper,h2o,restkv[window=16],adakv");
  ASSERT_TRUE(run.ok()) << run.status().message();
  for (const FidelityRow& row : run->rows) {
    if (row.budget == 300) continue;
    const FidelityRow& paper = find(*run, "restkv:paper", row.mode, row.budget);
    EXPECT_EQ(paper.budget_used, paper.budget);
    // Tables are not pages: allow them.
    EXPECT_LE(row.bytes, paper.bytes + paper.bytes / 20) << row.variant;
    EXPECT_GE(row.bytes, paper.bytes * 8 / 10) << row.variant;
  }
  EXPECT_GT(find(*run, "streamingllm", EvalMode::kDecode, 64).budget_used, 64) << "it has no ring";
  EXPECT_LT(find(*run, "h2o", EvalMode::kDecode, 64).budget_used, 64) << "its sums take room";
  EXPECT_EQ(find(*run, "streamingllm", EvalMode::kPrefill, 64).budget_used, 64);
  m.options.equal_bytes = false;
  const auto rows = m.run("streamingllm");
  ASSERT_TRUE(rows.ok()) << rows.status().message();
  EXPECT_EQ(find(*rows, "streamingllm", EvalMode::kDecode, 64).budget_used, 64);
}

TEST(Fidelity, EndsEarlyWithTheTextsThatAreDone) {
  Measurement m;
  m.stop_after = 2;
  const auto run = m.run("snapkv");
  ASSERT_TRUE(run.ok());
  EXPECT_EQ(run->num_texts, 2);
  EXPECT_EQ(run->rows[0].n, 2);
}

TEST(Fidelity, Errors) {
  Measurement m;
  m.options.budgets = {8};
  EXPECT_THAT(m.run("restkv").status().message(), HasSubstr("cache.budget: is 8, must be between"));
  m.options.budgets = {64};
  EXPECT_THAT(m.run("restkv[decode=grow]").status().message(), HasSubstr("--mode"));
  EXPECT_THAT(parse_eval_modes("prefill,dcode").status().message(),
              HasSubstr("prefill, decode and agnostic"));
  EXPECT_THAT(parse_eval_modes("decode,decode").status().message(), HasSubstr("twice"));
  EXPECT_FALSE(parse_eval_modes("").ok());
}

}  // namespace
}  // namespace restkv

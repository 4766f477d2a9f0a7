// Settings, budgets and the event schedule.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <random>

#include "engine/eviction/budget.h"
#include "engine/eviction/policy.h"
#include "tests/eviction/cut_schedule.h"

namespace restkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

CacheSettings resolved(const CacheRequest& request, const CacheLimits& limits = {}) {
  const Result<CacheSettings> settings = resolve_cache_settings(request, limits);
  EXPECT_TRUE(settings.ok()) << settings.status().message();
  return settings.ok() ? *settings : CacheSettings{};
}

TEST(Settings, Presets) {
  const CacheSettings d = resolved({});
  EXPECT_EQ(d.policy, PolicyKind::kRestkv);
  EXPECT_EQ(d.budget, 4096);
  EXPECT_EQ(d.sinks, 4);
  EXPECT_EQ(d.pool, PoolMode::kHalfForward);
  EXPECT_EQ(pin_rows(d, 4096), 1024);
  EXPECT_EQ(pin_rows(d, 255), 0);
  EXPECT_EQ(make_recipe(d, 127, 8).kernel, 7);
  EXPECT_EQ(make_recipe(d, 128, 8).kernel, 13);
  EXPECT_EQ(make_recipe(d, 48, 8).kernel, 3);  // a quarter of 12 free rows
  CacheRequest request;
  request.preset = "paper";
  const CacheSettings paper = resolved(request);
  EXPECT_EQ(paper.sinks, 0);
  EXPECT_EQ(paper.indicator, Indicator::kAfter);
  EXPECT_EQ(paper.reduce, QueryReduce::kEma);
  EXPECT_EQ(paper.pool, PoolMode::kAdaptive);
  EXPECT_EQ(pin_rows(paper, 4096), 0);
  request.preset = "default";
  request.compress_at = 100;
  EXPECT_EQ(resolved(request).probe.kind, ProbeSpec::Kind::kFacts);
}

TEST(Settings, OutOfRangeNamesFieldAndBounds) {
  const auto error = [](const CacheRequest& request, const CacheLimits& limits = {}) {
    const Result<CacheSettings> settings = resolve_cache_settings(request, limits);
    EXPECT_FALSE(settings.ok());
    return settings.ok() ? Status() : settings.status();
  };
  CacheRequest r;
  r.budget = 1;
  EXPECT_EQ(error(r).param(), "cache.budget");
  EXPECT_THAT(error(r).message(), HasSubstr("between 38 (4 sinks + 32 window + 2 stride)"));
  r.budget = int64_t{1} << 31;
  EXPECT_EQ(error(r).param(), "cache.budget");
  r.budget = 37;
  EXPECT_EQ(error(r).param(), "cache.budget");
  r.budget = 38;
  EXPECT_TRUE(resolve_cache_settings(r, {}).ok());
  r = {};
  r.fraction = 0.0;
  EXPECT_EQ(error(r).param(), "cache.fraction");
  r = {};
  r.policy = "lru";
  EXPECT_THAT(error(r).message(), HasSubstr("restkv, snapkv"));
  r = {};
  r.decode = "grow";
  EXPECT_EQ(error(r, {.allow_grow = false}).param(), "cache.decode");
  r = {};
  r.allocation = "calibrated";
  EXPECT_EQ(error(r).param(), "cache.allocation");
  r.policy = "tova";
  EXPECT_EQ(error(r, {.has_calibration = true}).param(), "cache.allocation");
  r = {};
  r.window = 2000;
  EXPECT_EQ(error(r).param(), "cache.window");
  r = {};
  r.tau = NAN;
  EXPECT_EQ(error(r).param(), "cache.tau");
  r = {};
  r.pool = "max";
  r.kernel = 4;
  EXPECT_EQ(error(r).param(), "cache.kernel");
  r = {};
  r.indicator = "after";
  r.reduce = "rms";
  EXPECT_EQ(error(r).param(), "cache.reduce");
  r = {};
  r.pin = 100;
  r.budget = 150;
  EXPECT_EQ(error(r).param(), "cache.budget");  // pins at most half
}

TEST(Settings, SmallestBudgetIsLegalForEveryPolicy) {
  for (const char* policy :
       {"restkv", "snapkv", "streamingllm", "h2o", "tova", "pyramidkv", "adakv", "lacache", "random"}) {
    for (const char* decode : {"evict", "grow"}) {
      CacheRequest r;
      r.policy = policy;
      r.decode = decode;
      const int32_t smallest = smallest_budget(resolved(r));
      r.budget = smallest;
      const CacheSettings s = resolved(r);
      EXPECT_EQ(s.budget, smallest) << policy;
      EXPECT_LE(protected_rows(s, smallest) + stride_of(s, smallest), smallest) << policy;
      if (smallest > 1) {
        r.budget = smallest - 1;
        EXPECT_FALSE(resolve_cache_settings(r, {}).ok()) << policy << " " << smallest - 1;
      }
    }
  }
}

TEST(Settings, FractionOfThePrompt) {
  CacheRequest r;
  r.fraction = 0.1;
  r.budget = 500;
  const CacheSettings s = resolved(r);
  EXPECT_EQ(budget_for_prompt(s, 2001), 201);
  EXPECT_EQ(budget_for_prompt(s, 100000), 500);
  EXPECT_EQ(budget_for_prompt(s, 10), smallest_budget(s));
  r.policy = "full";  // keeps everything all the same
  EXPECT_EQ(budget_for_prompt(resolved(r), 2001), 500);
}

TEST(Settings, AFractionIsLegalWhereverItFalls) {
  CacheRequest r;
  r.policy = "h2o";
  r.pin_head = 15;
  r.budget = 200;
  r.fraction = 1.0;
  const CacheSettings s = resolved(r);
  ASSERT_EQ(smallest_budget(s), 31);
  r.budget = 32;
  EXPECT_THAT(resolve_cache_settings(r, {}).status().message(),
              HasSubstr("is 32, has no room for 0 sinks + 16 window"));
  r.budget = 33;
  EXPECT_TRUE(resolve_cache_settings(r, {}).ok());
  for (int32_t prompt_len = 1; prompt_len < 300; ++prompt_len) {
    const int32_t c = budget_for_prompt(s, prompt_len);
    EXPECT_LE(protected_rows(s, c) + stride_of(s, c), c) << prompt_len;
  }
}

// Requests ask for it, so it must not count up to pins of a million rows (200 times: minutes).
TEST(Settings, TheSmallestBudgetIsFoundAtOnce) {
  CacheSettings s = resolved({});
  s.pin_head = s.pin_tail = 1 << 20;
  s.pin = s.stride = 1 << 20;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 200; ++i) EXPECT_EQ(smallest_budget(s), 3 << 21);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  CacheRequest r;
  r.pin_head = 1 << 20;
  EXPECT_THAT(resolve_cache_settings(r, {}).status().message(), HasSubstr("at least 2097152"));
}

// `grow` is legal with room for a single row, and its windowed layers are cut by the stride in decode.
TEST(Settings, AStrideLeavesTheProtectedRowsUnderGrowToo) {
  CacheRequest r;
  r.decode = "grow";
  r.stride = 162;
  for (const int64_t budget : {37, 64, 198, 1000}) {
    r.budget = budget;
    const CacheSettings s = resolved(r);
    EXPECT_EQ(stride_of(s, s.budget), std::min<int64_t>(162, budget - 36)) << budget;
  }
}

TEST(Settings, OverlayTakesTheLaterField) {
  CacheRequest base, top;
  base.budget = 100;
  base.policy = "snapkv";
  top.budget = 200;
  const CacheRequest both = overlay(base, top);
  EXPECT_EQ(*both.budget, 200);
  EXPECT_EQ(*both.policy, "snapkv");
}

TEST(Budget, LargestRemaindersGoToTheLowerIndex) {
  EXPECT_THAT(round_to_sum(std::vector<double>{1, 1, 1}, 0, 10), ElementsAre(4, 3, 3));
  EXPECT_THAT(round_to_sum(std::vector<double>{0, 0, 0}, 2, 8), ElementsAre(3, 3, 2));
  EXPECT_THAT(round_to_sum(std::vector<double>{1, 9, 2}, 3, 12), ElementsAre(3, 6, 3));
  EXPECT_THAT(round_to_sum(std::vector<double>{0, 10, 30}, 3, 48, 5),
              ElementsAre(3, 8, 33));  // seven units, four left
}

TEST(Budget, PublishedPyramid) {
  EXPECT_EQ(pyramid_rows(64, 32, 512, 0, 4), 125);
  EXPECT_EQ(pyramid_rows(64, 32, 512, 3, 4), 5);
  EXPECT_EQ(pyramid_rows(64, 32, 140, 0, 4), 108);  // clamped to the prompt
  EXPECT_EQ(pyramid_rows(64, 32, 140, 3, 4), 21);
  for (int32_t layer = 0; layer < 4; ++layer) EXPECT_EQ(pyramid_rows(64, 32, 127, layer, 4), 64);
}

TEST(Budget, CalibratedRowsFillTheirPages) {
  const CacheLimits limits{.has_calibration = true};
  const auto settings = [&](int32_t budget, const char* decode) {
    CacheRequest r;
    r.budget = budget;
    r.allocation = "calibrated";
    r.decode = decode;
    return resolved(r, limits);
  };
  EXPECT_EQ(calibrated_floor(settings(64, "evict"), 64), 48);     // 36 protected + 4 stride
  EXPECT_EQ(calibrated_floor(settings(256, "evict"), 256), 176);  // 0.7 C
  EXPECT_EQ(calibrated_floor(settings(44, "evict"), 44), 44);     // nothing to share out
  EXPECT_EQ(calibrated_floor(settings(256, "grow"), 256), 48);
  const AllocationTable table{.decode = DecodeMode::kEvict,
                              .budgets = {128, 256},
                              .rows = {{96, 112, 144, 160}, {176, 192, 256, 400}}};
  const auto rows = [&](int32_t budget) {
    return plan_budget(settings(budget, "evict"), {2, 2, {}}, &table, 5000, 100).c_lh;
  };
  EXPECT_THAT(rows(128), ElementsAre(96, 112, 144, 160)) << "a budget of the table: its rows";
  EXPECT_THAT(rows(300), ElementsAre(300, 300, 300, 300)) << "above the table: uniform";
  for (const int32_t budget : {50, 70, 100, 129, 200, 255}) {
    const std::vector<int32_t> c_lh = rows(budget);
    const int32_t sum = std::accumulate(c_lh.begin(), c_lh.end(), 0);
    EXPECT_LE(sum, 4 * budget) << budget;
    EXPECT_GT(sum, 4 * budget - kCalibratedUnit) << budget;
    for (const int32_t c : c_lh) EXPECT_EQ(c % kCalibratedUnit, 0) << budget;
  }
}

TEST(Budget, EveryAllocationKeepsTheSum) {
  std::mt19937 random(2);
  constexpr int32_t kLayers = 6, kHeads = 3;
  AllocationTable table;
  table.budgets = {64, 256, 1024};
  for (const int32_t c : table.budgets) {
    table.rows.emplace_back();
    for (int i = 0; i < kLayers * kHeads; ++i)
      table.rows.back().push_back(c * (0.2 + static_cast<double>(random() % 1000) / 500));
  }
  const std::vector<int32_t> window = {0, 40, 0, 0, 2000, 0};
  for (const char* allocation : {"uniform", "pyramid", "calibrated", "ada"}) {
    for (const int32_t c : {48, 64, 100, 300, 1000, 1500}) {
      for (const char* decode : {"evict", "grow"}) {
        CacheRequest r;
        r.budget = c;
        r.allocation = allocation;
        r.decode = decode;
        const CacheSettings s = resolved(r, {.has_calibration = true});
        const SequenceBudget b = plan_budget(s, {kLayers, kHeads, window}, &table, 5000, 100);
        ASSERT_EQ(b.c_lh.size(), static_cast<size_t>(kLayers * kHeads));
        int64_t sum = 0;
        for (size_t i = 0; i < b.c_lh.size(); ++i) {
          const int32_t w = window[i / kHeads];
          if (w > 0) {
            EXPECT_EQ(b.c_lh[i], std::min(c, w + b.stride));
            continue;
          }
          sum += b.c_lh[i];
          if (s.decode == DecodeMode::kEvict) {
            EXPECT_GE(b.c_lh[i], protected_rows(s, c) + b.stride) << allocation << c;
          }
          if (s.allocation == Allocation::kCalibrated && c <= 1024) {
            EXPECT_GE(b.c_lh[i], calibrated_floor(s, c));
          }
        }
        const int64_t whole = int64_t{4} * kHeads * c;
        EXPECT_LE(sum, whole) << allocation;
        EXPECT_GT(sum, whole - (s.allocation == Allocation::kCalibrated ? kCalibratedUnit : 1)) << allocation;
        const SequenceBudget exact = plan_budget(s, {kLayers, kHeads, {}}, &table, c - 10, 10);
        EXPECT_TRUE(exact.is_exact);
        for (const int32_t rows : exact.c_lh) EXPECT_EQ(rows, c);
      }
    }
  }
}

TEST(Budget, ScheduleEqualsTheStepByStepRule) {
  std::mt19937 random(4);
  for (int round = 0; round < 200; ++round) {
    const int32_t stride = 1 + static_cast<int32_t>(random() % 20),
                  layers = 1 + static_cast<int32_t>(random() % 8);
    const int32_t c = stride + 1 + static_cast<int32_t>(random() % 60),
                  layer = std::abs(static_cast<int32_t>(random()) % layers);
    const CutSchedule schedule(c, stride, layer, layers);
    const int64_t prompt = 1 + static_cast<int64_t>(random() % 120);
    bool is_first = true;
    int64_t kv_len = prompt;
    for (int64_t tokens = prompt; tokens < prompt + 300; ++tokens, ++kv_len) {
      const bool is_cut = tokens == prompt ? kv_len >= c : kv_len == c;
      ASSERT_EQ(schedule.is_cut(prompt, tokens), is_cut) << tokens;
      if (is_cut) {
        kv_len = rows_after_cut(c, stride, layer, layers, is_first);
        is_first = false;
      }
      ASSERT_EQ(schedule.kv_len(prompt, tokens), kv_len) << tokens;
      ASSERT_LE(kv_len, c);
    }
  }
}

TEST(Budget, LayersTakeTurnsWithTheirCuts) {
  const int32_t c = 100, stride = 16, layers = 8;
  const int64_t prompt = 500;
  for (int32_t layer = 0; layer < layers; ++layer)
    EXPECT_EQ(rows_after_cut(c, stride, layer, layers, true), c - stride + 2 * layer);
  // After the prompt's cut, no step has more than one layer to cut.
  for (int64_t tokens = prompt + 1; tokens < prompt + 200; ++tokens) {
    int cuts = 0;
    for (int32_t layer = 0; layer < layers; ++layer)
      cuts += CutSchedule(c, stride, layer, layers).is_cut(prompt, tokens);
    EXPECT_LE(cuts, 1) << tokens;
  }
}

}  // namespace
}  // namespace restkv

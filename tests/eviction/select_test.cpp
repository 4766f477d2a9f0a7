// smooth, select and compact: the shift table, ties, NaN, protected and pinned rows, nesting, sharing between heads, copies
// in place; and properties over random settings.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "tests/emulator/emulator.h"
#include "tests/eviction/eviction_case.h"

namespace restkv {
namespace {

using ::testing::ElementsAre;
using testing::EvictionCase;

class Smooth : public testing::EvictionOps {};
class Select : public testing::EvictionOps {};
class Compact : public testing::EvictionOps {};
constexpr auto kBackendName = [](const auto& info) { return device_op_cases()[info.param].name; };
INSTANTIATE_TEST_SUITE_P(Backends, Smooth, ::testing::Range(size_t{0}, device_op_cases().size()),
                         kBackendName);
INSTANTIATE_TEST_SUITE_P(Backends, Select, ::testing::Range(size_t{0}, device_op_cases().size()),
                         kBackendName);
INSTANTIATE_TEST_SUITE_P(Backends, Compact, ::testing::Range(size_t{0}, device_op_cases().size()),
                         kBackendName);

std::vector<float> smoothed(Backend& backend, const std::vector<float>& in, PoolKind kind, int32_t kernel,
                            int32_t window_rows = 0, std::vector<float> mean_index = {}) {
  const auto n = static_cast<int64_t>(in.size());
  const auto num_queries = static_cast<int32_t>(mean_index.size());
  std::vector<float> out(in.size());
  const SmoothItem item{
      .rows = {.k = dense(in.data(), DType::kF32, n, 1), .v = dense(in.data(), DType::kF32, n, 1)},
      .in = dense(in.data(), DType::kF32, 1, n),
      .out = dense(out.data(), DType::kF32, 1, n),
      .window_rows = window_rows,
      .num_queries = num_queries,
      .observation = {.mean_index = dense(mean_index.data(), DType::kF32, 1, num_queries)}};
  backend.smooth({.shape = {.num_heads = 1, .num_kv_heads = 1, .head_dim = 1},
                  .kind = kind,
                  .kernel = kernel,
                  .items = {&item, 1}});
  return out;
}

TEST(SmoothShift, TableOfThePublishedCode) {
  const struct {
    double drift;
    int32_t width, shift;
  } table[] = {{-6001, 7, -3}, {-6000, 7, -2}, {-2001, 5, -1}, {-2000, 5, 0}, {-1, 5, 0},
               {0, 5, 1},      {1, 5, 0},      {2000, 5, 1},   {4000, 5, 2},  {6000, 7, 3}};
  for (const auto& row : table) {
    const AdaptiveKernel kernel = adaptive_kernel(row.drift, 5, 2000);
    EXPECT_EQ(kernel.width, row.width) << row.drift;
    EXPECT_EQ(kernel.shift, row.shift) << row.drift;
  }
  // `scale` is the request's: a drift of a million rows must not make a million rows of work for each.
  for (const double drift : {1e6, -1e6}) {
    const AdaptiveKernel kernel = adaptive_kernel(drift, 5, 1), most = adaptive_kernel(2 * drift, 5, 1);
    EXPECT_EQ(kernel.width, 2 * kMaxDriftSteps + 1);
    EXPECT_EQ(kernel.shift, most.shift);
    EXPECT_LE(std::abs(kernel.shift), kMaxDriftSteps);
  }
}

TEST_P(Smooth, Pools) {
  const std::unique_ptr<Backend> backend = make(1);
  EXPECT_THAT(smoothed(*backend, {1, 5, 3, 2, 9}, PoolKind::kForward, 2), ElementsAre(1, 5, 5, 3, 9));
  EXPECT_THAT(smoothed(*backend, {1, 5, 3, 2, 9}, PoolKind::kMax, 3), ElementsAre(5, 5, 5, 9, 9));
  EXPECT_THAT(smoothed(*backend, {3, 6, 3, 6, 9}, PoolKind::kAvg, 3), ElementsAre(3, 4, 5, 6, 5));
  EXPECT_THAT(smoothed(*backend, {3, 6, 3, 6, 9}, PoolKind::kAvg, 3, 2),
              ElementsAre(3, 4, 3, 6, 9));  // the window is copied
  EXPECT_THAT(smoothed(*backend, {3, 6, 3}, PoolKind::kNone, 3), ElementsAre(3, 6, 3));
}

TEST_P(Smooth, AdaptiveFollowsTheDrift) {
  const std::unique_ptr<Backend> backend = make(1);
  const std::vector<float> in = {5, 0, 0, 0, 0, 0, 0, 10};
  // Earlier queries look further on than later ones by 4,000 rows: width 5, moved by 2 towards the end; the ends repeat.
  EXPECT_THAT(smoothed(*backend, in, PoolKind::kAdaptive, 5, 0, {4000, 0}),
              ElementsAre(1, 0, 0, 2, 4, 6, 8, 10));
  // 2,001 rows the other way: width 5, moved by 1 towards the start.
  EXPECT_THAT(smoothed(*backend, in, PoolKind::kAdaptive, 5, 0, {0, 2001}),
              ElementsAre(4, 3, 2, 1, 0, 0, 2, 4));
  const float most = 2000.0f * kMaxDriftSteps;
  EXPECT_EQ(smoothed(*backend, in, PoolKind::kAdaptive, 5, 0, {4 * most, 0}),
            smoothed(*backend, in, PoolKind::kAdaptive, 5, 0, {most, 0}));
}

TEST_P(Smooth, RowsThatAreNotFiniteDoNotSpread) {
  const std::unique_ptr<Backend> backend = make(1);
  const std::vector<float> out = smoothed(*backend, {1, NAN, 1, 1, INFINITY, 1, 1}, PoolKind::kForward, 3);
  EXPECT_THAT(out, ElementsAre(1, INFINITY, 1, 1, INFINITY, 1, 1));
}

// A selection over given scores of one layer.
struct Selection {
  std::vector<std::vector<float>> scores = {};  // [arrays][K * n]
  int32_t kv_heads = 1;
  std::vector<int32_t> keep = {};
  ProtectedRows protect = {};
  SelectScope scope = SelectScope::kHead;
  int32_t floor = 0, slack = 0, pins = 0;

  std::vector<std::vector<int32_t>> kept = {}, new_pins = {};
  std::vector<int32_t> share = {}, non_finite = {}, num_dead = {};

  int64_t num_rows() const { return static_cast<int64_t>(scores[0].size()) / kv_heads; }
  Selection& run(Backend& backend);
};

// The items of one op, which have the first one's heads and scope.
void run_all(Backend& backend, std::span<Selection> selections) {
  struct Buffers {
    std::vector<float> rows;
    std::vector<int32_t> out, kept_len, pin_rows, num_pins;
  };
  const int32_t kv_heads = selections[0].kv_heads;
  const auto k = static_cast<size_t>(kv_heads);
  std::vector<Buffers> buffers(selections.size());
  std::vector<SelectItem> items;
  for (size_t i = 0; i < selections.size(); ++i) {
    Selection& s = selections[i];
    Buffers& b = buffers[i];
    const int64_t n = s.num_rows();
    b.rows.resize(static_cast<size_t>(n) * k);
    b.out.resize(b.rows.size());
    b.kept_len.resize(k);
    b.pin_rows.resize(k * static_cast<size_t>(std::max(s.pins, 1)));
    b.num_pins.resize(k);
    s.share.assign(k, -1);
    s.non_finite.assign(k, -1);
    s.num_dead.assign(k, -1);
    SelectItem& item = items.emplace_back();
    item = {.rows = {.k = dense(b.rows.data(), DType::kF32, n, kv_heads),
                     .v = dense(b.rows.data(), DType::kF32, n, kv_heads)},
            .num_scores = static_cast<int32_t>(s.scores.size()),
            .keep = s.keep.data(),
            .protect = s.protect,
            .floor = s.floor,
            .slack = s.slack,
            .share = s.share.data(),
            .kept = dense(b.out.data(), DType::kI32, kv_heads, n),
            .kept_len = b.kept_len.data(),
            .num_dead = s.num_dead.data(),
            .non_finite = s.non_finite.data(),
            .max_new_pins = s.pins,
            .new_pins = b.pin_rows.data(),
            .num_new_pins = b.num_pins.data()};
    for (size_t a = 0; a < s.scores.size(); ++a)
      item.scores[a] = dense(s.scores[a].data(), DType::kF32, kv_heads, n);
  }
  backend.select({.num_kv_heads = kv_heads, .scope = selections[0].scope, .items = items});
  for (size_t i = 0; i < selections.size(); ++i) {
    Selection& s = selections[i];
    const Buffers& b = buffers[i];
    s.kept.clear();
    s.new_pins.clear();
    for (size_t h = 0; h < k; ++h) {
      const int32_t* row = b.out.data() + static_cast<int64_t>(h) * s.num_rows();
      s.kept.emplace_back(row, row + b.kept_len[h]);
      const int32_t* pin = b.pin_rows.data() + static_cast<int64_t>(h) * s.pins;
      s.new_pins.emplace_back(pin, pin + (s.pins > 0 ? b.num_pins[h] : 0));
    }
  }
}

Selection& Selection::run(Backend& backend) {
  run_all(backend, {this, 1});
  return *this;
}

// By sorting: min over the m arrays i of m * rank_i + i for each row of a head, of which the first protect.head_end and the last
// protect.recent are protected.
std::vector<int32_t> order_of(const Selection& s, int32_t head) {
  const auto n = static_cast<int32_t>(s.num_rows()), m = static_cast<int32_t>(s.scores.size());
  const auto is_protected = [&](int32_t j) { return j < s.protect.head_end || j >= n - s.protect.recent; };
  std::vector<int32_t> order(static_cast<size_t>(n), INT32_MAX), rows(order.size());
  for (int32_t a = 0; a < m; ++a) {
    const float* scores = s.scores[static_cast<size_t>(a)].data() + int64_t{head} * n;
    std::iota(rows.begin(), rows.end(), 0);
    std::sort(rows.begin(), rows.end(), [&](int32_t x, int32_t y) {
      if (is_protected(x) != is_protected(y)) return is_protected(x);
      if (!is_protected(x) && scores[x] != scores[y]) return scores[x] > scores[y];
      return x > y;
    });
    for (int32_t r = 0; r < n; ++r) {
      int32_t& value = order[static_cast<size_t>(rows[static_cast<size_t>(r)])];
      value = std::min(value, m * r + a);
    }
  }
  return order;
}

// Of the rows that `wanted` says, the `count` first in that order; ascending.
template <class Wanted>
std::vector<int32_t> first_rows(const std::vector<int32_t>& order, int32_t count, Wanted wanted) {
  std::vector<int32_t> rows;
  for (int32_t j = 0; j < static_cast<int32_t>(order.size()); ++j)
    if (wanted(j)) rows.push_back(j);
  std::sort(rows.begin(), rows.end(), [&](int32_t x, int32_t y) {
    return order[static_cast<size_t>(x)] < order[static_cast<size_t>(y)];
  });
  rows.resize(std::min(rows.size(), static_cast<size_t>(count)));
  std::sort(rows.begin(), rows.end());
  return rows;
}
std::vector<int32_t> first_rows(const std::vector<int32_t>& order, int32_t count) {
  return first_rows(order, count, [](int32_t) { return true; });
}

TEST_P(Select, TiesGoToNewerRows) {
  const std::unique_ptr<Backend> backend = make(1);
  Selection s{.scores = {{1, 2, 2, 2, 1, 0}}, .keep = {2}};
  EXPECT_THAT(s.run(*backend).kept[0], ElementsAre(2, 3));
  s.keep = {4};
  EXPECT_THAT(s.run(*backend).kept[0], ElementsAre(1, 2, 3, 4));
  Selection zeros{.scores = {{0, 0, 0, 0}}, .keep = {3}};
  EXPECT_THAT(zeros.run(*backend).kept[0], ElementsAre(1, 2, 3));
}

// More rows than a block looks at in one go, few different scores: the order of (score, row) decides.
TEST_P(Select, ManyRowsOfFewScores) {
  const std::unique_ptr<Backend> backend = make(1);
  std::mt19937 random(11);
  constexpr int32_t kRows = 5000;
  std::vector<float> scores(kRows);
  for (float& x : scores) x = static_cast<float>(random() % 7) - 3.0f;
  const std::vector<int32_t> order = order_of({.scores = {scores}}, 0);
  for (const int32_t keep : {1, 700, 4600, kRows}) {
    const std::vector<int32_t> expected = first_rows(order, keep);
    Selection one{.scores = {scores}, .keep = {keep}};
    EXPECT_EQ(one.run(*backend).kept[0], expected) << keep;
    // The same array twice says the same.
    Selection two{.scores = {scores, scores}, .keep = {keep}};
    EXPECT_EQ(two.run(*backend).kept[0], expected) << keep;
  }
}

// More rows than the maps in shared memory have bits for.
TEST_P(Select, RowsBeyondTheMapsInSharedMemory) {
  const std::unique_ptr<Backend> backend = make(1);
  std::mt19937 random(12);
  constexpr int32_t kRows = 70001, kKeep = 300;
  std::vector<float> scores(kRows);
  for (float& x : scores) x = static_cast<float>(random() % 1000);
  const std::vector<int32_t> expected = first_rows(order_of({.scores = {scores}}, 0), kKeep);
  Selection one{.scores = {scores}, .keep = {kKeep}};
  EXPECT_EQ(one.run(*backend).kept[0], expected);
  Selection two{.scores = {scores, scores}, .keep = {kKeep}, .pins = 3};
  EXPECT_EQ(two.run(*backend).kept[0], expected);
  EXPECT_TRUE(two.new_pins[0].empty());  // the second array brings nothing in
}

// The sorted lists of three arrays that are all different, each longer than what shared memory has room for.
TEST_P(Select, ThreeArraysWithListsBeyondSharedMemory) {
  const std::unique_ptr<Backend> backend = make(2);
  std::mt19937 random(13);
  constexpr int32_t kRows = 4900;
  Selection s{.kv_heads = 2, .keep = {4300, 4200}, .protect = {.head_end = 4, .recent = 32}, .pins = 40};
  for (int32_t a = 0; a < 3; ++a) {
    s.scores.emplace_back();
    for (int32_t j = 0; j < 2 * kRows; ++j) s.scores.back().push_back(static_cast<float>(random() % 2000));
  }
  s.run(*backend);
  for (int32_t h = 0; h < 2; ++h) {
    const auto i = static_cast<size_t>(h);
    const std::vector<int32_t> order = order_of(s, h);
    EXPECT_EQ(s.kept[i], first_rows(order, s.keep[i])) << "head " << h;
    // The best of those that the second and third array brought in; more than so many stay.
    const auto is_new = [&](int32_t j) {
      return j >= s.protect.head_end && j < kRows - s.protect.recent &&
             order[static_cast<size_t>(j)] % 3 != 0;
    };
    EXPECT_EQ(s.new_pins[i], first_rows(order, s.pins, is_new)) << "head " << h;
  }
}

// A workspace of two units, and of two items whose heads share their rows: further launches find what others left there.
TEST(SelectOnTheEmulator, UnitsBeyondTheWorkspaceGoInFurtherLaunches) {
  constexpr int32_t kRows = 100, kItems = 5;
  for (const SelectScope scope : {SelectScope::kHead, SelectScope::kLayer, SelectScope::kShare}) {
    const int32_t max_arrays = scope == SelectScope::kHead ? 3 : 1;
    // Keys and lists of a unit, what is aligned before them, and the shares.
    const int64_t unit_bytes = 8 * max_arrays * kRows;
    const auto small = with_host_memory(make_emulated_backend({.workspace_bytes = 2 * unit_bytes + 700}));
    const std::unique_ptr<Backend> cpu = make_cpu_backend(1);
    std::mt19937 random(14);
    std::vector<Selection> expected(kItems);
    for (int32_t i = 0; i < kItems; ++i) {
      Selection& s = expected[static_cast<size_t>(i)];
      s = {.kv_heads = 2, .keep = {40 + i, scope == SelectScope::kLayer ? 40 + i : 60 - i}, .scope = scope};
      s.protect = {.head_end = i, .recent = 3 * i};
      s.floor = 20;
      s.slack = i;
      s.pins = max_arrays > 1 ? 4 : 0;
      for (int32_t a = 0; a < 1 + i % max_arrays; ++a) {
        s.scores.emplace_back();
        for (int32_t j = 0; j < 2 * (kRows - i); ++j)
          s.scores.back().push_back(static_cast<float>(random() % 50));
      }
    }
    std::vector<Selection> given = expected;
    run_all(*cpu, expected);
    const int64_t before = emulator::counters().launches;
    run_all(*small, given);
    EXPECT_GE(emulator::counters().launches - before, scope == SelectScope::kShare ? 7 : 5);
    for (size_t i = 0; i < kItems; ++i) {
      EXPECT_EQ(given[i].kept, expected[i].kept) << "item " << i;
      EXPECT_EQ(given[i].new_pins, expected[i].new_pins) << "item " << i;
      EXPECT_EQ(given[i].share, expected[i].share) << "item " << i;
      EXPECT_EQ(given[i].num_dead, expected[i].num_dead) << "item " << i;
    }
  }
}

TEST_P(Select, NanAndInfRankFirstAndAreCounted) {
  const std::unique_ptr<Backend> backend = make(1);
  Selection s{.scores = {{9, NAN, 3, INFINITY, 8, -NAN}}, .keep = {4}};
  EXPECT_THAT(s.run(*backend).kept[0], ElementsAre(0, 1, 3, 5));
  EXPECT_EQ(s.non_finite[0], 3);
  s.keep = {2};  // never more than the budget; among equals the newer ones
  EXPECT_THAT(s.run(*backend).kept[0], ElementsAre(3, 5));
}

TEST_P(Select, ProtectedPinnedAndDeadRows) {
  const std::unique_ptr<Backend> backend = make(1);
  const int32_t pins[] = {3, 99};
  const int32_t num_pins[] = {1};
  Selection s{.scores = {{0, 0, 7, 0, 6, 5, 0, 0}}, .keep = {5}};
  s.protect = {.head_end = 1,
               .tail_begin = 1,
               .tail_end = 2,
               .recent = 1,
               .pins = pins,
               .pin_stride = 2,
               .num_pins = num_pins};
  EXPECT_THAT(s.run(*backend).kept[0], ElementsAre(0, 1, 2, 3, 7));
  s.protect = {.recent = 1, .dead_before = 5};
  s.keep = {3};
  EXPECT_THAT(s.run(*backend).kept[0], ElementsAre(5, 6, 7));
  EXPECT_EQ(s.num_dead[0], 5);
  s.keep = {4};  // dead rows only fill what nobody else wants
  EXPECT_THAT(s.run(*backend).kept[0], ElementsAre(4, 5, 6, 7));
}

TEST_P(Select, MoreRowsThanThereAre) {
  const std::unique_ptr<Backend> backend = make(1);
  Selection s{.scores = {{1, 2, 3}}, .keep = {10}};
  EXPECT_THAT(s.run(*backend).kept[0], ElementsAre(0, 1, 2));
  s.keep = {0};
  EXPECT_TRUE(s.run(*backend).kept[0].empty());
}

// Two arrays in turn: min(2 ra, 2 rb + 1), computed here by sorting.
TEST_P(Select, InterleavedArraysNestAndFollowTheFormula) {
  const std::unique_ptr<Backend> backend = make(1);
  std::mt19937 random(5);
  const int rounds = device_op_cases()[GetParam()].is_device ? 10 : 40;
  for (int round = 0; round < rounds; ++round) {
    const int32_t n = 20 + static_cast<int32_t>(random() % 80),
                  arrays = 1 + static_cast<int32_t>(random() % 3);
    Selection s;
    for (int32_t a = 0; a < arrays; ++a) {
      s.scores.emplace_back();
      for (int32_t j = 0; j < n; ++j) s.scores.back().push_back(static_cast<float>(random() % 12));
    }
    s.protect = {.head_end = 2, .recent = 5};
    const std::vector<int32_t> order = order_of(s, 0);
    std::vector<int32_t> before;
    for (int32_t keep = 0; keep <= n; ++keep) {
      s.keep = {keep};
      const std::vector<int32_t> kept = s.run(*backend).kept[0];
      ASSERT_EQ(kept, first_rows(order, keep)) << "keep " << keep;
      ASSERT_TRUE(std::includes(kept.begin(), kept.end(), before.begin(), before.end())) << "keep " << keep;
      before = kept;
    }
  }
}

TEST_P(Select, NewPinsAreWhatPoolingBroughtIn) {
  const std::unique_ptr<Backend> backend = make(1);
  //                    0  1  2  3  4  5  6  7
  Selection s{.scores = {{9, 8, 7, 6, 0, 0, 0, 0}, {0, 0, 0, 0, 9, 8, 7, 6}}, .keep = {6}, .pins = 2};
  s.run(*backend);
  EXPECT_THAT(s.kept[0], ElementsAre(0, 1, 2, 4, 5, 6));
  EXPECT_THAT(s.new_pins[0], ElementsAre(4, 5));
}

TEST_P(Select, LayerScopeKeepsOneSet) {
  const std::unique_ptr<Backend> backend = make(2);
  Selection s{.scores = {{9, 0, 0, 4, 0, /**/ 0, 0, 8, 5, 0}},
              .kv_heads = 2,
              .keep = {2, 2},
              .scope = SelectScope::kLayer};
  s.run(*backend);
  EXPECT_THAT(s.kept[0], ElementsAre(0, 3));  // means 4.5 0 4 4.5 0
  EXPECT_EQ(s.kept[0], s.kept[1]);
}

TEST_P(Select, ShareFollowsScoresAndFloors) {
  const std::unique_ptr<Backend> backend = make(2);
  Selection s{.scores = {{9, 8, 7, 6, 5, /**/ 1, 1, 2, 1, 3}},
              .kv_heads = 2,
              .keep = {3, 3},
              .scope = SelectScope::kShare,
              .floor = 1};
  s.run(*backend);
  EXPECT_THAT(s.share, ElementsAre(5, 1));
  EXPECT_THAT(s.kept[1], ElementsAre(4));
  s.floor = 2;
  s.slack = 1;
  s.run(*backend);
  EXPECT_THAT(s.share, ElementsAre(4, 2));
  EXPECT_THAT(s.kept[0], ElementsAre(0, 1, 2));
  EXPECT_THAT(s.kept[1], ElementsAre(4));
}

TEST_P(Select, PropertiesOverRandomSettings) {
  const std::unique_ptr<Backend> backend = make(2);
  std::mt19937 random(17);
  for (int round = 0; round < 300; ++round) {
    const int32_t n = 1 + static_cast<int32_t>(random() % 200),
                  heads = 1 + static_cast<int32_t>(random() % 4);
    Selection s;
    s.kv_heads = heads;
    const int32_t arrays = 1 + static_cast<int32_t>(random() % 3);
    for (int32_t a = 0; a < arrays; ++a) {
      s.scores.emplace_back();
      for (int32_t j = 0; j < n * heads; ++j) {
        s.scores.back().push_back(random() % 30 == 0 ? NAN : static_cast<float>(random() % 50) - 10.0f);
      }
    }
    for (int32_t h = 0; h < heads; ++h) s.keep.push_back(static_cast<int32_t>(random() % 220));
    s.protect = {.head_end = static_cast<int32_t>(random() % 5),
                 .recent = static_cast<int32_t>(random() % 40)};
    s.scope = random() % 4 == 0 ? SelectScope::kShare : SelectScope::kHead;
    s.floor = 3;
    s.pins = static_cast<int32_t>(random() % 5);
    s.run(*backend);
    int64_t shared = 0, allowed = 0;
    for (int32_t h = 0; h < heads; ++h) {
      const auto i = static_cast<size_t>(h);
      const std::vector<int32_t>& kept = s.kept[i];
      const int32_t limit = s.scope == SelectScope::kShare ? s.share[i] : s.keep[i];
      shared += limit;
      allowed += std::max(s.keep[i], std::max(3, s.protect.head_end + s.protect.recent));
      ASSERT_EQ(static_cast<int32_t>(kept.size()), std::min(limit, n));
      ASSERT_TRUE(std::is_sorted(kept.begin(), kept.end(), std::less_equal<>()));  // strictly increasing
      const std::set<int32_t> set(kept.begin(), kept.end());
      const int32_t num_protected = std::min(n, s.protect.head_end + s.protect.recent);
      if (num_protected <= limit) {
        for (int32_t j = 0; j < n; ++j) {
          ASSERT_TRUE((j >= s.protect.head_end && j < n - s.protect.recent) || set.count(j)) << "row " << j;
        }
      }
      for (const int32_t pin : s.new_pins[i]) ASSERT_TRUE(set.count(pin));
    }
    if (s.scope == SelectScope::kShare) {
      ASSERT_LE(shared, allowed);
    }
  }
}

TEST_P(Compact, InPlaceAndFromScratch) {
  const std::unique_ptr<Backend> backend = make(2);
  // In place, entries written too early are missed by threads that read later: which ones, the order of warps decides.
  const bool is_emulated = device_op_cases()[GetParam()].is_emulated;
  const struct {
    int32_t rows, paged;
    bool is_reversed = false;
  } turns[] = {{100, 0}, {100, 60}, {100, 100}, {100, 100, is_emulated}, {4000, 0}, {4000, 4000}};
  for (const auto& [rows, paged, is_reversed] : turns) {
    const emulator::Order before = emulator::options().order;
    if (is_reversed) emulator::options().order = emulator::Order::kReverse;
    EvictionCase c({.heads = 2, .kv_heads = 2, .dim = 8, .rows = rows, .paged = paged, .position_step = 1});
    c.store(*backend);
    std::mt19937 random(3);
    std::vector<int32_t> kept(static_cast<size_t>(2 * rows)), kept_len(2);
    std::vector<int64_t> moved(2, -1);
    for (int32_t h = 0; h < 2; ++h) {
      for (int32_t j = 0; j < rows; ++j) {
        if (j < 10 || (j > 10 && random() % 3 == 0))
          kept[static_cast<size_t>(h * rows + kept_len[static_cast<size_t>(h)]++)] = j;
      }
    }
    const CompactItem item{.rows = c.source(),
                           .kept = dense(kept.data(), DType::kI32, 2, rows),
                           .kept_len = kept_len.data(),
                           .destination = {.pages = c.pages.data(), .stride = c.stride},
                           .moved = moved.data()};
    backend->compact({.shape = c.attention(), .items = {&item, 1}, .cache = c.cache});
    emulator::options().order = before;
    for (int32_t h = 0; h < 2; ++h) {
      const auto i = static_cast<size_t>(h);
      // Entries that lie where they were are not written.
      EXPECT_EQ(moved[i], kept_len[i] - (paged == 0 ? 0 : 10)) << "paged " << paged;
      for (int32_t e = 0; e < kept_len[i]; ++e) {
        const int32_t row = kept[static_cast<size_t>(h * rows + e)];
        const int32_t page = c.pages[static_cast<size_t>(h * c.stride + e / c.cache.slots)],
                      slot = e % c.cache.slots;
        EXPECT_EQ(c.cache.positions(page)[slot], row);
        for (int32_t d = 0; d < 8; ++d) {
          ASSERT_EQ(reinterpret_cast<float*>(c.cache.keys(page))[slot * 8 + d],
                    c.k[static_cast<size_t>((row * 2 + h) * 8 + d)]);
          ASSERT_EQ(reinterpret_cast<float*>(c.cache.values(page))[slot * 8 + d],
                    c.v[static_cast<size_t>((row * 2 + h) * 8 + d)]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace restkv

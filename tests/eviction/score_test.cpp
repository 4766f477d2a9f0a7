// observe and score against the naive f64 formulas, and the numerical edge cases of eviction_math.md section 1.
#include "tests/eviction/score_case.h"

namespace restkv {
namespace {

using testing::CaseShape;
using testing::dtypes_of_column;
using testing::EvictionCase;
using testing::expect_close;
using testing::is_device_column;
using testing::run_score;
using testing::Score;
using testing::StepMemory;

INSTANTIATE_TEST_SUITE_P(Backends, Score, ::testing::Range(size_t{0}, device_op_cases().size()),
                         [](const auto& info) { return device_op_cases()[info.param].name; });

TEST_P(Score, EveryKindAgreesWithTheFormulas) {
  const std::unique_ptr<Backend> backend = make(2);
  const CaseShape shapes[] = {
      {},
      {.heads = 3, .kv_heads = 3, .dim = 8, .rows = 65, .queries = 1},
      {.heads = 6, .kv_heads = 2, .dim = 24, .rows = 90, .queries = 33, .paged = 50},
      {.heads = 4, .kv_heads = 1, .dim = 20, .rows = 40, .queries = 16, .paged = 40, .position_step = 3},
      {.heads = 2, .kv_heads = 1, .queries = 8, .softcap = 2.0f, .logit_scale = 4.0f},
      {.heads = 2, .kv_heads = 2, .rows = 80, .queries = 20, .window = 50},
      {.heads = 4, .kv_heads = 2, .dim = 40, .rows = 130, .queries = 35, .paged = 65, .dtype = DType::kF16},
      {.heads = 2, .kv_heads = 1, .dim = 136, .rows = 66, .queries = 5, .dtype = DType::kBF16},
      {.heads = 1, .kv_heads = 1, .dim = 256, .rows = 20, .queries = 2, .paged = 20, .dtype = DType::kF16},
      // as on a card, where tensor cores do it
      {.heads = 4,
       .kv_heads = 2,
       .dim = 40,
       .rows = 130,
       .queries = 35,
       .paged = 65,
       .dtype = DType::kF16,
       .has_half_queries = true},
      {.heads = 6,
       .kv_heads = 2,
       .dim = 24,
       .rows = 90,
       .queries = 20,
       .window = 50,
       .dtype = DType::kBF16,
       .has_half_queries = true},
      {.heads = 2,
       .kv_heads = 1,
       .dim = 128,
       .rows = 66,
       .queries = 33,
       .paged = 66,
       .softcap = 2.0f,
       .logit_scale = 4.0f,
       .dtype = DType::kBF16,
       .has_half_queries = true},
      {.heads = 1,
       .kv_heads = 1,
       .dim = 136,
       .rows = 66,
       .queries = 5,
       .dtype = DType::kBF16,
       .has_half_queries = true},
  };
  for (const CaseShape& shape : shapes) {
    if (shape.has_half_queries && !is_device_column(GetParam())) continue;
    if (shape.dim % device_op_cases()[GetParam()].head_dim_multiple != 0) continue;  // refused at load
    EvictionCase c(shape);
    c.store(*backend);
    for (const bool projected : {true, false}) {
      for (const bool is_plain : {true, false}) {
        ScoreSpec spec{
            .kind = ScoreKind::kIndicatorQuery, .tau = is_plain ? 1.0f : 1.5f, .normalize = !is_plain};
        const EvictionCase::Errors errors = c.errors(spec, projected);
        for (const QueryReduce reduce :
             {QueryReduce::kRms, QueryReduce::kMax, QueryReduce::kEma, QueryReduce::kMean}) {
          for (const GroupReduce group : {GroupReduce::kRss, GroupReduce::kMax, GroupReduce::kMean}) {
            if (shape.dim > 64 && (reduce != QueryReduce::kRms || group != GroupReduce::kRss)) continue;
            SCOPED_TRACE(::testing::Message()
                         << "rows " << shape.rows << " reduce " << static_cast<int>(reduce) << " group "
                         << static_cast<int>(group) << " projected " << projected << " tau " << spec.tau);
            spec.reduce = reduce;
            spec.group = group;
            expect_close(run_score(*backend, c, spec, 0, projected), c.joined(spec, errors), 2e-4);
          }
        }
      }
    }
    for (const QueryReduce reduce : {QueryReduce::kEma, QueryReduce::kMean}) {
      const ScoreSpec spec{.kind = ScoreKind::kIndicatorAfter, .reduce = reduce};
      SCOPED_TRACE(::testing::Message() << "after, rows " << shape.rows);
      if (shape.window == 0) {
        expect_close(run_score(*backend, c, spec, shape.queries), c.expected(spec, shape.queries, true),
                     2e-4);
      }
    }
    const ScoreSpec attention{.kind = ScoreKind::kAttention};
    expect_close(run_score(*backend, c, attention), c.expected(attention, 0, true), 2e-4);
  }
}

// Rows and queries of one 16-bit type over several parts of the rows: groups of any size, windows, caps, blocks of queries.
TEST_P(Score, PartsOfHalfRowsAgreeWithTheFormulas) {
  if (!is_device_column(GetParam())) GTEST_SKIP() << "a device's types";
  const std::unique_ptr<Backend> backend = make(2);
  const CaseShape shapes[] = {
      {.heads = 1, .kv_heads = 1, .rows = 300, .queries = 1, .paged = 150, .dtype = DType::kF16},
      {.heads = 3,
       .kv_heads = 1,
       .dim = 8,
       .rows = 290,
       .queries = 33,
       .paged = 290,
       .logit_scale = 3.0f,
       .dtype = DType::kBF16},
      {.heads = 6, .kv_heads = 1, .rows = 200, .queries = 20, .window = 60, .dtype = DType::kF16},
      {.heads = 8,
       .kv_heads = 1,
       .dim = 8,
       .rows = 150,
       .queries = 100,
       .softcap = 2.0f,
       .dtype = DType::kBF16},
      {.heads = 4,
       .kv_heads = 2,
       .dim = 72,
       .rows = 170,
       .queries = 8,
       .paged = 33,
       .logit_scale = 4.0f,
       .dtype = DType::kF16},
  };
  for (CaseShape shape : shapes) {
    shape.has_half_queries = true;
    EvictionCase c(shape);
    c.store(*backend);
    SCOPED_TRACE(::testing::Message() << "heads " << shape.heads << " rows " << shape.rows);
    for (const ScoreKind kind :
         {ScoreKind::kIndicatorQuery, ScoreKind::kIndicatorAfter, ScoreKind::kAttention}) {
      if (kind == ScoreKind::kIndicatorAfter && shape.window != 0) continue;
      ScoreSpec spec{.kind = kind, .reduce = QueryReduce::kMean};
      SCOPED_TRACE(::testing::Message() << "kind " << static_cast<int>(kind));
      expect_close(run_score(*backend, c, spec, shape.queries), c.expected(spec, shape.queries, true), 2e-4);
      if (kind != ScoreKind::kIndicatorQuery) continue;
      spec.normalize = true;
      expect_close(run_score(*backend, c, spec), c.expected(spec, 0, true), 2e-4);
    }
  }
}

// Values and projection over any power of two: f16, in which a card multiplies them, has not their range.
TEST_P(Score, ScaleOfValuesAndProjectionIsThatOfTheScores) {
  const std::unique_ptr<Backend> backend = make(1);
  const ScoreSpec spec{.kind = ScoreKind::kIndicatorQuery};
  for (const DType dtype : dtypes_of_column(GetParam())) {
    EvictionCase c({.rows = 70, .queries = 6, .dtype = dtype, .has_half_queries = dtype != DType::kF32});
    const std::vector<float> before = run_score(*backend, c, spec);
    for (std::vector<float>* numbers : {&c.w_o, &c.v}) {
      if (numbers == &c.v && dtype == DType::kF16) continue;  // its own range is as small
      for (const float power : {0x1p40f, 0x1p-40f}) {
        for (float& x : *numbers) x *= power;
        const std::vector<float> got = run_score(*backend, c, spec);
        for (float& x : *numbers) x /= power;
        for (size_t i = 0; i < got.size(); ++i)
          EXPECT_NEAR(got[i] / power, before[i], 1e-5f * before[i]) << i << " power " << power;
      }
    }
  }
}

// More rows than one pass of a kernel takes: partial results are merged, whichever part holds a query's top row.
TEST_P(Score, ManyRows) {
  const std::unique_ptr<Backend> backend = make(2);
  for (const DType dtype : dtypes_of_column(GetParam())) {
    EvictionCase c({.heads = 2,
                    .kv_heads = 1,
                    .dim = 8,
                    .rows = 2300,
                    .queries = 3,
                    .paged = 1000,
                    .logit_scale = 3.0f,
                    .dtype = dtype,
                    .has_half_queries = dtype != DType::kF32});
    for (int32_t t = 0; t < 3; ++t) {  // tops in the first part, in the last, and large logits in both
      for (int32_t d = 0; d < 8; ++d) {
        const float q = c.q[static_cast<size_t>(t * 16 + d)];
        if (t != 1) c.k[static_cast<size_t>(70 * 8 + d)] += 2.0f * q;
        if (t != 0) c.k[static_cast<size_t>(2200 * 8 + d)] += 2.0f * q;
      }
    }
    c.round_rows();
    c.store(*backend);
    for (const ScoreKind kind :
         {ScoreKind::kIndicatorQuery, ScoreKind::kIndicatorAfter, ScoreKind::kAttention}) {
      const ScoreSpec spec{.kind = kind, .reduce = QueryReduce::kMean};
      SCOPED_TRACE(::testing::Message() << static_cast<int>(kind) << " of " << dtype_info(dtype).name);
      expect_close(run_score(*backend, c, spec, 3, false), c.expected(spec, 3, false), 2e-4);
    }
  }
}

// Of rows with one largest logit the oldest is the top, in a tile and in other parts of the rows; the others are of the rest.
// What was the top before a larger one came is of the rest too, with its value.
TEST_P(Score, OldestOfEqualRowsIsTheTop) {
  const std::unique_ptr<Backend> backend = make(2);
  for (const DType dtype : dtypes_of_column(GetParam())) {
    EvictionCase c({.heads = 3,
                    .kv_heads = 1,
                    .dim = 16,
                    .rows = 600,
                    .queries = 20,
                    .paged = 300,
                    .dtype = dtype,
                    .has_half_queries = dtype != DType::kF32});
    for (float& x : c.q) x = 0.25f * x + 3.0f;
    c.round_queries();
    // A stair of larger logits, each a top for a while; the last step four times.
    const std::pair<size_t, float> steps[] = {{0, 0.25f}, {37, 0.5f},  {70, 1.0f},  {71, 1.5f},
                                              {99, 2.0f}, {101, 2.0f}, {128, 2.0f}, {515, 2.0f}};
    for (const auto& [row, value] : steps)
      std::fill_n(c.k.begin() + static_cast<int64_t>(row * 16), 16, value);
    for (const size_t row : {size_t{1}, size_t{36}, size_t{300}}) {
      std::fill_n(c.k.begin() + static_cast<int64_t>(row * 16), 16, -2.0f);
    }
    c.store(*backend);
    const ScoreSpec spec{.kind = ScoreKind::kIndicatorQuery};
    StepMemory memory(c.attention(), spec.kind, 20, 600);
    const ObserveItem item{.rows = c.source(), .queries = c.queries(), .out = memory.observation};
    backend->observe({.shape = c.attention(), .spec = spec, .items = {&item, 1}, .cache = c.cache});
    SCOPED_TRACE(dtype_info(dtype).name);
    const Observation& o = memory.observation;
    for (int32_t head = 0; head < 3; ++head) {
      const auto attention = c.attention_of(head);
      for (size_t t = 0; t < 20; ++t) {
        const auto at = static_cast<size_t>(head * o.rest.stride) + t;
        const double share = attention[t][99];
        EXPECT_EQ(static_cast<const int32_t*>(o.top.data)[at], 99) << "head " << head << " query " << t;
        const double rest = (1.0 - share) / share;
        EXPECT_NEAR(static_cast<double>(static_cast<const float*>(o.rest.data)[at]), rest, 2e-5 * rest);
      }
    }
    expect_close(run_score(*backend, c, spec), c.expected(spec, 0, true), 2e-4);
  }
}

// Rows whose place is settled get 0, the others what they get without.
TEST_P(Score, ProtectedAndDeadRowsAreNotScored) {
  const std::unique_ptr<Backend> backend = make(3);
  const bool is_half = is_device_column(GetParam());
  EvictionCase c({.heads = 6,
                  .kv_heads = 2,
                  .rows = 300,
                  .queries = 20,
                  .paged = 170,
                  .logit_scale = 3.0f,
                  .dtype = is_half ? DType::kF16 : DType::kF32,
                  .has_half_queries = is_half});
  c.store(*backend);
  const std::vector<int32_t> pins = {9, 10, 64, 180, /*head 1*/ 12, 70, -1, -1}, num_pins = {4, 2};
  const ProtectedRows protect{.head_end = 12,
                              .tail_begin = 100,
                              .tail_end = 133,
                              .recent = 32,
                              .dead_before = 5,
                              .pins = pins.data(),
                              .pin_stride = 4,
                              .num_pins = num_pins.data()};
  for (const ScoreKind kind : {ScoreKind::kIndicatorQuery, ScoreKind::kIndicatorAfter}) {
    const ScoreSpec spec{.kind = kind, .reduce = QueryReduce::kMean};
    const std::vector<float> all = run_score(*backend, c, spec, 20);
    const std::vector<float> got = run_score(*backend, c, spec, 20, true, nullptr, protect);
    for (int32_t head = 0; head < 2; ++head) {
      for (int32_t row = 0; row < 300; ++row) {
        const int32_t* pin = pins.data() + head * 4;
        const bool is_pinned = std::find(pin, pin + num_pins[static_cast<size_t>(head)], row) !=
                               pin + num_pins[static_cast<size_t>(head)];
        const bool is_settled = row < 12 || (row >= 100 && row < 133) || row >= 268 || is_pinned;
        const auto i = static_cast<size_t>(head * 300 + row);
        EXPECT_EQ(got[i], is_settled ? 0.0f : all[i]) << "head " << head << " row " << row;
      }
    }
  }
}

// A head that keeps all of its rows may be left out: its rows have 0 then, the other heads what they have without.
TEST_P(Score, HeadsThatKeepTheirRows) {
  const std::unique_ptr<Backend> backend = make(3);
  const bool is_half = is_device_column(GetParam());
  EvictionCase c({.heads = 6,
                  .kv_heads = 2,
                  .rows = 150,
                  .queries = 20,
                  .paged = 150,
                  .dtype = is_half ? DType::kF16 : DType::kF32,
                  .has_half_queries = is_half});
  c.store(*backend);
  for (const ScoreKind kind : {ScoreKind::kIndicatorQuery, ScoreKind::kIndicatorAfter}) {
    const ScoreSpec spec{.kind = kind, .reduce = QueryReduce::kMean};
    const std::vector<float> all = run_score(*backend, c, spec, 20);
    for (const std::array<int32_t, 2> keep :
         {std::array{150, 149}, std::array{100, 200}, std::array{150, 150}}) {
      const std::vector<float> got = run_score(*backend, c, spec, 20, true, nullptr, {}, keep.data());
      for (size_t i = 0; i < got.size(); ++i) {
        const bool is_left_out = keep[i / 150] >= 150 && !is_half;
        EXPECT_EQ(got[i], is_left_out ? 0.0f : all[i]) << "head " << i / 150 << " row " << i % 150;
      }
    }
  }
}

// One row takes nearly all attention: 1 - a has no digits left in f32, the exact form keeps them.
TEST_P(Score, SingularRowKeepsItsDigits) {
  const std::unique_ptr<Backend> backend = make(1);
  for (const DType dtype : dtypes_of_column(GetParam())) {
    for (const float sharpness : {8.0f, 14.0f, 20.0f, 40.0f}) {
      EvictionCase c({.heads = 2,
                      .kv_heads = 1,
                      .dim = 16,
                      .rows = 50,
                      .queries = 4,
                      .dtype = dtype,
                      .has_half_queries = dtype != DType::kF32});
      for (int32_t d = 0; d < 16; ++d) {
        c.k[static_cast<size_t>(7 * 16 + d)] = 1.0f;
        for (int32_t t = 0; t < 8; ++t)
          c.q[static_cast<size_t>(t * 16 + d)] = 0.1f * c.q[static_cast<size_t>(t * 16 + d)] + sharpness / 4;
      }
      c.round_queries();
      for (const GroupReduce group : {GroupReduce::kRss, GroupReduce::kMax}) {
        const ScoreSpec spec{.kind = ScoreKind::kIndicatorQuery, .reduce = QueryReduce::kRms, .group = group};
        const std::vector<float> got = run_score(*backend, c, spec);
        const auto want = c.expected(spec, 0, true);
        EXPECT_GT(c.attention_of(0)[0][7], 0.9);
        EXPECT_NEAR(static_cast<double>(got[7]), want[0][7], 2e-4 * want[0][7])
            << dtype_info(dtype).name << " sharpness " << sharpness;
      }
    }
  }
}

TEST_P(Score, RowWhoseOthersUnderflowIsMandatory) {
  const std::unique_ptr<Backend> backend = make(1);
  for (const DType dtype : dtypes_of_column(GetParam())) {
    EvictionCase c({.heads = 1,
                    .kv_heads = 1,
                    .dim = 16,
                    .rows = 30,
                    .queries = 2,
                    .dtype = dtype,
                    .has_half_queries = dtype != DType::kF32});
    for (int32_t d = 0; d < 16; ++d) {
      c.k[static_cast<size_t>(7 * 16 + d)] = 40.0f;
      for (int32_t t = 0; t < 2; ++t) c.q[static_cast<size_t>(t * 16 + d)] = 40.0f;
    }
    const std::vector<float> got = run_score(*backend, c, {.kind = ScoreKind::kIndicatorQuery});
    EXPECT_TRUE(std::isinf(got[7]));
    for (size_t j = 0; j < got.size(); ++j) EXPECT_TRUE(j == 7 || std::isfinite(got[j])) << j;
  }
}

TEST_P(Score, QueriesThatSeeNothingAreSkipped) {
  const std::unique_ptr<Backend> backend = make(1);
  for (const DType dtype : dtypes_of_column(GetParam())) {
    EvictionCase c({.rows = 40, .queries = 6, .dtype = dtype, .has_half_queries = dtype != DType::kF32});
    for (size_t t = 0; t < 3; ++t) c.positions[t] = -1;  // before every row
    for (const QueryReduce reduce : {QueryReduce::kRms, QueryReduce::kMean, QueryReduce::kEma}) {
      const ScoreSpec spec{.kind = ScoreKind::kIndicatorQuery, .reduce = reduce};
      expect_close(run_score(*backend, c, spec), c.expected(spec, 0, true), 2e-4);
    }
    for (int32_t& p : c.positions) p = -1;
    for (const float s : run_score(*backend, c, {.kind = ScoreKind::kIndicatorQuery})) EXPECT_EQ(s, 0.0f);
  }
}

TEST_P(Score, NanRowsShow) {
  const std::unique_ptr<Backend> backend = make(1);
  for (const DType dtype : dtypes_of_column(GetParam())) {
    EvictionCase c({.rows = 40, .queries = 6, .dtype = dtype, .has_half_queries = dtype != DType::kF32});
    c.k[5] = NAN;
    const std::vector<float> got = run_score(*backend, c, {.kind = ScoreKind::kIndicatorQuery});
    EXPECT_TRUE(std::isnan(got[0]));
  }
}

}  // namespace
}  // namespace restkv

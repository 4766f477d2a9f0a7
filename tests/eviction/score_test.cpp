// observe and score against the naive f64 formulas, and the numerical edge cases of eviction_math.md section 1.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <cstring>

#include "tests/eviction/eviction_case.h"

namespace restkv {
namespace {

using testing::CaseShape;
using testing::EvictionCase;
using testing::StepMemory;

class Score : public testing::EvictionOps {};
INSTANTIATE_TEST_SUITE_P(Backends, Score, ::testing::Range(size_t{0}, device_op_cases().size()),
                         [](const auto& info) { return device_op_cases()[info.param].name; });

// Whether the column's activations may be of 16 bits.
bool is_device_column(size_t index) { return device_op_cases()[index].is_device; }

std::vector<float> projection_of(Backend& backend, const EvictionCase& c) {
  const int64_t cols = int64_t{c.shape_.heads} * c.shape_.dim;
  std::vector<float> r(static_cast<size_t>(cols * c.shape_.dim));
  backend.factor_projection({.weight = dense(c.w_o.data(), DType::kF32, c.shape_.model_dim, cols),
                             .num_heads = c.shape_.heads,
                             .out = dense(r.data(), DType::kF32, cols, c.shape_.dim)});
  return r;
}

std::vector<float> run_score(Backend& backend, const EvictionCase& c, const ScoreSpec& spec,
                             int32_t window_rows = 0, bool in_output_space = true,
                             const QuerySource* queries = nullptr, const ProtectedRows& protect = {},
                             const int32_t* keep = nullptr) {
  const std::vector<float> projection = in_output_space ? projection_of(backend, c) : std::vector<float>();
  const ConstTensor r =
      in_output_space ? dense(projection.data(), DType::kF32, c.shape_.heads * c.shape_.dim, c.shape_.dim)
                      : ConstTensor{};
  const auto run = [&](bool with_logits) {
    StepMemory memory(c.attention(), spec.kind, c.shape_.queries, c.shape_.rows, with_logits);
    const QuerySource q = queries ? *queries : c.queries();
    const ObserveItem observe{.rows = c.source(),
                              .queries = q,
                              .projection = r,
                              .window_rows = window_rows,
                              .keep = keep,
                              .out = memory.observation};
    if (needs_observation(spec.kind))
      backend.observe({.shape = c.attention(), .spec = spec, .items = {&observe, 1}, .cache = c.cache});
    const ScoreItem score{.rows = c.source(),
                          .queries = q,
                          .projection = r,
                          .window_rows = window_rows,
                          .protect = protect,
                          .keep = keep,
                          .observation = memory.observation,
                          .out = memory.out};
    backend.score({.shape = c.attention(), .spec = spec, .items = {&score, 1}, .cache = c.cache});
    return memory.scores;
  };
  const std::vector<float> scores = run(false);
  if (backend.keeps_logits() && spec.kind == ScoreKind::kIndicatorQuery) {
    const std::vector<float> from_logits = run(true);
    EXPECT_EQ(std::memcmp(scores.data(), from_logits.data(), scores.size() * 4), 0)
        << "kept logits change bits";
  }
  return scores;
}

void expect_close(const std::vector<float>& got, const std::vector<std::vector<double>>& want,
                  double tolerance) {
  size_t i = 0;
  for (const auto& head : want) {
    const double largest = *std::max_element(head.begin(), head.end());
    for (const double expected : head) {
      EXPECT_NEAR(static_cast<double>(got[i]), expected, tolerance * (std::abs(expected) + 1e-3 * largest))
          << "value " << i;
      ++i;
    }
  }
}

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
    for (const QueryReduce reduce :
         {QueryReduce::kRms, QueryReduce::kMax, QueryReduce::kEma, QueryReduce::kMean}) {
      for (const GroupReduce group : {GroupReduce::kRss, GroupReduce::kMax, GroupReduce::kMean}) {
        if (shape.dim > 64 && (reduce != QueryReduce::kRms || group != GroupReduce::kRss)) continue;  // slow
        for (const bool projected : {true, false}) {
          ScoreSpec spec{.kind = ScoreKind::kIndicatorQuery, .reduce = reduce, .group = group};
          SCOPED_TRACE(::testing::Message()
                       << "rows " << shape.rows << " reduce " << static_cast<int>(reduce) << " group "
                       << static_cast<int>(group) << " projected " << projected);
          expect_close(run_score(*backend, c, spec, 0, projected), c.expected(spec, 0, projected), 2e-4);
          spec.tau = 1.5f;
          spec.normalize = true;
          expect_close(run_score(*backend, c, spec, 0, projected), c.expected(spec, 0, projected), 2e-4);
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

// More rows than one pass of a kernel takes: partial results are merged, whichever part holds a query's top row.
TEST_P(Score, ManyRows) {
  const std::unique_ptr<Backend> backend = make(2);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    if (dtype != DType::kF32 && !is_device_column(GetParam())) continue;
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
    c.round_keys();
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
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    if (dtype != DType::kF32 && !is_device_column(GetParam())) continue;
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
  for (const bool is_half : {false, true})
    for (const float sharpness : {8.0f, 14.0f, 20.0f, 40.0f}) {
      if (is_half && !is_device_column(GetParam())) continue;
      EvictionCase c({.heads = 2,
                      .kv_heads = 1,
                      .dim = 16,
                      .rows = 50,
                      .queries = 4,
                      .dtype = is_half ? DType::kBF16 : DType::kF32,
                      .has_half_queries = is_half});
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
        EXPECT_NEAR(static_cast<double>(got[7]), want[0][7], 2e-4 * want[0][7]) << "sharpness " << sharpness;
      }
    }
}

TEST_P(Score, RowWhoseOthersUnderflowIsMandatory) {
  const std::unique_ptr<Backend> backend = make(1);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    if (dtype != DType::kF32 && !is_device_column(GetParam())) continue;
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
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    if (dtype != DType::kF32 && !is_device_column(GetParam())) continue;
    EvictionCase c({.rows = 40,
                    .queries = 6,
                    .position_step = 1,
                    .dtype = dtype,
                    .has_half_queries = dtype != DType::kF32});
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
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    if (dtype != DType::kF32 && !is_device_column(GetParam())) continue;
    EvictionCase c({.rows = 40, .queries = 6, .dtype = dtype, .has_half_queries = dtype != DType::kF32});
    c.k[5] = NAN;
    const std::vector<float> got = run_score(*backend, c, {.kind = ScoreKind::kIndicatorQuery});
    EXPECT_TRUE(std::isnan(got[0]));
  }
}

TEST_P(Score, NeitherThreadsNorPagesNorNeighboursChangeABit) {
  const std::unique_ptr<Backend> one = make(1), three = make(3);
  for (const auto& [kind, dtype] :
       std::initializer_list<std::pair<ScoreKind, DType>>{{ScoreKind::kIndicatorQuery, DType::kF32},
                                                          {ScoreKind::kIndicatorAfter, DType::kF32},
                                                          {ScoreKind::kAttention, DType::kF32},
                                                          {ScoreKind::kIndicatorQuery, DType::kF16},
                                                          {ScoreKind::kIndicatorQuery, DType::kBF16}}) {
    const bool is_half = dtype != DType::kF32;
    if (is_half && !is_device_column(GetParam())) continue;
    SCOPED_TRACE(dtype_info(dtype).name);
    const ScoreSpec spec{.kind = kind, .reduce = QueryReduce::kEma};
    EvictionCase scratch(
        {.heads = 6, .kv_heads = 2, .rows = 700, .queries = 32, .dtype = dtype, .has_half_queries = is_half});
    EvictionCase paged({.heads = 6,
                        .kv_heads = 2,
                        .rows = 700,
                        .queries = 32,
                        .paged = 700,
                        .dtype = dtype,
                        .has_half_queries = is_half});
    EvictionCase half({.heads = 6,
                       .kv_heads = 2,
                       .rows = 700,
                       .queries = 32,
                       .paged = 333,
                       .dtype = dtype,
                       .has_half_queries = is_half});
    paged.store(*three);
    half.store(*three);
    const std::vector<float> want = run_score(*one, scratch, spec, 32);
    EXPECT_EQ(run_score(*three, scratch, spec, 32), want);
    EXPECT_EQ(run_score(*three, paged, spec, 32), want);
    EXPECT_EQ(run_score(*three, half, spec, 32), want);

    // As the second of three items.
    const std::vector<float> projection = projection_of(*three, scratch);
    const ConstTensor r = dense(projection.data(), DType::kF32, 6 * 16, 16);
    EvictionCase other({.heads = 6,
                        .kv_heads = 2,
                        .rows = 90,
                        .queries = 5,
                        .seed = 9,
                        .dtype = dtype,
                        .has_half_queries = is_half});
    StepMemory m0(other.attention(), kind, 5, 90), m1(scratch.attention(), kind, 32, 700),
        m2(other.attention(), kind, 5, 90);
    const ObserveItem observes[] = {{.rows = other.source(),
                                     .queries = other.queries(),
                                     .projection = r,
                                     .window_rows = 5,
                                     .out = m0.observation},
                                    {.rows = scratch.source(),
                                     .queries = scratch.queries(),
                                     .projection = r,
                                     .window_rows = 32,
                                     .out = m1.observation},
                                    {.rows = other.source(),
                                     .queries = other.queries(),
                                     .projection = r,
                                     .window_rows = 5,
                                     .out = m2.observation}};
    three->observe({.shape = scratch.attention(), .spec = spec, .items = observes});
    const ScoreItem scores[] = {{.rows = other.source(),
                                 .queries = other.queries(),
                                 .projection = r,
                                 .window_rows = 5,
                                 .observation = m0.observation,
                                 .out = m0.out},
                                {.rows = scratch.source(),
                                 .queries = scratch.queries(),
                                 .projection = r,
                                 .window_rows = 32,
                                 .observation = m1.observation,
                                 .out = m1.out},
                                {.rows = other.source(),
                                 .queries = other.queries(),
                                 .projection = r,
                                 .window_rows = 5,
                                 .observation = m2.observation,
                                 .out = m2.out}};
    three->score({.shape = scratch.attention(), .spec = spec, .items = scores});
    EXPECT_EQ(m1.scores, want);
    EXPECT_EQ(m0.scores, m2.scores);
  }
}

// The ring gives the queries that were stored last, bit for bit (of the cache's type).
TEST_P(Score, RingGivesTheLastQueries) {
  const std::unique_ptr<Backend> backend = make(2);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    if (dtype != DType::kF32 && !is_device_column(GetParam())) continue;
    EvictionCase c({.heads = 6,
                    .kv_heads = 2,
                    .dim = 16,
                    .rows = 120,
                    .queries = 20,
                    .paged = 120,
                    .dtype = dtype,
                    .has_half_queries = dtype != DType::kF32});
    c.store(*backend);
    constexpr int32_t kWindow = 12;
    const int32_t stride = QueryRing::num_pages(kWindow, 3, backend->page_slots());
    EXPECT_EQ(stride, (12 * 3 + 2 * backend->page_slots() - 1) / (2 * backend->page_slots()));
    std::vector<int32_t> pages;
    for (int32_t i = 0; i < 2 * stride; ++i) pages.push_back(i * 2);  // even pages are free
    const QueryRing ring{.pages = pages.data(), .stride = stride, .window = kWindow};
    // 20 queries in two pieces; only the last 12 stay.
    const StoreQueriesSegment first{.row_begin = 0, .num_rows = 15, .ring = ring},
        second{.row_begin = 15, .num_rows = 5, .ring = ring};
    for (const StoreQueriesSegment& segment : {first, second}) {
      backend->store_queries({.shape = c.attention(),
                              .q = c.queries().rows,
                              .positions = c.positions,
                              .segments = {&segment, 1},
                              .cache = c.cache});
    }
    const std::span<const int32_t> last(c.positions.data() + 8, kWindow);
    const QuerySource from_ring{.ring = ring, .positions = last};
    const ConstTensor all = c.queries().rows;
    const std::byte* rows = static_cast<const std::byte*>(all.data) + 8 * bytes_of(dtype, all.stride);
    const QuerySource from_rows{.rows = dense(rows, dtype, kWindow, 6 * 16), .positions = last};
    const ScoreSpec spec{.kind = ScoreKind::kIndicatorQuery};
    EXPECT_EQ(run_score(*backend, c, spec, 0, true, &from_ring),
              run_score(*backend, c, spec, 0, true, &from_rows));
  }
}

// h2o's pass over the queries of a prompt: the same sums however it is cut.
TEST_P(Score, AttentionSumsDoNotDependOnTheCut) {
  const std::unique_ptr<Backend> backend = make(2);
  EvictionCase c({.heads = 4, .kv_heads = 2, .rows = 100, .queries = 100});
  const auto sums_of = [&](const std::vector<int32_t>& pieces) {
    std::vector<float> sums(200, 0.0f);
    int32_t begin = 0;
    for (const int32_t count : pieces) {
      StepMemory memory(c.attention(), ScoreKind::kAttention, count, 100);
      RowSource rows = c.source();
      rows.k.rows = rows.v.rows = begin + count;  // the rows so far
      const QuerySource queries{.rows = dense(c.q.data() + begin * 4 * 16, DType::kF32, count, 4 * 16),
                                .positions = {c.positions.data() + begin, static_cast<size_t>(count)}};
      const ScoreSpec spec{.kind = ScoreKind::kAttention};
      const ObserveItem observe{.rows = rows, .queries = queries, .out = memory.observation};
      backend->observe({.shape = c.attention(), .spec = spec, .items = {&observe, 1}});
      const ScoreItem score{.rows = rows,
                            .queries = queries,
                            .accumulate = true,
                            .observation = memory.observation,
                            .out = dense(sums.data(), DType::kF32, 2, 100)};
      backend->score({.shape = c.attention(), .spec = spec, .items = {&score, 1}});
      begin += count;
    }
    return sums;
  };
  const std::vector<float> whole = sums_of({100});
  for (const std::vector<int32_t>& pieces :
       {std::vector<int32_t>{1, 16, 33, 50}, std::vector<int32_t>{64, 36}}) {
    const std::vector<float> sums = sums_of(pieces);
    for (size_t i = 0; i < 200; ++i) {
      if (device_op_cases()[GetParam()].is_exact) {
        EXPECT_EQ(sums[i], whole[i]) << i;
      } else {
        EXPECT_NEAR(sums[i], whole[i], 1e-6f * whole[i]) << i;
      }
    }
  }
  const auto want = c.expected({.kind = ScoreKind::kAttention}, 0, true);
  for (size_t i = 0; i < 200; ++i) EXPECT_NEAR(static_cast<double>(whole[i]), want[i / 100][i % 100], 1e-4);
}

TEST_P(Score, ScoresOfPositionsAlone) {
  const std::unique_ptr<Backend> backend = make(1);
  EvictionCase c({.rows = 50, .position_step = 2});
  EvictionCase paged({.rows = 50, .paged = 50, .position_step = 2});
  paged.store(*backend);
  const std::vector<float> recency = run_score(*backend, paged, {.kind = ScoreKind::kRecency});
  for (size_t j = 0; j < 50; ++j) EXPECT_EQ(recency[j], static_cast<float>(2 * j));
  std::vector<float> hashes = run_score(*backend, paged, {.kind = ScoreKind::kHash});
  for (const float h : hashes) EXPECT_TRUE(h >= 0.0f && h < 1.0f);
  std::sort(hashes.begin(), hashes.end());
  EXPECT_EQ(std::unique(hashes.begin(), hashes.end()), hashes.end());
}

}  // namespace
}  // namespace restkv

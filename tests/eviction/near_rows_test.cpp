// Distances between rows and outputs that lie close together: score against the naive f64 formulas.
#include "tests/eviction/score_case.h"

namespace restkv {
namespace {

using testing::dtypes_of_column;
using testing::EvictionCase;
using testing::run_score;

class ScoreOfNearRows : public testing::EvictionOps {};
INSTANTIATE_TEST_SUITE_P(Backends, ScoreOfNearRows, ::testing::Range(size_t{0}, device_op_cases().size()),
                         [](const auto& info) { return device_op_cases()[info.param].name; });

// All queries look nearly only at `rows`, which have one value: p is within about a hundredth of their u.
EvictionCase near_case(DType dtype, int32_t dim, const std::vector<int64_t>& rows, bool has_value) {
  EvictionCase c({.heads = 2,
                  .kv_heads = 1,
                  .dim = dim,
                  .rows = 140,
                  .queries = 34,
                  .model_dim = 2 * dim,
                  .paged = 60,
                  .logit_scale = 0.25f,
                  .dtype = dtype,
                  .has_half_queries = dtype != DType::kF32});
  const auto wave = [](size_t d) { return std::cos(2.0f * static_cast<float>(d)); };
  const auto width = static_cast<size_t>(dim);
  for (size_t i = 0; i < c.q.size(); ++i) c.q[i] += wave(i % width);
  for (size_t i = 0; i < c.v.size(); ++i)  // a large common mean
    c.v[i] += 10.0f * std::sin(1.0f + 3.0f * static_cast<float>(i % width));
  const float logit = 10.0f - std::log(static_cast<float>(rows.size()));
  for (const int64_t row : rows) {
    float* key = c.k.data() + row * dim;
    float* value = c.v.data() + row * dim;
    for (size_t d = 0; d < width; ++d) {
      key[d] = logit * 2.0f / std::sqrt(static_cast<float>(dim)) * wave(d);
      value[d] = has_value ? c.v[static_cast<size_t>(rows[0] * dim) + d] : 1e-3f;
    }
  }
  c.round_rows();
  c.round_queries();
  return c;
}

// Where ||p - u||^2 is small beside ||p||^2 and ||u||^2 the expanded square has lost its digits: rows like those that the queries
// look at, and sinks without a value that have nearly half of the attention each.
TEST_P(ScoreOfNearRows, KeepsItsDigits) {
  const std::unique_ptr<Backend> backend = make(2);
  for (const DType dtype : dtypes_of_column(GetParam())) {
    for (const int32_t dim : {16, 72}) {
      for (const bool is_sink : {false, true}) {
        EvictionCase c =
            is_sink ? near_case(dtype, dim, {0, 1}, false) : near_case(dtype, dim, {30, 31, 32, 100}, true);
        c.store(*backend);
        for (const bool projected : {true, false}) {
          const EvictionCase::Errors errors = c.errors({}, projected);
          for (const QueryReduce reduce : {QueryReduce::kRms, QueryReduce::kMax}) {
            SCOPED_TRACE(::testing::Message()
                         << dtype_info(dtype).name << " dim " << dim << " sinks " << is_sink << " reduce "
                         << static_cast<int>(reduce) << " projected " << projected);
            const ScoreSpec spec{.kind = ScoreKind::kIndicatorQuery, .reduce = reduce};
            const std::vector<float> got = run_score(*backend, c, spec, 0, projected);
            const std::vector<double> want = c.joined(spec, errors)[0];
            for (size_t row = 0; row < got.size(); ++row)
              EXPECT_NEAR(static_cast<double>(got[row]), want[row], 2e-4 * want[row]) << row;
          }
        }
      }
    }
  }
}

// Rows that all have one value are at distance 0 from what any query sees of them.
TEST_P(ScoreOfNearRows, IsNothingWhereAllAreEqual) {
  const std::unique_ptr<Backend> backend = make(1);
  for (const DType dtype : dtypes_of_column(GetParam())) {
    EvictionCase c({.rows = 150, .queries = 6, .dtype = dtype, .has_half_queries = dtype != DType::kF32});
    const std::vector<float> before = run_score(*backend, c, {.kind = ScoreKind::kIndicatorQuery});
    for (size_t i = 32; i < c.v.size(); ++i) c.v[i] = c.v[i % 32];
    const std::vector<float> got = run_score(*backend, c, {.kind = ScoreKind::kIndicatorQuery});
    for (size_t row = 0; row < got.size(); ++row) EXPECT_LE(got[row], 2e-5f * before[row]) << row;
  }
}

}  // namespace
}  // namespace restkv

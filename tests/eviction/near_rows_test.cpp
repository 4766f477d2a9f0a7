// Distances between rows and outputs that lie close together: score against the naive f64 formulas.
#include "tests/eviction/score_case.h"

namespace restkv {
namespace {

using testing::EvictionCase;
using testing::is_device_column;
using testing::run_score;

class ScoreOfNearRows : public testing::EvictionOps {};
INSTANTIATE_TEST_SUITE_P(Backends, ScoreOfNearRows, ::testing::Range(size_t{0}, device_op_cases().size()),
                         [](const auto& info) { return device_op_cases()[info.param].name; });

// Where ||p - u||^2 is small beside ||p||^2 and ||u||^2 the expanded square has lost its digits: rows like those that the queries
// look at, sinks without a value, values with a large common mean, two rows that have nearly half of the attention each.
TEST_P(ScoreOfNearRows, KeepsItsDigits) {
  const std::unique_ptr<Backend> backend = make(2);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    if (dtype != DType::kF32 && !is_device_column(GetParam())) continue;
    for (const int32_t dim : {16, 72}) {
      EvictionCase c({.heads = 2,
                      .kv_heads = 1,
                      .dim = dim,
                      .rows = 140,
                      .queries = 34,
                      .model_dim = 2 * dim,
                      .paged = 60,
                      .dtype = dtype,
                      .has_half_queries = dtype != DType::kF32});
      const auto at = [&](size_t row, int32_t d) {
        return row * static_cast<size_t>(dim) + static_cast<size_t>(d);
      };
      for (size_t i = 0; i < c.q.size(); ++i)
        c.q[i] += std::cos(2.0f * static_cast<float>(i % static_cast<size_t>(dim)));
      const auto attract = [&](size_t row, float logit) {
        for (int32_t d = 0; d < dim; ++d)
          c.k[at(row, d)] =
              logit * 2.0f / std::sqrt(static_cast<float>(dim)) * std::cos(2.0f * static_cast<float>(d));
      };
      for (size_t row = 0; row < 140; ++row) {
        for (int32_t d = 0; d < dim; ++d)
          c.v[at(row, d)] += 10.0f * std::sin(1.0f + 3.0f * static_cast<float>(d));
      }
      attract(0, 6.0f);  // a sink
      for (int32_t d = 0; d < dim; ++d) c.v[at(0, d)] = 1e-3f;
      const size_t alike[] = {30, 31, 32, 100};
      for (const size_t row : alike) {
        attract(row, 9.7f);  // p is within a tenth of their u
        std::copy_n(c.v.begin() + static_cast<int64_t>(at(30, 0)), dim,
                    c.v.begin() + static_cast<int64_t>(at(row, 0)));
      }
      for (const size_t row : {size_t{50}, size_t{90}}) attract(row, 7.5f);
      c.round_rows();
      c.round_queries();
      c.store(*backend);
      for (const QueryReduce reduce : {QueryReduce::kRms, QueryReduce::kMax, QueryReduce::kMean}) {
        for (const bool projected : {true, false}) {
          SCOPED_TRACE(::testing::Message() << dtype_info(dtype).name << " dim " << dim << " reduce "
                                            << static_cast<int>(reduce) << " projected " << projected);
          const ScoreSpec spec{.kind = ScoreKind::kIndicatorQuery, .reduce = reduce};
          const std::vector<float> got = run_score(*backend, c, spec, 0, projected);
          const auto want = c.expected(spec, 0, projected);
          for (size_t row = 0; row < got.size(); ++row)
            EXPECT_NEAR(static_cast<double>(got[row]), want[0][row], 2e-4 * want[0][row]) << row;
        }
      }
    }
  }
}

// Rows that all have one value are at distance 0 from what any query sees of them.
TEST_P(ScoreOfNearRows, IsNothingWhereAllAreEqual) {
  const std::unique_ptr<Backend> backend = make(1);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    if (dtype != DType::kF32 && !is_device_column(GetParam())) continue;
    EvictionCase c({.rows = 150, .queries = 6, .dtype = dtype, .has_half_queries = dtype != DType::kF32});
    const std::vector<float> before = run_score(*backend, c, {.kind = ScoreKind::kIndicatorQuery});
    for (size_t i = 32; i < c.v.size(); ++i) c.v[i] = c.v[i % 32];
    const std::vector<float> got = run_score(*backend, c, {.kind = ScoreKind::kIndicatorQuery});
    for (size_t row = 0; row < got.size(); ++row) EXPECT_LE(got[row], 2e-5f * before[row]) << row;
  }
}

}  // namespace
}  // namespace restkv

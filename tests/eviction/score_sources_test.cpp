// observe and score give the same wherever rows and queries come from: scratch, pages, the ring, in pieces, beside others.
#include "tests/eviction/score_case.h"

namespace restkv {
namespace {

using testing::dtypes_of_column;
using testing::EvictionCase;
using testing::is_device_column;
using testing::projection_of;
using testing::run_score;
using testing::Score;
using testing::StepMemory;

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
  for (const DType dtype : dtypes_of_column(GetParam())) {
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

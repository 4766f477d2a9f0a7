// A row's bits do not depend on how many rows stand beside it, nor on the number of threads.
#include <numeric>

#include "tests/kernels/backend_cases.h"

namespace restkv {
namespace {

class Determinism : public testing::TestWithParam<size_t> {};

INSTANTIATE_TEST_SUITE_P(Backends, Determinism, testing::Range(size_t{0}, backend_cases().size()),
                         [](const auto& info) { return backend_cases()[info.param].name; });

TEST_P(Determinism, MatmulRows) {
  const BackendCase& column = backend_cases()[GetParam()];
  if (!column.is_row_independent) GTEST_SKIP() << column.name << " promises this with `deterministic` only";
  const int64_t n = 101, max_rows = column.is_device ? 70 : 512;
  for (const DType dtype : kWeightTypes) {
    if (column.is_device && dtype != DType::kF32 && dtype != DType::kQ4_0) continue;  // all placed as f32
    for (const int64_t cols : {int64_t{768}, int64_t{172}}) {
      if (cols % dtype_info(dtype).block_elems != 0) continue;
      const Weights weights(dtype, n, cols, 1), bias(DType::kF32, 1, n, 2);
      const Floats x = random_floats(max_rows * cols, 3);
      Floats alone(static_cast<size_t>(max_rows * n));
      const auto single = column.make(1);
      const PlacedWeight placed(*single, weights.tensor);
      for (int64_t t = 0; t < max_rows; ++t) {
        const MatmulOutput outputs[] = {
            {placed.tensor(), bias.tensor, dense(&alone[static_cast<size_t>(t * n)], DType::kF32, 1, n)}};
        single->matmul({dense(&x[static_cast<size_t>(t * cols)], DType::kF32, 1, cols), outputs});
      }
      for (const int threads : {1, 2, 3}) {
        if (column.is_emulated && threads > 1) continue;
        const auto backend = column.make(threads);
        const PlacedWeight here(*backend, weights.tensor);
        for (const int64_t rows : {int64_t{1}, int64_t{2}, int64_t{7}, int64_t{16}, int64_t{33}, max_rows}) {
          Floats out(static_cast<size_t>(rows * n), NAN);
          const int64_t begin = max_rows - rows;
          const MatmulOutput outputs[] = {{here.tensor(), bias.tensor, view(out, rows)}};
          backend->matmul({dense(&x[static_cast<size_t>(begin * cols)], DType::kF32, rows, cols), outputs});
          EXPECT_TRUE(same_bits(out.data(), &alone[static_cast<size_t>(begin * n)], rows * n))
              << dtype_info(dtype).name << " C=" << cols << " rows " << rows << " threads " << threads;
        }
      }
    }
  }
}

// A row of decode attention does not know of longer neighbours, nor of the workspace that cuts the batch into launches.
TEST_P(Determinism, DecodeRows) {
  const BackendCase& column = backend_cases()[GetParam()];
  if (!column.is_row_independent) GTEST_SKIP() << column.name << " promises this with `deterministic` only";
  constexpr int32_t kHeads = 4, kKvHeads = 2, kDim = 16;
  const AttentionShape shape{kHeads, kKvHeads, kDim, 0.25f, 0.0f, 0};
  const auto backend = column.make(1);
  TestCache caches[] = {{*backend, DType::kF32, kKvHeads, kDim, 700},
                        {*backend, DType::kF32, kKvHeads, kDim, 700}};
  const int32_t lengths[] = {300, 690};
  SharedPool pool(caches[0].view);
  std::vector<DecodeSegment> segments;
  for (int64_t i = 0; i < 2; ++i) {
    TestCache& cache = caches[i];
    const int32_t n = lengths[i];
    std::vector<int32_t> positions(static_cast<size_t>(n));
    std::iota(positions.begin(), positions.end(), 0);
    const Floats k = random_floats(n * kKvHeads * kDim, 1 + static_cast<uint64_t>(i)),
                 v = random_floats(n * kKvHeads * kDim, 5 + static_cast<uint64_t>(i));
    cache.fill(view(k, n), view(v, n), positions);
    for (int32_t& len : cache.kv_len) len = n;
    pool.take(cache);
    segments.push_back({i, 1, cache.tables()});
  }
  const Floats q = random_floats(2 * kHeads * kDim, 9, 2.0f);
  const std::vector<int32_t> positions = {299, 689};
  Floats together(q.size(), NAN), alone(q.size() / 2, NAN);
  backend->decode_attention({shape, view(q, 2), positions, segments, pool.view, view(together, 2)});
  const ConstTensor first = dense(q.data(), DType::kF32, 1, kHeads * kDim);
  backend->decode_attention(
      {shape, first, std::span(positions).first(1), std::span(segments).first(1), pool.view, view(alone, 1)});
  EXPECT_TRUE(same_bits(together.data(), alone.data(), kHeads * kDim));
}

TEST_P(Determinism, NormAndGluRows) {
  const int64_t rows = 200, cols = 580;
  const Weights weight(DType::kF32, 1, cols, 1);
  const Floats x = random_floats(rows * cols, 2), up = random_floats(rows * cols, 3);
  const auto run = [&](int threads, int64_t rows_each, Floats& norm, Floats& glu) {
    const auto backend = backend_cases()[GetParam()].make(threads);
    for (int64_t t = 0; t < rows; t += rows_each) {
      const int64_t count = std::min(rows_each, rows - t);
      const auto part = [&](auto& values) {
        return dense(&values[static_cast<size_t>(t * cols)], DType::kF32, count, cols);
      };
      backend->rmsnorm({part(x), {}, weight.tensor, 1e-5f, 0.0f, part(norm)});
      backend->glu({part(x), part(up), Activation::kSilu, part(glu)});
    }
  };
  Floats norm_a(x.size()), glu_a(x.size());
  run(1, 1, norm_a, glu_a);
  for (const int threads : {1, 2, 3}) {
    for (const int64_t rows_each : {int64_t{7}, rows}) {
      Floats norm_b(x.size()), glu_b(x.size());
      run(threads, rows_each, norm_b, glu_b);
      EXPECT_TRUE(same_bits(norm_a.data(), norm_b.data(), rows * cols)) << threads;
      EXPECT_TRUE(same_bits(glu_a.data(), glu_b.data(), rows * cols)) << threads;
    }
  }
}

}  // namespace
}  // namespace restkv

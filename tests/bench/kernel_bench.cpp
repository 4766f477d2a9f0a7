// Speed of the CPU kernels by shape and type: products in GFLOP/s and GB/s of weights, attention in GFLOP/s and GB/s of
// cache. The shapes are SmolLM2-135M's where no other is given. Threads: RESTKV_BENCH_THREADS (default: all usable cores); processor level:
// RESTKV_CPU_TARGET.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cpu/cpu_backend.h"

namespace restkv {
namespace {

Backend& backend() {
  static const std::unique_ptr<Backend> instance = [] {
    const char* threads = std::getenv("RESTKV_BENCH_THREADS");
    auto made = make_cpu_backend(threads == nullptr ? 0 : std::atoi(threads));
    CHECK(made != nullptr) << "RESTKV_CPU_TARGET names no target of this machine";
    return made;
  }();
  return *instance;
}

std::vector<float> random_floats(int64_t n) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& x : values) x = uniform(random);
  return values;
}

void set_rates(benchmark::State& state, double flops, double bytes) {
  const auto iterations = static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(flops * iterations * 1e-9, benchmark::Counter::kIsRate);
  state.counters["GB/s"] = benchmark::Counter(bytes * iterations * 1e-9, benchmark::Counter::kIsRate);
}

// T rows through layers x (N, C) weights, so that weights come from memory as in a model: arguments T, N, C, type.
void matmul(benchmark::State& state) {
  const int64_t rows = state.range(0), n = state.range(1), cols = state.range(2);
  const auto dtype = static_cast<DType>(state.range(3));
  const int64_t bytes = bytes_of(dtype, cols) * n;
  const int64_t layers = rows > 16 ? 1 : std::max<int64_t>(1, (64 << 20) / bytes);
  // bytes of 0x01: small finite scales in every type
  std::vector<std::byte> weights(static_cast<size_t>(bytes * layers), std::byte{1});
  const std::vector<float> x = random_floats(rows * cols);
  std::vector<float> out(static_cast<size_t>(rows * n));
  for (auto _ : state) {
    for (int64_t i = 0; i < layers; ++i) {
      const MatmulOutput outputs[] = {
          {dense(weights.data() + i * bytes, dtype, n, cols), {}, dense(out.data(), DType::kF32, rows, n)}};
      backend().matmul({dense(x.data(), DType::kF32, rows, cols), outputs});
    }
  }
  state.SetLabel(std::string(dtype_info(dtype).name));
  const auto count = static_cast<double>(layers);
  set_rates(state, 2.0 * count * static_cast<double>(rows * n * cols), count * static_cast<double>(bytes));
}

void matmul_arguments(benchmark::internal::Benchmark* b) {
  b->ArgNames({"T", "N", "C", "type"});
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0,
                            DType::kQ5_1, DType::kQ2_K, DType::kQ3_K, DType::kQ4_K, DType::kQ5_K,
                            DType::kQ6_K, DType::kIQ4_NL, DType::kIQ4_XS}) {
    for (const int64_t rows : {1, 2, 4, 8, 64, 512}) {
      if (dtype == DType::kQ4_1 || rows == 1 || rows == 512)
        b->Args({rows, 1536, 768, static_cast<int64_t>(dtype)});
    }
  }
  for (const int64_t rows : {1, 512}) {
    b->Args({rows, 576, 576, static_cast<int64_t>(DType::kQ4_1)});
    b->Args({rows, 576, 1536, static_cast<int64_t>(DType::kQ4_1)});
    b->Args({rows, 1536, 576, static_cast<int64_t>(DType::kQ4_1)});
  }
  b->Args({1, 49152, 576, static_cast<int64_t>(DType::kQ4_1)});
}
BENCHMARK(matmul)->Apply(matmul_arguments)->UseRealTime();

constexpr int32_t kHeads = 9, kKvHeads = 3, kHeadDim = 64;
const AttentionShape kShape{kHeads, kKvHeads, kHeadDim, 0.125f, 0.0f, 0};

// One layer of a prompt of T rows.
void prefill_attention(benchmark::State& state) {
  const int64_t rows = state.range(0);
  const auto dtype = static_cast<DType>(state.range(1));
  const std::vector<float> q = random_floats(rows * kHeads * kHeadDim);
  std::vector<float> out(q.size());
  const std::vector<std::byte> kv(static_cast<size_t>(bytes_of(dtype, rows * kKvHeads * kHeadDim)),
                                  std::byte{0x21});
  std::vector<int32_t> positions(static_cast<size_t>(rows));
  std::iota(positions.begin(), positions.end(), 0);
  PrefillSegment segment;
  segment.num_rows = rows;
  segment.k = segment.v = dense(kv.data(), dtype, rows, kKvHeads * kHeadDim);
  for (auto _ : state) {
    backend().prefill_attention({kShape,
                                 dense(q.data(), DType::kF32, rows, kHeads * kHeadDim),
                                 positions,
                                 std::span(&segment, 1),
                                 {},
                                 dense(out.data(), DType::kF32, rows, kHeads * kHeadDim),
                                 {}});
  }
  state.SetLabel(std::string(dtype_info(dtype).name));
  set_rates(state, 4.0 * kHeads * kHeadDim * static_cast<double>(rows) * static_cast<double>(rows + 1) / 2,
            0.0);
}
BENCHMARK(prefill_attention)
    ->ArgNames({"T", "type"})
    ->ArgsProduct({{128, 512, 2048}, {static_cast<int64_t>(DType::kF32), static_cast<int64_t>(DType::kF16)}})
    ->UseRealTime();

// Pages of `layers` layers of kKvHeads heads with n entries each, positions ascending.
struct PagedLayers {
  PagedLayers(DType dtype, int64_t layers, int32_t n)
      : stride((n + backend().page_slots() - 1) / backend().page_slots()),
        kv_len(kKvHeads, n),
        pages(static_cast<size_t>(layers * kKvHeads * stride)) {
    cache.dtype = dtype;
    cache.slots = backend().page_slots();
    cache.head_dim = kHeadDim;
    cache.page_bytes = PagedCacheView::bytes_per_page(cache.dtype, cache.slots, kHeadDim);
    pool.resize(pages.size() * static_cast<size_t>(cache.page_bytes), std::byte{0x21});
    cache.pool = pool.data();
    std::iota(pages.begin(), pages.end(), 0);
    for (const int32_t page : pages) {
      for (int32_t slot = 0; slot < cache.slots; ++slot)
        cache.positions(page)[slot] = page % stride * cache.slots + slot;
    }
  }
  HeadTables tables(int64_t layer) const {
    return {&pages[static_cast<size_t>(layer * kKvHeads * stride)], stride, kv_len.data()};
  }

  int32_t stride;
  std::vector<int32_t> kv_len, pages;
  std::vector<std::byte> pool;
  PagedCacheView cache;
};

// One row over N entries in each of 30 layers' pages.
void decode_attention(benchmark::State& state) {
  constexpr int64_t kLayers = 30;
  const auto n = static_cast<int32_t>(state.range(0));
  const auto dtype = static_cast<DType>(state.range(1));
  const PagedLayers layers(dtype, kLayers, n);
  const std::vector<int32_t> positions = {n};
  const std::vector<float> q = random_floats(kHeads * kHeadDim);
  std::vector<float> out(q.size());
  for (auto _ : state) {
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      const DecodeSegment segment{0, 1, layers.tables(layer)};
      backend().decode_attention({kShape, dense(q.data(), DType::kF32, 1, kHeads * kHeadDim), positions,
                                  std::span(&segment, 1), layers.cache,
                                  dense(out.data(), DType::kF32, 1, kHeads * kHeadDim)});
    }
  }
  state.SetLabel(std::string(dtype_info(dtype).name));
  set_rates(state, 4.0 * kLayers * kHeads * kHeadDim * n, static_cast<double>(layers.pool.size()));
}
BENCHMARK(decode_attention)
    ->ArgNames({"N", "type"})
    ->ArgsProduct({{128, 512, 2048, 8192},
                   {static_cast<int64_t>(DType::kF32), static_cast<int64_t>(DType::kF16)}})
    ->UseRealTime();

// What a cut of the preset `default` scores between decode steps: a window of 32 queries looks at N cached rows, of which 4
// sinks and the last 32 stay anyhow, in each of 30 layers in turn.
void observe_and_score(benchmark::State& state) {
  constexpr int64_t kLayers = 30;
  constexpr int32_t kWindow = 32;
  const auto n = static_cast<int32_t>(state.range(0));
  const PagedLayers layers(DType::kF32, kLayers, n);
  const std::vector<float> q = random_floats(kWindow * kHeads * kHeadDim);
  std::vector<float> projection(kHeads * kHeadDim * kHeadDim);  // triangles, transposed
  for (int64_t row = 0; row < kHeads * kHeadDim; ++row) {
    for (int64_t e = 0; e <= row % kHeadDim; ++e)
      projection[static_cast<size_t>(row * kHeadDim + e)] = 0.1f + 0.01f * static_cast<float>(e);
  }
  std::vector<int32_t> positions(kWindow);
  std::iota(positions.begin(), positions.end(), n - kWindow);
  const ScoreSpec spec;
  Arena counting = Arena::counting();
  Observation::make(counting, kShape, spec.kind, kWindow, n, /*with_logits=*/true);
  std::vector<std::byte> memory(static_cast<size_t>(counting.used()));
  Arena arena(memory.data(), counting.used());
  const Observation observation =
      Observation::make(arena, kShape, spec.kind, kWindow, n, /*with_logits=*/true);
  std::vector<float> scores(static_cast<size_t>(kKvHeads * n));
  int64_t layer = 0;
  for (auto _ : state) {
    const RowSource rows = {.pages = layers.tables(layer)};
    const QuerySource queries = {.rows = dense(q.data(), DType::kF32, kWindow, kHeads * kHeadDim),
                                 .positions = positions};
    const ConstTensor r = dense(projection.data(), DType::kF32, kHeads * kHeadDim, kHeadDim);
    const ObserveItem observe{.rows = rows, .queries = queries, .projection = r, .out = observation};
    const ScoreItem score{.rows = rows,
                          .queries = queries,
                          .projection = r,
                          .protect = {.head_end = 4, .recent = kWindow},
                          .observation = observation,
                          .out = dense(scores.data(), DType::kF32, kKvHeads, n)};
    backend().observe({.shape = kShape, .spec = spec, .items = {&observe, 1}, .cache = layers.cache});
    backend().score({.shape = kShape, .spec = spec, .items = {&score, 1}, .cache = layers.cache});
    layer = (layer + 1) % kLayers;
  }
  // observe: logits, outputs, triangles of two outputs a query; score: a triangle a row, distances (a subtraction and a square)
  constexpr double kQueries = kWindow, kHalf = (kHeadDim + 1) / 2.0;
  const double scored = n - 4.0 - kQueries;
  set_rates(state,
            2.0 * kHeads * kHeadDim * (2.0 * kQueries * (n + kHalf) + scored * (2.0 * kQueries + kHalf)),
            0.0);
}
BENCHMARK(observe_and_score)->ArgName("N")->Arg(256)->Arg(1024)->Arg(4096)->UseRealTime();

// R_g of one layer: arguments M, H, D, type. GFLOP/s counts the Gram matrices' upper triangles.
void factor_projection(benchmark::State& state) {
  const int64_t rows = state.range(0), heads = state.range(1), dim = state.range(2), cols = heads * dim;
  const auto dtype = static_cast<DType>(state.range(3));
  std::mt19937 random(1);
  std::vector<std::byte> weight(static_cast<size_t>(bytes_of(dtype, cols) * rows), std::byte{1});
  if (dtype == DType::kBF16) {
    for (size_t i = 0; i < weight.size(); i += 2) {
      weight[i] = static_cast<std::byte>(random());
      weight[i + 1] = static_cast<std::byte>(random() & 1 ? 0x3c : 0xbc);
    }
  }
  std::vector<float> out(static_cast<size_t>(cols * dim));
  for (auto _ : state) {
    backend().factor_projection({dense(static_cast<const void*>(weight.data()), dtype, rows, cols),
                                 static_cast<int32_t>(heads), dense(out.data(), DType::kF32, cols, dim)});
  }
  state.SetLabel(std::string(dtype_info(dtype).name));
  set_rates(state, static_cast<double>(rows * cols * (dim + 1)), static_cast<double>(weight.size()));
}
BENCHMARK(factor_projection)
    ->ArgNames({"M", "H", "D", "type"})
    ->Args({4096, 32, 128, static_cast<int64_t>(DType::kBF16)})
    ->Args({4096, 32, 128, static_cast<int64_t>(DType::kQ4_K)})
    ->Args({576, 9, 64, static_cast<int64_t>(DType::kQ4_1)})
    ->Args({4096, 8, 512, static_cast<int64_t>(DType::kBF16)})  // by KV heads, as the calibration asks for it
    ->UseRealTime();

// One draw over V logits: 0 greedy, 1 plain, 2 top-p 0.9, 3 top-k 40.
void sample(benchmark::State& state) {
  const int64_t vocab = state.range(0);
  const std::vector<float> source = random_floats(vocab);
  std::vector<float> logits(source.size());
  SamplingParams params;
  params.temperature = state.range(1) == 0 ? 0.0f : 1.0f;
  if (state.range(1) == 2) params.top_p = 0.9f;
  if (state.range(1) == 3) params.top_k = 40;
  SampleRow row;
  row.params = &params;
  SampleResult result;
  for (auto _ : state) {
    for (size_t i = 0; i < source.size(); ++i) logits[i] = source[i] * 8.0f;
    backend().sample(
        {dense(logits.data(), DType::kF32, 1, vocab), std::span(&row, 1), std::span(&result, 1)});
    ++row.position;
  }
}
BENCHMARK(sample)->ArgNames({"V", "kind"})->ArgsProduct({{49152, 262144}, {0, 1, 2, 3}})->UseRealTime();

}  // namespace
}  // namespace restkv

BENCHMARK_MAIN();

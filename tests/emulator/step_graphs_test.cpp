// Steps of decode rows with any number of rows share the graphs of their bucket, and the rows that fill it up touch nothing: pages,
// rings and tokens are those of steps that are launched piece by piece, to the byte.
#include <cstring>
#include <memory>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include "engine/device.h"
#include "engine/executor.h"
#include "kernels/cuda/graph_cache.h"
#include "tests/emulator/emulated_backend.h"
#include "tests/engine/prefilled_sequence.h"
#include "tests/engine/tiny_model.h"

namespace restkv {
namespace {

constexpr int32_t kLeast = 2, kMost = 12;

struct Outcome {
  std::vector<std::vector<int32_t>> tokens;
  std::vector<std::byte> pages;
  int64_t graphs = 0, launched = 0, piecewise = 0;
};

// Steps of kLeast .. kMost rows, upwards and downwards, twice. One sequence keeps all, the others are cut.
Outcome decode(bool use_graphs, bool is_deterministic, bool refuses_launches = false) {
  testing::TinyShape shape;
  shape.layers = 1;
  const auto model = testing::make_tiny_model(shape);
  EngineOptions options;
  options.max_model_len = 96;
  options.max_num_seqs = kMost;
  options.max_num_batched_tokens = 64;
  options.prefix_fraction = 0;
  DeviceCounts counts;
  auto backend = make_emulated_backend({.page_slots = 16,
                                        .is_deterministic = is_deterministic,
                                        .use_graphs = use_graphs,
                                        .refuses_launches = refuses_launches,
                                        .counts = &counts,
                                        .memory_bytes = int64_t{48} << 20});
  const Result<MemoryPlan> plan = Executor::plan(*model, *backend, options, available_memory(*backend));
  CHECK(plan.ok()) << plan.status().message();
  Executor executor(*model, *backend, options, *plan);
  std::vector<Sequence> sequences(kMost);
  std::vector<StepResult> results;
  StepBatch batch;
  for (size_t i = 0; i < sequences.size(); ++i) {
    CacheRequest cache;
    cache.policy = i == 0 ? "full" : "restkv";
    if (i > 0) cache.budget = 24;
    cache.window = 4;
    Request request;
    request.prompt = testing::some_prompt(20, static_cast<int32_t>(i));
    request.max_tokens = 60;
    request.sampling.temperature = 0.8f;
    request.sampling.seed = i;
    request.cache = *resolve_cache_settings(cache, {});
    testing::start_on(executor, std::move(request), sequences[i]);
  }
  const auto step = [&](int32_t rows) {
    batch.clear();
    for (int32_t i = 0; i < rows; ++i) batch.decodes.push_back({&sequences[static_cast<size_t>(i)], 1});
    executor.run_step(batch, results);
    EXPECT_EQ(results.size(), static_cast<size_t>(rows));
    for (const StepResult& result : results) {
      EXPECT_FALSE(result.sample->is_nan);
      result.sequence->tokens.push_back(result.sample->token);
    }
  };
  for (int round = 0; round < 2; ++round) {
    for (int32_t rows = kLeast; rows <= kMost; ++rows) step(rows);
    for (int32_t rows = kMost; rows >= kLeast; --rows) step(rows);
  }
  Outcome outcome;
  const PagedCacheView& cache = executor.cache().view();
  backend->synchronize();
  outcome.pages.resize(static_cast<size_t>(executor.pool().total() * cache.page_bytes));
  std::memcpy(outcome.pages.data(), cache.pool, outcome.pages.size());
  for (Sequence& sequence : sequences) {
    outcome.tokens.push_back(sequence.tokens);
    executor.release(sequence);
  }
  EXPECT_EQ(executor.pool().free(), executor.pool().total());
  outcome.graphs = counts.made;
  outcome.launched = counts.launched;
  outcome.piecewise = counts.piecewise;
  return outcome;
}

const Outcome& piece_by_piece() {
  static const Outcome outcome = decode(false, true);
  return outcome;
}

TEST(StepGraphs, StepsOfABucketShareThem) {
  std::set<int64_t> buckets;
  for (int64_t rows = kLeast; rows <= kMost; ++rows)
    buckets.insert(std::min<int64_t>(cuda::bucket_rows(rows), kMost));
  ASSERT_EQ(buckets.size(), 4u);
  const Outcome &single = piece_by_piece(), graphs = decode(true, true);
  EXPECT_EQ(single.graphs + single.launched + single.piecewise, 0);
  // The cache of the one that keeps all grows from one split of the entries to two.
  EXPECT_LE(graphs.graphs, static_cast<int64_t>(2 * buckets.size()));
  EXPECT_EQ(graphs.graphs, graphs.piecewise) << "a list is seen once, then it is a graph";
  EXPECT_EQ(graphs.launched + graphs.piecewise, 4 * (kMost - kLeast + 1));
  EXPECT_EQ(graphs.tokens, single.tokens);
  ASSERT_EQ(graphs.pages.size(), single.pages.size());
  EXPECT_TRUE(graphs.pages == single.pages);
}

// A graph's first launch takes memory of the device: without it the step goes piece by piece, and those behind it.
TEST(StepGraphs, OneThatCannotBeLaunchedIsDoneWithout) {
  const Outcome &single = piece_by_piece(), refused = decode(true, true, true);
  EXPECT_EQ(refused.graphs, 1);
  EXPECT_EQ(refused.launched, 0);
  EXPECT_EQ(refused.piecewise, 4 * (kMost - kLeast + 1));
  EXPECT_EQ(refused.tokens, single.tokens);
  EXPECT_TRUE(refused.pages == single.pages);
}

// The plan of a launch in a list lies in memory and the list has more blocks than the plan: results are those of a launch that is
// made for them, for other lengths by the same graph, and rows that are nobody's stay as they are.
TEST(StepGraphs, SplitsOfAttentionAreReadFromMemory) {
  constexpr int64_t kRows = 4, kDim = 16, kHeads = 4, kKvHeads = 2, kEntries = 1500;
  constexpr int32_t kSlots = 16, kPages = (kEntries + kSlots - 1) / kSlots, kTables = 2 * kKvHeads;
  // Eight splits of two queries: what one KV head of a row needs, not two of them.
  constexpr int64_t kUnitBytes = 512 + 8 * 2 * (kDim + 2) * 4;
  for (const auto& [is_deterministic, workspace_bytes] :
       {std::pair{true, int64_t{1} << 20}, {true, kUnitBytes}, {false, int64_t{1} << 20}}) {
    DeviceCounts counts;
    const auto backend = make_emulated_backend({.page_slots = kSlots,
                                                .workspace_bytes = workspace_bytes,
                                                .is_deterministic = is_deterministic,
                                                .counts = &counts});
    PagedCacheView cache;
    cache.slots = kSlots;
    cache.head_dim = kDim;
    cache.page_bytes = PagedCacheView::bytes_per_page(DType::kF32, kSlots, kDim);
    const int64_t floats = kTables * kPages * cache.page_bytes / 4;
    const auto memory = backend->allocate(4 * floats + 8 * kRows * kHeads * kDim);
    Arena arena(memory->data(), memory->bytes());
    const Tensor pool = arena.tensor(DType::kF32, 1, floats);
    const Tensor q = arena.tensor(DType::kF32, kRows, kHeads * kDim);
    const Tensor out = arena.tensor(DType::kF32, kRows, kHeads * kDim);
    cache.pool = static_cast<std::byte*>(pool.data);
    uint32_t state = 5;
    const auto noise = [&](const Tensor& tensor) {
      std::vector<float> values(static_cast<size_t>(tensor.rows * tensor.cols));
      for (float& value : values) {
        state = state * 1664525 + 1013904223;
        value = static_cast<float>(state >> 8) / 16777216.0f - 0.5f;
      }
      return values;
    };
    std::vector<float> values = noise(pool);
    for (int32_t entry = 0; entry < kTables * kPages * kSlots; ++entry) {
      const int32_t position = entry % (kPages * kSlots);
      const int64_t page = entry / kSlots * cache.page_bytes / 4;
      std::memcpy(values.data() + page + 2 * kSlots * kDim + entry % kSlots, &position, 4);
    }
    backend->write(pool, values.data());
    backend->write(q, noise(q).data());
    std::vector<int32_t> pages(kTables * kPages);
    std::iota(pages.begin(), pages.end(), 0);
    const std::vector<float> untouched(static_cast<size_t>(kRows * kHeads * kDim), 7.0f);
    const auto attend = [&](int32_t longest, bool in_list) {
      const int32_t lengths[] = {longest, longest - 7, 40, 40};
      const int32_t positions[kRows] = {longest - 1, 39, 0, 0};
      DecodeSegment segments[2];
      for (int32_t i = 0; i < 2; ++i)
        segments[i] = {i, 1, {pages.data() + i * kKvHeads * kPages, kPages, lengths + i * kKvHeads, nullptr}};
      backend->write(out, untouched.data());
      if (in_list) backend->begin_step();
      backend->decode_attention(
          {.shape = {.num_heads = kHeads, .num_kv_heads = kKvHeads, .head_dim = kDim, .scale = 1.0f},
           .q = q,
           .positions = positions,
           .segments = segments,
           .cache = cache,
           .out = out});
      if (in_list) backend->end_step();
      std::vector<float> result(untouched.size());
      backend->read_back(out, result.data());
      return result;
    };
    for (const int32_t longest : {1500, 1300, 1400, 1290}) {
      const std::vector<float> expected = attend(longest, false);
      EXPECT_EQ(attend(longest, true), expected) << longest;
      for (size_t i = 0; i < expected.size(); ++i)
        EXPECT_EQ(expected[i] == 7.0f, i >= expected.size() / 2) << i;
    }
    EXPECT_EQ(counts.made, 1) << "six splits of 256 entries, or more of fewer";
    EXPECT_EQ(counts.launched, 3);
  }
}

TEST(StepGraphs, Buckets) {
  int64_t last = 0;
  std::set<int64_t> buckets;
  for (int64_t rows = 1; rows <= 1024; ++rows) {
    const int64_t bucket = cuda::bucket_rows(rows);
    EXPECT_GE(bucket, rows);
    EXPECT_GE(bucket, last);
    EXPECT_LT(bucket, 2 * rows) << "more than half of its rows are somebody's";
    last = bucket;
    buckets.insert(bucket);
  }
  EXPECT_EQ(cuda::bucket_rows(1), 1);
  EXPECT_EQ(cuda::bucket_rows(17), 24);
  EXPECT_EQ(cuda::bucket_rows(25), 32);
  EXPECT_EQ(cuda::bucket_rows(256), 256);
  EXPECT_LE(buckets.size(), 17u);
}

}  // namespace
}  // namespace restkv

// The engine on the emulated device, where device memory and host memory are told apart: what the golden models do not reach.
#include "engine/device.h"
#include "kernels/base/float16.h"
#include "tests/emulator/emulated_backend.h"
#include "tests/engine/answer_collector.h"
#include "tests/engine/tiny_model.h"

namespace restkv {
namespace {

using testing::Answer;
using testing::ask;
using testing::make_tiny_model;
using testing::start_engine;

EngineOptions emulated_options(double prefix_fraction, const EmulatedOptions& device = {.page_slots = 16}) {
  EngineOptions options;
  options.max_model_len = 128;
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 64;
  options.prefix_fraction = prefix_fraction;
  options.backend_maker = [device]() -> Result<std::unique_ptr<Backend>> {
    return make_emulated_backend(device);
  };
  return options;
}

// The prefix cache on a card: blocks of pages are written and read, by what is kept whole (full; restkv within its budget)
// and by what is cut, and the answers are those of the CPU.
TEST(EmulatedEngine, PrefixesAreReadFromThePages) {
  testing::TinyShape shape;
  shape.layers = 1;
  const auto model = make_tiny_model(shape);
  EngineOptions cpu;
  cpu.device = "cpu";
  cpu.max_model_len = 128;
  const auto oracle = start_engine(model, cpu);
  const auto engine = start_engine(model, emulated_options(0.5));
  for (const auto& [policy, budget] :
       {std::pair{"full", 0}, std::pair{"restkv", 100}, std::pair{"restkv", 24}, std::pair{"snapkv", 24}}) {
    CacheRequest cache;
    cache.policy = policy;
    if (budget > 0) cache.budget = budget;
    cache.window = 4;
    Request request;
    for (int32_t i = 0; i < 44; ++i) request.prompt.push_back(3 + (i * 7) % 60);
    request.max_tokens = 3;
    request.ignore_eos = true;
    request.sampling.temperature = 0;
    request.cache_salt = policy + std::to_string(budget);
    request.cache = *resolve_cache_settings(cache, {});
    const Answer expected = ask(*oracle, {request})[0][0];
    ASSERT_EQ(expected.tokens.size(), 3u);
    for (int round = 0; round < 3; ++round) {
      const Answer answer = ask(*engine, {request})[0][0];
      EXPECT_EQ(answer.tokens, expected.tokens) << policy << " " << budget << " round " << round;
      EXPECT_EQ(answer.counters.cached_tokens, round == 2 ? 32 : 0) << policy << " " << budget;
      EXPECT_EQ(answer.counters.cache.evicted, expected.counters.cache.evicted) << policy << " " << budget;
    }
  }
}

// Decode steps of the same shape are one graph, made when a list of launches comes again and launched for every later step;
// steps in between that cut or carry a prompt do not disturb it. Answers are those of single launches, to the bit; so are those of
// a device that can make no graph.
TEST(EmulatedEngine, DecodeStepsAreGraphs) {
  testing::TinyShape shape;
  shape.layers = 1;
  const auto model = make_tiny_model(shape);
  std::vector<Request> requests;
  for (const char* policy : {"full", "restkv"}) {
    CacheRequest cache;
    cache.policy = policy;
    if (requests.size() == 1) cache.budget = 24;
    cache.window = 4;
    Request request;
    for (int32_t i = 0; i < 20; ++i)
      request.prompt.push_back(3 + (i * 7 + static_cast<int32_t>(requests.size())) % 60);
    request.max_tokens = 16;
    request.ignore_eos = true;
    request.sampling.temperature = 0.8f;
    request.sampling.num_logprobs = 0;
    request.cache = *resolve_cache_settings(cache, {});
    requests.push_back(request);
  }
  std::vector<std::vector<Answer>> answers;
  enum Graphs { kNone, kRefused, kMade };
  for (const Graphs graphs : {kNone, kRefused, kMade}) {
    GraphCounts counts;
    {
      const auto engine = start_engine(model, emulated_options(0, {.page_slots = 16,
                                                                   .is_deterministic = true,
                                                                   .use_graphs = graphs != kNone,
                                                                   .refuses_graphs = graphs == kRefused,
                                                                   .graphs = &counts}));
      for (const Request& request : requests) answers.push_back(ask(*engine, {request})[0]);
      answers.push_back({});
      // Who joins whom when is chance; `deterministic` makes it no matter.
      for (auto& together : ask(*engine, requests)) answers.back().push_back(together[0]);
    }
    if (graphs == kRefused) {
      EXPECT_GT(counts.piecewise, 0);
      EXPECT_EQ(counts.made + counts.launched, 0);
    } else if (graphs == kMade) {
      EXPECT_GT(counts.made, 0);
      EXPECT_GT(counts.launched, 3 * counts.made) << "a graph is for many steps";
      EXPECT_GT(counts.piecewise, 0) << "a step that was not seen before is no graph";
    } else {
      EXPECT_EQ(counts.made + counts.launched + counts.piecewise, 0);
    }
  }
  ASSERT_EQ(answers.size(), 9u);
  for (size_t i = 0; i < answers.size(); ++i) {
    ASSERT_EQ(answers[i].size(), answers[i % 3].size());
    for (size_t j = 0; j < answers[i].size(); ++j) {
      EXPECT_EQ(answers[i][j].tokens.size(), 16u);
      EXPECT_TRUE(answers[i][j] == answers[i % 3][j]) << i << " " << j;
    }
  }
}

// Which products go to the vendor's library, and that those side by side go as one.
TEST(EmulatedEngine, ProductsGoToTheLibrary) {
  constexpr int64_t kCols = 64, kMaxRows = 6;
  GraphCounts counts;
  const auto with = make_emulated_backend({.type = DType::kBF16, .has_library = true, .graphs = &counts});
  const auto fixed = make_emulated_backend(
      {.type = DType::kBF16, .is_deterministic = true, .has_library = true, .graphs = &counts});
  const auto without = make_emulated_backend({.type = DType::kBF16});
  // Q, K and V of a layer as the transformer has them; the bias of K.
  struct Products {
    std::unique_ptr<DeviceBuffer> memory;
    Tensor x, weights[3], bias, floats, outs[3];
  };
  const auto make = [&](Backend& backend) {
    Products p;
    p.memory = backend.allocate(1 << 20);
    Arena arena(p.memory->data(), 1 << 20);
    uint32_t state = 1;
    const auto fill = [&](Tensor t) {
      std::vector<uint16_t> bits(static_cast<size_t>(t.rows * t.cols));
      for (uint16_t& b : bits) {
        state = state * 1664525 + 1013904223;
        b = f32_to_bf16(static_cast<float>(state >> 16) / 65536.0f - 0.5f);
      }
      backend.write(t, bits.data());
      return t;
    };
    p.x = fill(arena.tensor(DType::kBF16, kMaxRows, kCols));
    const int64_t nums[3] = {32, 16, 16};
    for (int i = 0; i < 3; ++i) p.weights[i] = fill(arena.tensor(DType::kBF16, nums[i], kCols));
    p.bias = fill(arena.tensor(DType::kBF16, 1, 16));
    p.floats = arena.tensor(DType::kF32, 1, 16);
    const Tensor out = arena.tensor(DType::kBF16, kMaxRows, 64);
    p.outs[0] = out.col_range(0, 32);
    p.outs[1] = out.col_range(32, 16);
    p.outs[2] = out.col_range(48, 16);
    return p;
  };
  const auto run = [&](Backend& backend, const Products& p, int64_t rows, const ConstTensor& bias) {
    const MatmulOutput outputs[] = {{p.weights[0], {}, p.outs[0].row_range(0, rows)},
                                    {p.weights[1], bias, p.outs[1].row_range(0, rows)},
                                    {p.weights[2], {}, p.outs[2].row_range(0, rows)}};
    counts.products = 0;
    backend.matmul({p.x.row_range(0, rows), outputs});
    std::vector<float> values;
    for (const Tensor& out : p.outs) {
      std::vector<uint16_t> bits(static_cast<size_t>(rows * out.cols));
      backend.read_back(out.row_range(0, rows), bits.data());
      for (const uint16_t b : bits) values.push_back(bf16_to_f32(b));
    }
    return values;
  };
  const Products p = make(*with), q = make(*without), d = make(*fixed);
  const auto expect_same = [&](int64_t rows, const Tensor& bias, const Tensor& other_bias,
                               int64_t num_products) {
    const std::vector<float> values = run(*with, p, rows, bias);
    EXPECT_EQ(counts.products, num_products) << rows;
    const std::vector<float> expected = run(*without, q, rows, other_bias);
    ASSERT_EQ(values.size(), expected.size());
    for (size_t i = 0; i < values.size(); ++i) EXPECT_NEAR(values[i], expected[i], 2e-2) << rows << " " << i;
  };
  expect_same(kMaxRows, {}, {}, 1);
  expect_same(kMaxRows, p.bias, q.bias, 3);
  expect_same(kMaxRows, p.floats, q.floats,
              1);             // Q; an f32 bias beside 16-bit values is none of the library's
  expect_same(4, {}, {}, 0);  // few rows stream
  run(*fixed, d, kMaxRows, {});
  EXPECT_EQ(counts.products, 0) << "deterministic: one algorithm for every number of rows";
}

}  // namespace
}  // namespace restkv

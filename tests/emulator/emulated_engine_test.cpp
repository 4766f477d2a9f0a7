// The engine on the emulated device, where device memory and host memory are told apart: what the golden models do not reach.
#include <set>

#include "engine/device.h"
#include "engine/engine_core.h"
#include "engine/group_run.h"
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
    DeviceCounts counts;
    {
      const auto engine = start_engine(model, emulated_options(0, {.page_slots = 16,
                                                                   .is_deterministic = true,
                                                                   .use_graphs = graphs != kNone,
                                                                   .refuses_graphs = graphs == kRefused,
                                                                   .counts = &counts}));
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

// A step is enqueued behind the one whose tokens nobody has read, and no answer shows it: those of requests that never let
// one follow (a bad word of two tokens looks back at the text) are the same to the bit, counters of the cache included, where
// answers stop at a token that was drawn while the next step ran, are cut within the budget, or have several choices.
TEST(EmulatedEngine, StepsRunAhead) {
  testing::TinyShape shape;
  shape.layers = 2;
  const auto model = make_tiny_model(shape);
  std::vector<Request> requests;
  const auto add = [&](const char* policy, int32_t budget, int32_t max_tokens) -> Request& {
    CacheRequest cache;
    cache.policy = policy;
    if (budget > 0) cache.budget = budget;
    cache.window = 4;
    Request& request = requests.emplace_back();
    for (int32_t i = 0; i < 20; ++i)
      request.prompt.push_back(3 + (i * 7 + static_cast<int32_t>(requests.size())) % 60);
    request.max_tokens = max_tokens;
    request.ignore_eos = true;
    request.sampling.temperature = 0.8f;
    request.sampling.seed = requests.size();
    request.cache = *resolve_cache_settings(cache, {});
    return request;
  };
  add("full", 0, 30).sampling.num_logprobs = 2;
  add("restkv", 24, 24).num_choices = 2;
  add("full", 0, 17).sampling.temperature = 0;
  const EmulatedOptions device = {.page_slots = 16, .is_deterministic = true};
  const auto run = [&](int64_t& steps_ahead) {
    const auto engine = start_engine(model, emulated_options(0, device));
    auto answers = ask(*engine, requests);
    testing::expect_idle_and_free(*engine);
    steps_ahead = engine->stats().steps_ahead;
    return answers;
  };
  int64_t steps_ahead = 0;
  const auto whole = run(steps_ahead);
  EXPECT_GT(steps_ahead, 20);
  std::set<int32_t> seen;
  for (const auto& choices : whole)
    for (const Answer& answer : choices) seen.insert(answer.tokens.begin(), answer.tokens.end());
  int32_t unseen = 0;
  while (seen.contains(unseen)) ++unseen;
  ASSERT_LT(unseen, model->config.vocab_size);
  // One ends at a token in the middle, one must not before its tenth.
  requests[0].stop_token_ids = {whole[0][0].tokens[9]};
  requests[2].stop_token_ids = {whole[2][0].tokens[4]};
  requests[2].min_tokens = 10;
  requests[2].bad_words = {{unseen}};
  const auto ahead = run(steps_ahead);
  EXPECT_GT(steps_ahead, 20);
  EXPECT_EQ(ahead[0][0].finish, FinishReason::kStop);
  EXPECT_LT(ahead[0][0].tokens.size(), 10u);
  EXPECT_GT(ahead[1][1].counters.cache.evicted, 0);
  for (Request& request : requests) request.bad_words.push_back({unseen, 5});
  const auto expected = run(steps_ahead);
  EXPECT_EQ(steps_ahead, 0);
  for (size_t i = 0; i < expected.size(); ++i) {
    for (size_t c = 0; c < expected[i].size(); ++c) {
      const Answer &answer = ahead[i][c], &other = expected[i][c];
      EXPECT_TRUE(answer == other) << i << " " << c;
      EXPECT_EQ(answer.finish_token, other.finish_token);
      EXPECT_EQ(answer.counters.completion_tokens, other.counters.completion_tokens);
      EXPECT_EQ(answer.counters.cache.kept, other.counters.cache.kept) << i << " " << c;
      EXPECT_EQ(answer.counters.cache.kept_max, other.counters.cache.kept_max) << i << " " << c;
      EXPECT_EQ(answer.counters.cache.evicted, other.counters.cache.evicted) << i << " " << c;
      EXPECT_EQ(answer.counters.cache.events, other.counters.cache.events) << i << " " << c;
    }
  }
}

// Where nothing decodes and units are short, a turn has several, one behind the other on the device; how many makes no difference to
// an answer. The clock of the second run says that each takes longer than a turn may: one unit a turn, as on the CPU.
TEST(EmulatedEngine, UnitsOfATurnAreWaitedForTogether) {
  testing::TinyShape shape;
  shape.layers = 3;
  const auto model = make_tiny_model(shape);
  EngineOptions options = emulated_options(0);
  options.max_num_batched_tokens = 16;
  struct Run {
    std::vector<std::vector<Answer>> answers;
    int64_t turns = 0;
  };
  const auto run = [&](std::chrono::microseconds tick) {
    const auto backend = make_emulated_backend({.page_slots = 16, .is_deterministic = true});
    const Result<MemoryPlan> plan = Executor::plan(*model, *backend, options, available_memory(*backend));
    Run result;
    if (!plan.ok()) return result;
    Clock::time_point now(std::chrono::hours(1));
    EngineCore core(*model, options, *plan, *backend, [&] { return now += tick; });
    core.fit_costs();
    testing::Collector collector;
    std::vector<std::shared_ptr<RequestHandle>> handles;
    for (const char* policy : {"full", "restkv"}) {
      CacheRequest cache;
      cache.policy = policy;
      if (!handles.empty()) cache.budget = 24;
      cache.window = 4;
      Request request;
      for (int32_t i = 0; i < 60; ++i)
        request.prompt.push_back(3 + (i * 7 + static_cast<int32_t>(handles.size())) % 60);
      request.max_tokens = 3;
      request.ignore_eos = true;
      request.sampling.temperature = 0;
      request.sampling.num_logprobs = 0;
      request.cache = *resolve_cache_settings(cache, {});
      request.arrival = now;
      handles.push_back(collector.handle(std::move(request)));
      handles.back()->stream.reserve(8);
      core.accept(handles.back());
    }
    for (; !core.is_empty() && result.turns < 200; ++result.turns) {
      core.turn();
      core.flush();
    }
    EXPECT_TRUE(core.is_healthy() && core.is_empty());
    EXPECT_EQ(core.executor().pool().owned(), 0);
    result.answers = collector.collect(handles);
    return result;
  };
  const Run together = run(std::chrono::microseconds(10)), single = run(std::chrono::milliseconds(20));
  ASSERT_EQ(together.answers.size(), 2u);
  ASSERT_EQ(single.answers.size(), 2u);
  // Two prompts of 12 units.
  EXPECT_GE(single.turns, 12);
  EXPECT_LT(together.turns, 12);
  for (size_t i = 0; i < single.answers.size(); ++i) {
    EXPECT_EQ(single.answers[i][0].tokens.size(), 3u);
    EXPECT_TRUE(single.answers[i][0] == together.answers[i][0]) << i;
    EXPECT_EQ(single.answers[i][0].counters.cache.evicted, together.answers[i][0].counters.cache.evicted)
        << i;
  }
}

// Who evaluates looks at logits, which a device has in its own memory: it gets those of the CPU, on the host.
TEST(EmulatedEngine, EvaluationSeesLogitsOnTheHost) {
  testing::TinyShape shape;
  shape.layers = 1;
  const auto model = make_tiny_model(shape);
  const std::vector<CacheSettings> settings(2, CacheSettings::full());
  GroupText text = {.prompt = {5, 6, 7, 8}, .forced = {9, 10, 11}, .max_tokens = 1};
  std::vector<std::vector<float>> seen[2];  // on the CPU, on the device
  for (const bool on_device : {false, true}) {
    EngineOptions options = emulated_options(0);
    const Backend* device = nullptr;
    options.backend_maker = [&device]() -> Result<std::unique_ptr<Backend>> {
      auto backend = make_emulated_backend({.page_slots = 16});
      device = backend.get();
      return std::unique_ptr<Backend>(std::move(backend));
    };
    if (!on_device) options.backend_maker = nullptr;
    options.device = "cpu";
    const auto runner = GroupRunner::make(model, options, 2);
    ASSERT_TRUE(runner.ok()) << runner.status().message();
    const auto outcomes = (*runner)->run(text, settings, [&](int32_t num_forced, const float* logits) {
      EXPECT_EQ(seen[on_device].size() + 1, static_cast<size_t>(num_forced));
      ASSERT_FALSE(device != nullptr && device->is_own_address(logits));
      seen[on_device].emplace_back(logits, logits + 2 * model->config.vocab_size);
    });
    ASSERT_TRUE(outcomes.ok()) << outcomes.status().message();
  }
  ASSERT_EQ(seen[0].size(), 3u);
  ASSERT_EQ(seen[1].size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    for (size_t j = 0; j < seen[0][i].size(); ++j)
      EXPECT_NEAR(seen[1][i][j], seen[0][i][j], 1e-3f) << i << " " << j;
  }
}

// Which products go to the vendor's library, and that those side by side go as one.
TEST(EmulatedEngine, ProductsGoToTheLibrary) {
  constexpr int64_t kCols = 64, kMaxRows = 6;
  DeviceCounts counts;
  const auto with = make_emulated_backend({.type = DType::kBF16, .has_library = true, .counts = &counts});
  const auto fixed = make_emulated_backend(
      {.type = DType::kBF16, .is_deterministic = true, .has_library = true, .counts = &counts});
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
              1);  // Q; an f32 bias beside 16-bit values is none of the library's
  expect_same(2, {}, {}, 1);
  expect_same(1, {}, {}, 0);  // one row streams
  run(*fixed, d, kMaxRows, {});
  EXPECT_EQ(counts.products, 0) << "deterministic: one algorithm for every number of rows";
}

}  // namespace
}  // namespace restkv

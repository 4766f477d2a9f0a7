// Whatever cache settings are legal, the emulated device keeps, evicts and answers as the CPU does: a model with and one without
// windowed layers, prompts above and below the budget, several at once.
#include <algorithm>
#include <random>

#include "engine/device.h"
#include "tests/emulator/emulated_backend.h"
#include "tests/engine/answer_collector.h"
#include "tests/engine/random_settings.h"
#include "tests/engine/tiny_model.h"

namespace restkv {
namespace {

constexpr int32_t kContext = 160;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kNumRequests = 6;  // several times slower
#else
constexpr size_t kNumRequests = 14;
#endif

std::vector<Request> random_requests(uint32_t seed) {
  std::mt19937 random(seed);
  CacheLimits limits;
  limits.max_model_len = kContext;
  std::vector<Request> requests;
  while (requests.size() < kNumRequests) {
    const Result<CacheSettings> settings =
        resolve_cache_settings(testing::random_cache_request(random, 64), limits);
    if (!settings.ok()) continue;
    Request request;
    const auto prompt_len = 1 + static_cast<int32_t>(random() % 130);
    for (int32_t i = 0; i < prompt_len; ++i)
      request.prompt.push_back(3 + static_cast<int32_t>(random() % 60));
    request.max_tokens = 1 + static_cast<int32_t>(random() % 28);
    request.ignore_eos = true;
    request.num_choices = random() % 5 == 0 ? 2 : 1;
    request.sampling.temperature = 0;
    request.cache = *settings;
    requests.push_back(std::move(request));
  }
  return requests;
}

EngineOptions engine_options() {
  EngineOptions options;
  options.device = "cpu";
  options.max_model_len = kContext;
  options.max_num_seqs = 6;
  options.max_num_batched_tokens = 48;
  return options;
}

std::unique_ptr<Engine> start_device(const std::shared_ptr<const Model>& model, EngineOptions options,
                                     const EmulatedOptions& device) {
  options.backend_maker = [device]() -> Result<std::unique_ptr<Backend>> {
    return make_emulated_backend(device);
  };
  return testing::start_engine(model, options);
}

Request greedy_request(int32_t prompt_len, int32_t max_tokens, const CacheSettings& cache) {
  Request request;
  for (int32_t t = 0; t < prompt_len; ++t) request.prompt.push_back(3 + t * 7 % 60);
  request.max_tokens = max_tokens;
  request.ignore_eos = true;
  request.sampling.temperature = 0;
  request.cache = cache;
  return request;
}

TEST(EmulatedEviction, RandomSettingsGiveWhatTheCpuGives) {
  for (const int64_t window : {0, 20}) {
    testing::TinyShape shape;
    shape.layers = 2;
    shape.window = window;
    const auto model = testing::make_tiny_model(shape);
    const std::vector<Request> requests = random_requests(5);
    const auto cpu = testing::start_engine(model, engine_options());
    const auto device = start_device(model, engine_options(), {.page_slots = 16});
    const auto expected = testing::ask(*cpu, requests), given = testing::ask(*device, requests);
    int num_answers = 0, num_equal = 0;
    for (size_t i = 0; i < requests.size(); ++i) {
      SCOPED_TRACE("window " + std::to_string(window) + ", request " + std::to_string(i) + ", " +
                   std::string(policy_name(requests[i].cache.policy)));
      for (size_t choice = 0; choice < expected[i].size(); ++choice) {
        const testing::Answer &a = expected[i][choice], &b = given[i][choice];
        EXPECT_EQ(b.finish, FinishReason::kLength) << b.error.message();
        // Whose rows these are may hang on the last bit of a score, how many not; but where heads share a layer's rows out.
        if (requests[i].cache.allocation != Allocation::kAda) {
          EXPECT_EQ(b.counters.cache.evicted, a.counters.cache.evicted);
          EXPECT_EQ(b.counters.cache.kept_max, a.counters.cache.kept_max);
        }
        EXPECT_EQ(b.counters.cache.events, a.counters.cache.events);
        ++num_answers;
        num_equal += b.tokens == a.tokens;
      }
    }
    EXPECT_GE(num_equal, num_answers * 9 / 10) << "of " << num_answers;
    testing::expect_idle_and_free(*device);
  }
}

// Scores that are no numbers count where rows went, whichever heads a backend scores besides: heads with calibrated budgets are full at
// different times.
TEST(EmulatedEviction, ScoresThatAreNoNumbersAreCountedAlike) {
  testing::TinyShape shape;
  shape.layers = 2;
  shape.value_scale = 1e20f;  // the squares of values are infinite
  const auto model = testing::make_tiny_model(shape);
  CacheRequest cache;
  cache.budget = 64;
  cache.window = 8;
  cache.stride = 4;
  cache.pin = 0;
  cache.allocation = "calibrated";
  cache.output_projection = false;
  const Result<CacheSettings> settings =
      resolve_cache_settings(cache, {.max_model_len = kContext, .has_calibration = true});
  ASSERT_TRUE(settings.ok()) << settings.status().message();
  const Request request = greedy_request(60, 50, *settings);
  const AllocationTable table{.budgets = {64}, .rows = {{48, 80, 80, 48}}};
  EngineOptions options = engine_options();
  options.allocation = std::make_shared<const AllocationTables>(AllocationTables{table, table});
  const auto cpu = testing::start_engine(model, options);
  const auto device = start_device(model, options, {.page_slots = 16});
  const auto expected = testing::ask(*cpu, {request})[0][0], given = testing::ask(*device, {request})[0][0];
  EXPECT_EQ(given.finish, FinishReason::kLength) << given.error.message();
  EXPECT_GT(expected.counters.cache.nan_rows, 0);
  EXPECT_EQ(given.counters.cache.nan_rows, expected.counters.cache.nan_rows);
  EXPECT_EQ(given.counters.cache.evicted, expected.counters.cache.evicted);
}

// All layers of a sequence are full at the same step: more than the staged arrays of one op hold.
TEST(EmulatedEviction, CutsOfOneStepAreSplitWhereTheHostHasNoRoom) {
  testing::TinyShape shape;
  shape.layers = 20;
  shape.context = 4096;  // the workspace holds cuts of so many rows, or many of a few
  const auto model = testing::make_tiny_model(shape);
  CacheRequest cache;
  cache.budget = 96;
  cache.window = 64;
  cache.pin = 8;
  const Result<CacheSettings> settings = resolve_cache_settings(cache, {.max_model_len = kContext});
  ASSERT_TRUE(settings.ok()) << settings.status().message();
  const Request request = greedy_request(90, 9, *settings);
  EngineOptions options = engine_options();
  options.max_model_len = shape.context;
  options.max_num_seqs = 2;
  const auto cpu = testing::start_engine(model, options);
  const auto device = start_device(model, options, {.page_slots = 16, .staging_bytes = 24 << 10});
  const auto expected = testing::ask(*cpu, {request})[0][0], given = testing::ask(*device, {request})[0][0];
  EXPECT_EQ(given.finish, FinishReason::kLength) << given.error.message();
  EXPECT_EQ(given.tokens, expected.tokens);
  EXPECT_GE(given.counters.cache.events, shape.layers);
  EXPECT_EQ(given.counters.cache.evicted, expected.counters.cache.evicted);
  testing::expect_idle_and_free(*device);
}

}  // namespace
}  // namespace restkv

// A calibration on a tiny model, and the engine with what came out.
#include "engine/calibration.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/engine/answer_collector.h"
#include "tests/engine/tiny_model.h"

namespace restkv {
namespace {

using testing::ask;
using testing::make_tiny_model;
using testing::start_engine;

constexpr int64_t kLength = 300;

std::vector<int32_t> text(int32_t seed) {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < kLength; ++i) tokens.push_back(3 + (i * i * 13 + i * 7 + seed * 5) % 60);
  return tokens;
}

AllocationTables calibrate(const std::shared_ptr<const Model>& model, int32_t threads) {
  EngineOptions options;
  options.threads = threads;
  auto calibration = Calibration::make(model, options, kLength);
  EXPECT_TRUE(calibration.ok()) << calibration.status().message();
  int layers = 0;
  for (int32_t seed = 0; seed < 3; ++seed)
    EXPECT_TRUE((*calibration)->add_text(text(seed), [&] { ++layers; }).ok());
  EXPECT_EQ(layers, 9);
  EXPECT_EQ((*calibration)->num_texts(), 3);
  return (*calibration)->tables();
}

TEST(Calibration, TablesKeepTheSumAndTheFloors) {
  const auto model = make_tiny_model();
  const AllocationTables tables = calibrate(model, 2);
  for (const DecodeMode mode : {DecodeMode::kEvict, DecodeMode::kGrow}) {
    const AllocationTable& table = tables.of(mode);
    ASSERT_EQ(table.budgets, (std::vector<int32_t>{64, 96, 128})) << "up to half a text";
    for (size_t i = 0; i < table.budgets.size(); ++i) {
      const auto [least, most] = std::minmax_element(table.rows[i].begin(), table.rows[i].end());
      EXPECT_EQ(std::accumulate(table.rows[i].begin(), table.rows[i].end(), 0.0), 6.0 * table.budgets[i]);
      EXPECT_GE(*least, mode == DecodeMode::kGrow ? 40 : 0.6 * table.budgets[i]);
      for (const double rows : table.rows[i]) EXPECT_EQ(std::fmod(rows, kCalibratedUnit), 0.0) << rows;
      EXPECT_LT(*least, *most) << "all heads alike";
    }
  }
  EXPECT_EQ(calibrate(model, 1).grow.rows, tables.grow.rows) << "threads change the result";
  EngineOptions options;
  EXPECT_FALSE(Calibration::make(model, options, 100).ok());
  EXPECT_FALSE(Calibration::make(model, options, 10000).ok());
  options.device = "cuda";
  const auto on_card = Calibration::make(model, options, kLength);
  ASSERT_FALSE(on_card.ok());
  EXPECT_EQ(on_card.status().message(), "device cuda; calibration runs on the CPU: auto or cpu");
}

TEST(Calibration, NumbersThatAreNotFiniteAreAnError) {
  const auto error_of = [](const std::shared_ptr<const Model>& model) {
    auto calibration = Calibration::make(model, {}, kLength);
    EXPECT_TRUE(calibration.ok()) << calibration.status().message();
    return (*calibration)->add_text(text(0), [] {}).message();
  };
  const auto in_layer_1 = [](const std::string& name, std::vector<float>& values) {
    if (name == "model.layers.1.mlp.down_proj.weight") values[0] = std::numeric_limits<float>::quiet_NaN();
  };
  for (const int64_t window : {0, 64}) {
    EXPECT_EQ(error_of(make_tiny_model({.window = window}, in_layer_1)),
              "the model's numbers are not finite after layer 1, at token 0 of text 0");
  }
  const int32_t token = text(0)[4];
  const auto ill = make_tiny_model({}, [&](const std::string& name, std::vector<float>& values) {
    if (name == testing::kEmbedding)
      values[static_cast<size_t>(token) * 32] = std::numeric_limits<float>::infinity();
  });
  EXPECT_EQ(error_of(ill), "the model's numbers are not finite after the embedding, at token 4 of text 0");
}

TEST(Calibration, TheEngineKeepsToTheTable) {
  const auto model = make_tiny_model();
  EngineOptions options;
  options.threads = 2;
  options.max_model_len = 512;
  Request request;
  request.prompt = text(7);
  request.max_tokens = 60;
  request.ignore_eos = true;
  request.sampling.temperature = 0;
  request.sampling.num_logprobs = 0;
  CacheRequest cache;
  cache.budget = 96;
  request.cache = *resolve_cache_settings(cache, {.has_calibration = true});
  ASSERT_EQ(request.cache.allocation, Allocation::kCalibrated) << "the default where there is a table";
  {
    const auto engine = start_engine(model, options);
    testing::Collector collector;
    const Status status = engine->submit(collector.handle(request));
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << "there is no table";
    EXPECT_EQ(status.param(), "cache.allocation");
  }
  options.allocation = std::make_shared<const AllocationTables>(calibrate(model, 2));
  const auto engine = start_engine(model, options);
  Request uniform = request;
  uniform.cache.allocation = Allocation::kUniform;
  Request exact = request;
  exact.cache.budget = 400;
  Request full = request;
  full.cache = CacheSettings::full();
  const auto answers = ask(*engine, {request, uniform, exact, full});
  EXPECT_LE(answers[0][0].counters.cache.kept, 96);
  EXPECT_GT(answers[0][0].counters.cache.kept_max, answers[1][0].counters.cache.kept_max);
  EXPECT_GT(answers[0][0].counters.cache.events, 0);
  EXPECT_NE(answers[0][0].logprobs, answers[1][0].logprobs);
  EXPECT_TRUE(answers[2][0] == answers[3][0]) << "a budget that is not reached changes no bit";
  testing::expect_idle_and_free(*engine);
}

}  // namespace
}  // namespace restkv

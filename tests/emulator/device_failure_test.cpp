// The k-th call of the device fails, for every k of a short run: the request ends with an error or the start does, a lost device
// ends readiness, another one does not, and nothing crashes or hangs.
#include "emulator/emulator.h"
#include "engine/device.h"
#include "engine/device_name.h"
#include "tests/emulator/emulated_backend.h"
#include "tests/engine/answer_collector.h"
#include "tests/engine/tiny_model.h"

namespace restkv {
namespace {

using testing::Answer;
using testing::Collector;

constexpr int kIllegalAddress = 700;  // the device is lost
constexpr int kOutOfMemory = 2;

EngineOptions emulated_options() {
  EngineOptions options;
  options.max_model_len = 64;
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = 16;
  options.backend_maker = []() -> Result<std::unique_ptr<Backend>> { return make_emulated_backend(); };
  return options;
}

Request short_request() {
  Request request;
  request.prompt = {5, 6, 7};
  request.max_tokens = 2;
  request.ignore_eos = true;
  request.sampling.temperature = 0;
  return request;
}

// What became of one run in which call k fails.
struct Outcome {
  bool started = false, is_healthy = false;
  Answer answer;
};

Outcome run(const std::shared_ptr<const Model>& model, int64_t k, int code) {
  Outcome outcome;
  emulator::fail_call(k, code);
  Result<std::unique_ptr<Engine>> engine = Engine::start(model, emulated_options());
  outcome.started = engine.ok();
  if (engine.ok()) {
    Collector collector;
    const auto handle = collector.handle(short_request());
    const Status submitted = (*engine)->submit(handle);
    EXPECT_TRUE(submitted.ok()) << submitted.message();
    if (submitted.ok()) outcome.answer = collector.collect({handle})[0][0];
    outcome.is_healthy = (*engine)->is_healthy();
  } else {
    EXPECT_EQ(engine.status().code(), StatusCode::kUnavailable) << engine.status().message();
  }
  emulator::fail_call(0, 0);
  return outcome;
}

TEST(DeviceFailure, EveryCallMayFail) {
  testing::TinyShape shape;
  shape.layers = 1;
  const auto model = testing::make_tiny_model(shape);
  const Outcome whole = run(model, 0, 0);
  ASSERT_TRUE(whole.started);
  ASSERT_EQ(whole.answer.tokens.size(), 2u);
  int failed_starts = 0, failed_answers = 0;
  for (const int code : {kIllegalAddress, kOutOfMemory}) {
    bool saw_failure = true;
    for (int64_t k = 1; saw_failure; ++k) {
      ASSERT_LT(k, 2000) << "a run of so few tokens does not make so many calls";
      const Outcome outcome = run(model, k, code);
      saw_failure = !outcome.started || !outcome.answer.error.ok();
      if (!outcome.started) {
        ++failed_starts;
      } else if (saw_failure) {
        ++failed_answers;
        EXPECT_NE(outcome.answer.error.message().find("device failure"), std::string::npos)
            << outcome.answer.error.message();
        EXPECT_EQ(outcome.is_healthy, code != kIllegalAddress) << "call " << k;
        EXPECT_EQ(outcome.answer.num_finishes, 1);
      } else {
        EXPECT_EQ(outcome.answer.tokens, whole.answer.tokens);
      }
    }
  }
  EXPECT_GT(failed_starts, 4);
  EXPECT_GT(failed_answers, 40);
}

TEST(Device, NamesAreChecked) {
  for (const char* name : {"auto", "cpu", "cuda", "cuda:0", "cuda:12"})
    EXPECT_TRUE(check_device_name(name).ok()) << name;
  for (const char* name : {"", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:1x", "cudas", "CPU"})
    EXPECT_EQ(check_device_name(name).code(), StatusCode::kInvalidArgument) << name;
  EXPECT_EQ(check_device_name("cuda:0,1").code(), StatusCode::kUnimplemented);
}

// The program runs where there is no driver, and says so.
TEST(Device, AutoIsTheCpuWhereThereIsNoCard) {
  const EngineOptions options;
  const std::string text = device_text(options);
  if (text.starts_with("cuda:")) GTEST_SKIP() << "there is a card";
  EXPECT_TRUE(text.starts_with("CPU (no CUDA: ")) << text;
  const auto backend = make_backend(options);
  ASSERT_TRUE(backend.ok());
  EXPECT_EQ((*backend)->activation_type(), DType::kF32);
  EngineOptions wanted;
  wanted.device = "cuda:0";
  EXPECT_EQ(make_backend(wanted).status().code(), StatusCode::kUnavailable);
}

TEST(Device, ShapesWithoutAKernelAreRefusedAtLoad) {
  testing::TinyShape shape;
  shape.head_dim = 12;
  const auto model = testing::make_tiny_model(shape);
  const Result<std::unique_ptr<Engine>> engine = Engine::start(model, emulated_options());
  ASSERT_FALSE(engine.ok());
  EXPECT_NE(engine.status().message().find("head dim 12; there are the multiples of 8 up to 256"),
            std::string::npos)
      << engine.status().message();
}

TEST(Device, TooLittleMemoryNamesTheSetting) {
  EngineOptions options = emulated_options();
  options.max_model_len = 512;
  options.backend_maker = []() -> Result<std::unique_ptr<Backend>> {
    return make_emulated_backend({.memory_bytes = int64_t{52} << 20});  // 48 MiB are the backend's own
  };
  options.memory_fraction = 0.01;
  const Result<std::unique_ptr<Engine>> engine = Engine::start(testing::make_tiny_model(), options);
  ASSERT_FALSE(engine.ok());
  EXPECT_NE(engine.status().message().find("--max-model-len"), std::string::npos)
      << engine.status().message();
  EXPECT_NE(engine.status().message().find("--memory-fraction"), std::string::npos)
      << engine.status().message();
}

}  // namespace
}  // namespace restkv

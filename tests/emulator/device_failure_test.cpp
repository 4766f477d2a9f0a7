// The k-th call of the device fails, for every k of a short run: the request ends with an error or the start does, a lost device
// ends readiness, another one does not, and nothing crashes or hangs.
#include <chrono>
#include <thread>

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

EngineOptions emulated_options(bool use_graphs = true) {
  EngineOptions options;
  options.max_model_len = 64;
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = 16;
  options.backend_maker = [use_graphs]() -> Result<std::unique_ptr<Backend>> {
    return make_emulated_backend({.use_graphs = use_graphs});
  };
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

Outcome run(const std::shared_ptr<const Model>& model, int64_t k, int code, bool use_graphs) {
  Outcome outcome;
  emulator::fail_call(k, code);
  Result<std::unique_ptr<Engine>> engine = Engine::start(model, emulated_options(use_graphs));
  outcome.started = engine.ok();
  if (engine.ok()) {
    Collector collector;
    const auto handle = collector.handle(short_request());
    const Status submitted = (*engine)->submit(handle);
    EXPECT_TRUE(submitted.ok()) << submitted.message();
    if (submitted.ok()) outcome.answer = collector.collect({handle})[0][0];
    // A lost device ends readiness within a second; the streams may have their error a moment before.
    outcome.is_healthy = (*engine)->is_healthy();
    for (int i = 0; i < 1000 && code == kIllegalAddress && !outcome.answer.error.ok() && outcome.is_healthy;
         ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      outcome.is_healthy = (*engine)->is_healthy();
    }
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
  const Outcome whole = run(model, 0, 0, true);
  ASSERT_TRUE(whole.started);
  ASSERT_EQ(whole.answer.tokens.size(), 2u);
  int failed_starts = 0, failed_answers = 0, named_layers = 0;
#if defined(__SANITIZE_ADDRESS__)
  constexpr int64_t kStep = 7;  // a run takes ten times as long there
#else
  constexpr int64_t kStep = 1;
#endif
  // A graph is one call; without them each launch of a step is one.
  for (const auto& [code, use_graphs] :
       {std::pair{kIllegalAddress, true}, {kIllegalAddress, false}, {kOutOfMemory, true}}) {
    bool saw_failure = true;
    // An error that the device survives takes the same way up: fewer calls tell as much.
    const int64_t step = code == kIllegalAddress ? kStep : 5 * kStep;
    for (int64_t k = 1; saw_failure; k += step) {
      ASSERT_LT(k, 2000) << "a run of so few tokens does not make so many calls";
      const Outcome outcome = run(model, k, code, use_graphs);
      saw_failure = !outcome.started || !outcome.answer.error.ok();
      if (!outcome.started) {
        ++failed_starts;
      } else if (saw_failure) {
        ++failed_answers;
        EXPECT_NE(outcome.answer.error.message().find("device failure"), std::string::npos)
            << outcome.answer.error.message();
        named_layers +=
            outcome.answer.error.message().find("matmul [1, 32] -> [1, 64] of layer 0:") != std::string::npos;
        EXPECT_EQ(outcome.is_healthy, code != kIllegalAddress) << "call " << k;
        EXPECT_EQ(outcome.answer.num_finishes, 1);
      } else {
        EXPECT_EQ(outcome.answer.tokens, whole.answer.tokens);
      }
    }
  }
  EXPECT_GT(failed_starts, 4 / kStep);
  EXPECT_GT(failed_answers, 40 / kStep);
  if (kStep == 1) {
    EXPECT_GT(named_layers, 0) << "op, shapes and layer of the products of Q, K and V";
  }
}

// A device that lives on after a failure between the layers of a prompt whose cuts are enqueued: the request fails, and the next
// one finds every page and none of the counts.
TEST(DeviceFailure, CutsOfAPromptAreForgotten) {
  testing::TinyShape shape;
  shape.layers = 2;
  const auto model = testing::make_tiny_model(shape);
  EngineOptions options = emulated_options();
  options.prefix_fraction = 0;
  Request request = short_request();
  for (int32_t i = 0; i < 17; ++i) request.prompt.push_back(8 + i);  // in units
  CacheRequest cache;
  cache.policy = "restkv";
  cache.budget = 12;
  cache.window = 2;
  cache.pin = 1;
  request.cache = *resolve_cache_settings(cache, {});
  request.reports_progress = true;
  const auto engine = testing::start_engine(model, options);
  const Answer whole = testing::ask(*engine, {request})[0][0];
  ASSERT_EQ(whole.tokens.size(), 2u);
  const int64_t events = whole.counters.cache.events;
  ASSERT_GE(events, 2);
  int num_failed = 0, num_whole = 0;
  for (int64_t k = 1; num_whole == 0 && k < 400; k += 9) {
    testing::expect_idle_and_free(*engine);
    const int64_t before = engine->stats().eviction_events;
    emulator::fail_call(k, kOutOfMemory);
    Request failing = request;
    if (k % 2 == 0) failing.cache.trace = TraceMode::kOn;  // it reads each cut back
    const Answer answer = testing::ask(*engine, {failing})[0][0];
    emulator::fail_call(0, 0);
    testing::expect_idle_and_free(*engine);
    const int64_t failed_events = engine->stats().eviction_events - before;
    EXPECT_LE(failed_events, events) << "call " << k;
    ++(answer.error.ok() ? num_whole : num_failed);
    const Answer next = testing::ask(*engine, {request})[0][0];
    EXPECT_TRUE(next == whole) << "after call " << k << " failed: " << next.error.message();
    EXPECT_EQ(next.counters.cache.events, events);
    EXPECT_EQ(next.counters.cache.evicted, whole.counters.cache.evicted);
    testing::expect_idle_and_free(*engine);
    EXPECT_EQ(engine->stats().eviction_events - before, failed_events + events) << "call " << k;
  }
  EXPECT_GT(num_failed, 8);
  EXPECT_EQ(num_whole, 1);
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

// The attention kernels fit the 99 KiB of sm_86 and sm_89; where there is less, the f32 ones of the tests do not.
TEST(Device, ShapesWhoseKernelsDoNotFitTheCardAreRefusedAtLoad) {
  const auto half = make_emulated_backend(
      {.type = DType::kBF16, .card = emulator::Card::kSm80, .max_shared_bytes = 99 << 10});
  const auto full = make_emulated_backend({.type = DType::kF32, .max_shared_bytes = 90 << 10});
  AttentionShape shape = {.num_heads = 2, .num_kv_heads = 1, .head_dim = 256};
  EXPECT_TRUE(half->check_attention_shape(shape).ok()) << half->check_attention_shape(shape).message();
  const Status refused = full->check_attention_shape(shape);
  EXPECT_EQ(refused.code(), StatusCode::kUnimplemented);
  EXPECT_NE(refused.message().find("head dim 256 of F32 on emulated"), std::string::npos)
      << refused.message();
  EXPECT_NE(refused.message().find("the card has 90 KiB; there are the multiples of 8 up to"),
            std::string::npos)
      << refused.message();
  shape.head_dim = 64;
  EXPECT_TRUE(full->check_attention_shape(shape).ok());
}

TEST(Device, PagesThatNoKernelCanDivideAreRefusedAtLoad) {
  const AttentionShape shape = {.num_heads = 2, .num_kv_heads = 1, .head_dim = 64};
  for (int32_t slots = 8; slots <= 512; slots += 8) {
    const Status status = make_emulated_backend({.page_slots = slots})->check_attention_shape(shape);
    const bool is_covered = slots == 16 || slots == 32 || slots == 64 || slots == 128 || slots == 256;
    EXPECT_EQ(status.ok(), is_covered) << slots << ": " << status.message();
    if (!is_covered) {
      EXPECT_NE(status.message().find("powers of 2 from 16 to 256"), std::string::npos) << status.message();
    }
  }
}

TEST(Device, WhatIsLeftOpenDependsOnTheDevice) {
  const auto card = make_emulated_backend();
  const EngineOptions on_card = fit_options({}, *card);
  EXPECT_EQ(on_card.max_num_seqs, 256);
  EXPECT_EQ(on_card.max_num_batched_tokens, 2048);
  EngineOptions wanted;
  wanted.device = "cpu";
  const auto cpu = make_backend(wanted);
  ASSERT_TRUE(cpu.ok());
  EXPECT_EQ(fit_options({}, **cpu).max_num_seqs, 32);
  EXPECT_EQ(fit_options({}, **cpu).max_num_batched_tokens, 512);
  wanted.max_num_seqs = 3000;  // more than a step's rows by default
  EXPECT_GT(fit_options(wanted, *card).max_num_batched_tokens, 3000);
  wanted.max_num_seqs = 0;
  wanted.max_num_batched_tokens = 16;
  EXPECT_LT(fit_options(wanted, *card).max_num_seqs, 16);
}

TEST(Device, TooLittleMemoryNamesTheSetting) {
  EngineOptions options = emulated_options();
  options.max_model_len = 512;
  options.backend_maker = []() -> Result<std::unique_ptr<Backend>> {
    return make_emulated_backend({.memory_bytes = int64_t{44} << 20});  // 40 MiB are the backend's own
  };
  options.memory_fraction = 0.01;
  const Result<std::unique_ptr<Engine>> engine = Engine::start(testing::make_tiny_model(), options);
  ASSERT_FALSE(engine.ok());
  // Not even a short sequence fits: no length is named.
  EXPECT_NE(engine.status().message().find("left; lower --max-model-len, raise --memory-fraction"),
            std::string::npos)
      << engine.status().message();
}

}  // namespace
}  // namespace restkv

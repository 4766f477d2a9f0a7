// Eviction in the running engine: budgets hold, answers depend on nothing but the sequence itself, and a budget that is
// never reached changes no bit.
#include <gtest/gtest.h>

#include <random>

#include "engine/device.h"
#include "engine/executor.h"
#include "engine/host_memory.h"
#include "tests/engine/answer_collector.h"
#include "tests/engine/random_settings.h"
#include "tests/engine/tiny_model.h"

namespace restkv {
namespace {

using testing::Answer;
using testing::ask;
using testing::make_tiny_model;
using testing::start_engine;

constexpr int32_t kContext = 512;

EngineOptions options_of(int32_t threads, int32_t batched_tokens) {
  EngineOptions options;
  options.threads = threads;
  options.max_num_seqs = 10;
  options.max_num_batched_tokens = batched_tokens;
  options.max_model_len = kContext;
  return options;
}

CacheSettings settings_of(const CacheRequest& request) {
  CacheLimits limits;
  limits.max_model_len = kContext;
  const Result<CacheSettings> settings = resolve_cache_settings(request, limits);
  EXPECT_TRUE(settings.ok()) << settings.status().message();
  return *settings;
}

CacheRequest policy(const std::string& name, int64_t budget) {
  CacheRequest request;
  request.policy = name;
  request.budget = budget;
  request.window = 8;
  return request;
}

Request request_of(int32_t seed, int32_t prompt_len, int32_t max_tokens, const CacheRequest& cache) {
  Request request;
  for (int32_t i = 0; i < prompt_len; ++i) request.prompt.push_back(3 + (i * i * 13 + i * 7 + seed * 5) % 60);
  request.max_tokens = max_tokens;
  request.ignore_eos = true;
  request.sampling.seed = static_cast<uint64_t>(seed);
  request.sampling.temperature = 0.8f;
  request.sampling.num_logprobs = 0;
  request.cache = settings_of(cache);
  return request;
}

// One request for every policy and mode, prompts above and below the budget, short and long ones.
std::vector<Request> all_policies() {
  std::vector<Request> requests;
  int32_t seed = 1;
  for (const char* name :
       {"restkv", "snapkv", "streamingllm", "h2o", "tova", "pyramidkv", "adakv", "lacache", "random"}) {
    for (const int32_t prompt_len : {30, 130, 300}) {
      for (const char* decode : {"evict", "grow"}) {
        CacheRequest cache = policy(name, 64 + 3 * (seed % 4));
        cache.decode = decode;
        if (std::string(name) == "restkv" && seed % 3 == 0) cache.preset = "paper";
        if (std::string(name) == "restkv" && seed % 3 == 1) cache.pin = 8;
        requests.push_back(request_of(seed++, prompt_len, 90, cache));
      }
    }
  }
  return requests;
}

TEST(EvictionEngine, BudgetsHoldAndAnswersAreTheSameAloneInABatchForAnyCut) {
  const auto model = make_tiny_model();
  const std::vector<Request> requests = all_policies();
  std::vector<Answer> alone;
  {
    const auto engine = start_engine(model, options_of(1, 400));
    for (const Request& request : requests) alone.push_back(ask(*engine, {request})[0][0]);
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    const Request& request = requests[i];
    const CacheCounters& cache = alone[i].counters.cache;
    SCOPED_TRACE(std::string(policy_name(request.cache.policy)) + ", prompt " +
                 std::to_string(request.prompt.size()));
    EXPECT_EQ(alone[i].tokens.size(), 90u);
    const auto total = static_cast<int64_t>(request.prompt.size()) + 89;
    const bool is_cut = request.cache.decode == DecodeMode::kEvict ||
                        static_cast<int32_t>(request.prompt.size()) > request.cache.budget;
    EXPECT_EQ(cache.evicted > 0, is_cut);
    EXPECT_EQ(cache.events > 0, is_cut);
    if (request.cache.decode == DecodeMode::kEvict) {
      const bool is_uniform = request.cache.allocation == Allocation::kUniform;
      EXPECT_LE(cache.kept, request.cache.budget);
      // What was evicted and what is left are all rows there ever were: 3 layers x 2 heads.
      if (is_uniform) {
        EXPECT_LE(cache.kept_max, request.cache.budget);
        EXPECT_GE(cache.evicted, (total - request.cache.budget) * 6);
      }
    } else {
      EXPECT_EQ(cache.kept, std::min(static_cast<int32_t>(request.prompt.size()), request.cache.budget) + 89);
    }
  }
  for (const int32_t batched : {80, 400}) {
    const auto engine = start_engine(model, options_of(2, batched));
    const auto together = ask(*engine, requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_TRUE(together[i][0] == alone[i]) << policy_name(requests[i].cache.policy) << " request " << i;
      EXPECT_EQ(together[i][0].counters.cache.evicted, alone[i].counters.cache.evicted);
      EXPECT_EQ(together[i][0].counters.cache.events, alone[i].counters.cache.events);
    }
    testing::expect_idle_and_free(*engine);
  }
}

TEST(EvictionEngine, ABudgetThatIsNotReachedChangesNoBit) {
  const auto engine = start_engine(make_tiny_model(), options_of(2, 200));
  for (const char* name : {"restkv", "h2o", "adakv", "pyramidkv", "streamingllm"}) {
    for (const int32_t prompt_len : {20, 260}) {
      CacheRequest full;
      full.policy = "full";
      const Request exact = request_of(3, prompt_len, 40, policy(name, prompt_len + 40));
      const auto answers = ask(*engine, {exact, request_of(3, prompt_len, 40, full)});
      EXPECT_TRUE(answers[0][0] == answers[1][0]) << name << " " << prompt_len;
      EXPECT_EQ(answers[0][0].counters.cache.events, 0) << name;
    }
  }
}

TEST(EvictionEngine, PromptLogprobsAndTheFirstTokenAreThoseOfTheFullCache) {
  const auto engine = start_engine(make_tiny_model(), options_of(2, 100));
  CacheRequest full;
  full.policy = "full";
  std::vector<Request> requests = {request_of(5, 250, 20, policy("restkv", 64)),
                                   request_of(5, 250, 20, full)};
  for (Request& request : requests) request.prompt_logprobs = 0;
  const auto answers = ask(*engine, requests);
  for (size_t i = 1; i < 250; ++i)
    EXPECT_EQ(answers[0][0].prompt_logprobs[i], answers[1][0].prompt_logprobs[i]) << i;
  EXPECT_EQ(answers[0][0].tokens[0], answers[1][0].tokens[0]);
  EXPECT_NE(answers[0][0].logprobs, answers[1][0].logprobs) << "eviction has no effect on the answer";
}

// One prefill for all requests (of one prompt), whole within a step or in units of `unit_rows`, then decode as one batch.
std::vector<Answer> ask_as_group(const Model& model, const std::vector<Request>& requests,
                                 int32_t unit_rows) {
  EngineOptions options = options_of(2, 400);
  options.max_num_seqs = static_cast<int32_t>(requests.size());
  auto backend = make_backend(options);
  const auto plan = Executor::plan(model, **backend, options, available_host_memory());
  EXPECT_TRUE(plan.ok()) << plan.status().message();
  Executor executor(model, **backend, options, *plan);
  std::vector<Sequence> sequences(requests.size());
  std::vector<Answer> answers(requests.size());
  StepBatch batch;
  for (size_t i = 0; i < requests.size(); ++i) {
    Sequence& sequence = sequences[i];
    sequence.handle = std::make_shared<RequestHandle>(requests[i], nullptr);
    sequence.tokens = requests[i].prompt;
    sequence.prompt_len = static_cast<int32_t>(requests[i].prompt.size());
    executor.prepare(sequence);
    EXPECT_TRUE(executor.can_admit(sequence));
    executor.admit(sequence);
    if (i > 0) sequences[0].followers.push_back(&sequence);
  }
  std::vector<StepResult> results;
  const auto take = [&] {
    for (const StepResult& result : results) {
      Sequence& sequence = *result.sequence;
      sequence.tokens.push_back(result.sample->token);
      Answer& answer = answers[static_cast<size_t>(&sequence - sequences.data())];
      answer.tokens.push_back(result.sample->token);
      answer.logprobs.push_back(result.sample->logprob);
    }
  };
  if (unit_rows == 0) {
    batch.prompts.push_back(sequences.data());
    executor.run_step(batch, results);
  } else {
    executor.start_prefill(sequences[0], true);
    const int32_t rows = sequences[0].prompt_len;
    for (int32_t layer = 0; layer < model.config.num_layers; ++layer) {
      for (int32_t row = 0; row < rows; row += unit_rows)
        executor.run_unit({sequences.data(), layer, row, std::min(unit_rows, rows - row)}, results);
    }
  }
  EXPECT_EQ(results.size(), requests.size());
  take();
  batch.clear();
  for (Sequence& sequence : sequences) batch.decodes.push_back({&sequence, 1});
  while (sequences[0].num_generated() < requests[0].max_tokens) {
    executor.run_step(batch, results);
    take();
  }
  for (size_t i = 0; i < sequences.size(); ++i) {
    answers[i].finish = FinishReason::kLength;
    answers[i].counters.cache = executor.cache_counters(sequences[i]);
    executor.release(sequences[i]);
  }
  EXPECT_EQ(executor.pool().owned(), 0);
  return answers;
}

TEST(EvictionEngine, OnePrefillServesManySettingsAndChangesNoBit) {
  const auto model = make_tiny_model();
  for (const int32_t prompt_len : {130, 300}) {
    std::vector<Request> requests;
    for (Request& request : all_policies()) {
      Request one = request_of(1, prompt_len, 60, {});
      one.cache = request.cache;
      one.sampling.seed = request.sampling.seed;
      requests.push_back(std::move(one));
    }
    Request full = requests[0];
    full.cache = CacheSettings::full();
    requests.insert(requests.begin() + 7, full);  // in the middle: its neighbours need other queries
    requests[3].cache.window = 20;                // the longest window is not the leader's
    std::vector<Answer> alone;
    {
      const auto engine = start_engine(model, options_of(1, 400));
      for (const Request& request : requests) alone.push_back(ask(*engine, {request})[0][0]);
    }
    for (const int32_t unit_rows : {0, 37}) {
      const std::vector<Answer> group = ask_as_group(*model, requests, unit_rows);
      for (size_t i = 0; i < requests.size(); ++i) {
        SCOPED_TRACE(std::string(policy_name(requests[i].cache.policy)) + " " + std::to_string(i));
        EXPECT_TRUE(group[i] == alone[i]);
        EXPECT_EQ(group[i].counters.cache.evicted, alone[i].counters.cache.evicted);
        EXPECT_EQ(group[i].counters.cache.events, alone[i].counters.cache.events);
      }
    }
  }
}

// Windowed layers among the others in the second round.
TEST(EvictionEngine, RandomSettingsNeverBreakTheBudget) {
  for (const int64_t window : {0, 20}) {
    const auto engine = start_engine(make_tiny_model({.window = window}), options_of(2, 120));
    std::mt19937 random(11);
    std::vector<Request> requests;
    while (requests.size() < 60) {
      const CacheRequest cache = testing::random_cache_request(random, 220);
      CacheLimits limits;
      limits.max_model_len = kContext;
      if (!resolve_cache_settings(cache, limits).ok()) continue;
      requests.push_back(request_of(static_cast<int32_t>(requests.size()),
                                    1 + static_cast<int32_t>(random() % 300),
                                    1 + static_cast<int32_t>(random() % 150), cache));
    }
    const auto answers = ask(*engine, requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(answers[i][0].finish, FinishReason::kLength) << answers[i][0].error.message();
      const CacheCounters& cache = answers[i][0].counters.cache;
      const CacheSettings& settings = requests[i].cache;
      if (settings.allocation == Allocation::kUniform && settings.decode == DecodeMode::kEvict &&
          settings.policy != PolicyKind::kFull) {
        EXPECT_LE(cache.kept_max, settings.budget) << policy_name(settings.policy);
      }
      EXPECT_EQ(cache.nan_rows, 0);
      EXPECT_GE(cache.evicted, cache.events);
      // What left a window is not counted.
      if (settings.policy == PolicyKind::kFull) {
        EXPECT_EQ(cache.evicted, 0);
      }
    }
    testing::expect_idle_and_free(*engine);
  }
}

}  // namespace
}  // namespace restkv

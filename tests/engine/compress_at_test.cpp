// compress_at and probes in the running engine: the rest of a prompt goes through the decode path against the compressed
// cache, token by token in effect, and a probe gives queries and nothing else.
#include <gtest/gtest.h>

#include "engine/group_run.h"
#include "tests/engine/answer_collector.h"
#include "tests/engine/tiny_model.h"

namespace restkv {
namespace {

using testing::Answer;
using testing::ask;
using testing::make_tiny_model;
using testing::start_engine;

constexpr int32_t kContext = 512;

EngineOptions options_of(int32_t threads, int32_t batched_tokens, int32_t num_seqs) {
  EngineOptions options;
  options.threads = threads;
  options.max_num_seqs = num_seqs;
  options.max_num_batched_tokens = batched_tokens;
  options.max_model_len = kContext;
  return options;
}

CacheRequest policy(const std::string& name, int64_t budget) {
  CacheRequest request;
  request.policy = name;
  request.budget = budget;
  request.window = 8;
  request.probe = ProbeSpec{};
  return request;
}

ProbeSpec probe_of(std::vector<int32_t> tokens) {
  return {.kind = ProbeSpec::Kind::kTokens, .text = {}, .tokens = std::move(tokens)};
}

Request request_of(int32_t seed, int32_t prompt_len, int32_t max_tokens, const CacheRequest& cache) {
  Request request;
  for (int32_t i = 0; i < prompt_len; ++i) request.prompt.push_back(3 + (i * i * 13 + i * 7 + seed * 5) % 60);
  request.max_tokens = max_tokens;
  request.ignore_eos = true;
  request.sampling.seed = static_cast<uint64_t>(seed);
  request.sampling.temperature = 0.8f;
  request.sampling.num_logprobs = 0;
  request.prompt_logprobs = 0;
  const Result<CacheSettings> settings = resolve_cache_settings(cache, {.max_model_len = kContext});
  EXPECT_TRUE(settings.ok()) << settings.status().message();
  request.cache = *settings;
  return request;
}

// Bitwise; the first prompt token has no log probability.
void expect_same(const Answer& a, const Answer& b, const std::string& what) {
  EXPECT_TRUE(a == b) << what;
  ASSERT_EQ(a.prompt_logprobs.size(), b.prompt_logprobs.size()) << what;
  for (size_t i = 1; i < a.prompt_logprobs.size(); ++i)
    ASSERT_EQ(a.prompt_logprobs[i], b.prompt_logprobs[i]) << what << ", prompt token " << i;
  EXPECT_EQ(a.counters.cache.evicted, b.counters.cache.evicted) << what;
  EXPECT_EQ(a.counters.cache.events, b.counters.cache.events) << what;
  EXPECT_EQ(a.counters.cache.kept, b.counters.cache.kept) << what;
  EXPECT_EQ(a.counters.cache.kept_max, b.counters.cache.kept_max) << what;
}

TEST(CompressAt, AnswersAreTheSameAloneInABatchForAnyCut) {
  const auto model = make_tiny_model();
  std::vector<Request> requests;
  int32_t seed = 1;
  for (const char* name :
       {"restkv", "snapkv", "streamingllm", "h2o", "tova", "pyramidkv", "adakv", "lacache", "random"}) {
    for (const char* decode : {"evict", "grow"}) {
      for (const int32_t compress_at : {20, 100, 230}) {
        CacheRequest cache = policy(name, 64 + 5 * (seed % 4));
        cache.decode = decode;
        cache.compress_at = compress_at;
        if (std::string(name) == "restkv") cache.probe = probe_of({5, 9, 11, 40, 7});
        if (std::string(name) == "restkv" && seed % 2 == 0) cache.pin = 8;
        requests.push_back(request_of(seed++, 250, 30, cache));
      }
    }
  }
  std::vector<Answer> alone;
  {
    // One sequence and batches so narrow that at most 3 rows are fed at once; units of 4 rows.
    const auto engine = start_engine(model, options_of(1, 4, 1));
    for (const Request& request : requests) alone.push_back(ask(*engine, {request})[0][0]);
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    const CacheSettings& cache = requests[i].cache;
    EXPECT_EQ(alone[i].finish, FinishReason::kLength) << alone[i].error.message();
    EXPECT_EQ(alone[i].tokens.size(), 30u);
    if (cache.decode == DecodeMode::kEvict) {
      EXPECT_LE(alone[i].counters.cache.kept, cache.budget);
      if (cache.allocation == Allocation::kUniform) {
        EXPECT_LE(alone[i].counters.cache.kept_max, cache.budget);
      }
    } else if (cache.allocation == Allocation::kUniform) {
      EXPECT_EQ(alone[i].counters.cache.kept,
                std::min(*cache.compress_at, cache.budget) + 250 - *cache.compress_at + 29);
    }
  }
  for (const int32_t batched : {40, 400}) {
    const auto engine = start_engine(model, options_of(2, batched, 9));
    const auto together = ask(*engine, requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      const CacheSettings& cache = requests[i].cache;
      expect_same(together[i][0], alone[i],
                  std::string(policy_name(cache.policy)) + " at " + std::to_string(*cache.compress_at));
    }
    testing::expect_idle_and_free(*engine);
  }
}

// Choices share one prefill and its probe; each feeds the rest of the prompt into its own pages.
TEST(CompressAt, ChoicesAreThoseOfRequestsAlone) {
  const auto engine = start_engine(make_tiny_model(), options_of(2, 60, 6));
  for (const int32_t compress_at : {30, 180}) {
    CacheRequest cache = policy("restkv", 64);
    cache.compress_at = compress_at;
    cache.probe = probe_of({5, 9, 11, 40, 7});
    Request request = request_of(4, 250, 30, cache);
    const Answer alone = ask(*engine, {request})[0][0];
    request.num_choices = 3;
    const auto choices = ask(*engine, {request, request_of(9, 120, 30, policy("snapkv", 64))})[0];
    expect_same(choices[0], alone, "choice 0 at " + std::to_string(compress_at));
    EXPECT_NE(choices[1].tokens, choices[2].tokens);
    for (const Answer& choice : choices) {
      EXPECT_EQ(choice.counters.cache.evicted, alone.counters.cache.evicted);
      EXPECT_EQ(choice.prompt_logprobs.back(), alone.prompt_logprobs.back());
    }
  }
  testing::expect_idle_and_free(*engine);
}

TEST(CompressAt, PromptLogprobsSeeTheEviction) {
  const auto engine = start_engine(make_tiny_model(), options_of(2, 200, 9));
  CacheRequest full;
  full.policy = "full";
  full.compress_at = 150;
  std::vector<Request> requests = {request_of(5, 250, 4, full)};
  for (const char* name : {"restkv", "snapkv", "streamingllm", "h2o", "tova", "lacache", "random"}) {
    CacheRequest cache = policy(name, 64);
    requests.push_back(request_of(5, 250, 4, cache));
    cache.compress_at = 150;
    requests.push_back(request_of(5, 250, 4, cache));
  }
  const auto answers = ask(*engine, requests);
  const std::vector<float>& reference = answers[0][0].prompt_logprobs;
  for (size_t i = 1; i < answers.size(); ++i) {
    const std::vector<float>& logprobs = answers[i][0].prompt_logprobs;
    const bool is_compressed = requests[i].cache.compress_at.has_value();
    SCOPED_TRACE(std::string(policy_name(requests[i].cache.policy)) + (is_compressed ? " compressed" : ""));
    size_t num_different = 0;
    for (size_t t = 1; t < 250; ++t) {
      // Row t - 1 predicts token t: the last row before the cut sees the full cache.
      if (!is_compressed || t <= 150) {
        ASSERT_EQ(logprobs[t], reference[t]) << t;
      } else {
        num_different += logprobs[t] != reference[t];
      }
    }
    if (is_compressed) {
      EXPECT_GT(num_different, 90u);
    }
    for (size_t j = 1; j < i; ++j) {
      if (!is_compressed || !requests[j].cache.compress_at) continue;
      EXPECT_NE(logprobs[249], answers[j][0].prompt_logprobs[249]) << "policy of request " << j;
    }
  }
}

TEST(CompressAt, WithoutEffectItChangesNoBit) {
  const auto engine = start_engine(make_tiny_model(), options_of(2, 200, 9));
  const CacheRequest plain = policy("restkv", 64);
  CacheRequest late = plain;
  late.compress_at = 250;
  late.probe.reset();  // the default probe goes with an effect only, so nobody has to tokenise it here
  CacheRequest exact = late;
  exact.budget = 300;
  exact.compress_at = 100;
  exact.probe = ProbeSpec{};
  CacheRequest full;
  full.policy = "full";
  const auto answers = ask(*engine, {request_of(2, 250, 40, plain), request_of(2, 250, 40, late),
                                     request_of(2, 250, 40, exact), request_of(2, 250, 40, full)});
  expect_same(answers[1][0], answers[0][0], "compress_at == prompt");
  expect_same(answers[2][0], answers[3][0], "prompt + max_tokens within the budget");
}

TEST(Probe, ChangesNoPromptLogitAndLeavesNoRow) {
  const auto model = make_tiny_model();
  CacheRequest none = policy("restkv", 64);
  CacheRequest probed = none;
  probed.probe = probe_of({17, 4, 33, 20, 8, 8, 51});
  CacheRequest other = none;
  other.probe = probe_of({60, 3});
  const std::vector<Request> requests = {request_of(7, 250, 60, none), request_of(7, 250, 60, probed),
                                         request_of(7, 250, 60, other)};
  for (const int32_t batched : {20, 251, 400}) {  // in units; the probe in a unit of its own; within a step
    const auto engine = start_engine(model, options_of(2, batched, 3));
    const auto answers = ask(*engine, requests);
    for (size_t i = 1; i < answers.size(); ++i) {
      const Answer& with = answers[i][0];
      const Answer& without = answers[0][0];
      for (size_t t = 1; t < 250; ++t) ASSERT_EQ(with.prompt_logprobs[t], without.prompt_logprobs[t]) << t;
      EXPECT_EQ(with.tokens[0], without.tokens[0]);
      EXPECT_EQ(with.logprobs[0], without.logprobs[0]);
      EXPECT_EQ(with.counters.cache.kept, without.counters.cache.kept);
      EXPECT_EQ(with.counters.cache.kept_max, without.counters.cache.kept_max);
      EXPECT_EQ(with.counters.cache.evicted, without.counters.cache.evicted);
      EXPECT_EQ(with.counters.cache.bytes, without.counters.cache.bytes);
      EXPECT_NE(with.logprobs, without.logprobs) << "the probe has no say in what stays";
    }
    EXPECT_NE(answers[1][0].logprobs, answers[2][0].logprobs);
    testing::expect_idle_and_free(*engine);
  }
}

TEST(Probe, IsCheckedBeforeItRuns) {
  const auto engine = start_engine(make_tiny_model(), options_of(1, 200, 2));
  testing::Collector collector;
  const auto error_of = [&](const CacheRequest& cache, int32_t prompt_len) {
    return engine->submit(collector.handle(request_of(1, prompt_len, 1, cache)));
  };
  CacheRequest cache = policy("restkv", 64);
  cache.probe = probe_of({1, 64});
  EXPECT_EQ(error_of(cache, 100).param(), "cache.probe[1]");
  cache.probe = probe_of(std::vector<int32_t>(200, 5));
  EXPECT_EQ(error_of(cache, 400).param(), "cache.probe");
  EXPECT_EQ(error_of(cache, 400).reason(), "context_length_exceeded");
  cache.probe.reset();
  cache.compress_at = 80;  // the default probe is a text, which needs a tokenizer
  EXPECT_EQ(error_of(cache, 100).param(), "cache.probe");
  cache.probe = probe_of(std::vector<int32_t>(257, 5));
  EXPECT_EQ(resolve_cache_settings(cache, {}).status().param(), "cache.probe");
}

// What evaluation runs on has no engine before it that checks.
TEST(GroupRun, SaysWhatItCannotRun) {
  EngineOptions options = options_of(1, 64, 2);
  options.max_model_len = 120;
  const auto model = make_tiny_model({}, [](const std::string& name, std::vector<float>& embedding) {
    if (name == testing::kEmbedding) embedding[9 * 32] = std::numeric_limits<float>::quiet_NaN();  // token 9
  });
  const auto runner = GroupRunner::make(model, options, 2);
  ASSERT_TRUE(runner.ok()) << runner.status().message();
  CacheRequest cache = policy("restkv", 64);
  cache.probe = probe_of(std::vector<int32_t>(20, 5));
  const std::vector<CacheSettings> settings = {CacheSettings::full(), *resolve_cache_settings(cache, {})};
  GroupText text = {.prompt = std::vector<int32_t>(110, 7), .forced = {8}, .max_tokens = 1};
  EXPECT_EQ((*runner)->run(text, settings, nullptr).status().reason(), "context_length_exceeded");
  text.prompt.resize(100);
  EXPECT_TRUE((*runner)->run(text, settings, nullptr).ok());
  text.forced = {9};
  EXPECT_EQ((*runner)->run(text, settings, nullptr).status().code(), StatusCode::kInternal);
  text.forced = {8};
  EXPECT_TRUE((*runner)->run(text, settings, nullptr).ok());
}

}  // namespace
}  // namespace restkv

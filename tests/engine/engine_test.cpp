// The engine as its clients see it: same answers alone, in a batch, for any cut of the prompt and any number
// of threads; ends, cancels and limits; pages back to zero.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <thread>

#include "engine/device.h"
#include "engine/executor.h"
#include "tests/engine/answer_collector.h"
#include "tests/engine/tiny_model.h"

namespace restkv {
namespace {

using testing::Answer;
using testing::ask;
using testing::Collector;
using testing::expect_idle_and_free;
using testing::make_tiny_model;

EngineOptions small_options() {
  EngineOptions options;
  options.threads = 2;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 64;
  options.max_model_len = 256;
  return options;
}

Request request_of(int32_t seed, int32_t prompt_len, int32_t max_tokens) {
  Request request;
  for (int32_t i = 0; i < prompt_len; ++i) request.prompt.push_back(3 + (i * 17 + seed * 5) % 60);
  request.max_tokens = max_tokens;
  request.ignore_eos = true;
  request.sampling.seed = static_cast<uint64_t>(seed);
  request.sampling.num_logprobs = 0;
  return request;
}

// Ragged prompts, short and long (units), with different sampling.
std::vector<Request> ragged_requests() {
  std::vector<Request> requests;
  const int32_t lengths[] = {1, 7, 33, 56, 90, 150, 16, 64};
  for (int32_t i = 0; i < 8; ++i) {
    Request request = request_of(i + 1, lengths[i], 20 + i);
    request.sampling.temperature = i % 3 == 0 ? 0.0f : 0.7f + 0.1f * static_cast<float>(i);
    if (i % 2) request.sampling.top_p = 0.9f;
    if (i == 3) request.sampling.repetition_penalty = 1.3f;
    if (i == 5) request.sampling.presence_penalty = 0.5f;
    requests.push_back(std::move(request));
  }
  return requests;
}

TEST(Engine, AnswersAreBitwiseTheSameAloneInABatchForAnyCutAndThreads) {
  const auto model = make_tiny_model();
  std::vector<Answer> expected;
  {
    const auto engine = testing::start_engine(model, small_options());
    for (const Request& request : ragged_requests()) expected.push_back(ask(*engine, {request})[0][0]);
  }
  for (const auto& answer : expected) EXPECT_EQ(answer.finish, FinishReason::kLength);
  struct Setting {
    int32_t threads, batched;
  };
  for (const Setting setting : {Setting{1, 64}, Setting{3, 200}, Setting{2, 33}}) {
    EngineOptions options = small_options();
    options.threads = setting.threads;
    options.max_num_batched_tokens = setting.batched;
    const auto engine = testing::start_engine(model, options);
    const auto together = ask(*engine, ragged_requests());
    for (size_t i = 0; i < together.size(); ++i)
      EXPECT_TRUE(together[i][0] == expected[i])
          << "request " << i << ", threads " << setting.threads << ", rows " << setting.batched;
    expect_idle_and_free(*engine);
  }
}

TEST(Engine, ChoicesDifferAndRepeat) {
  const auto engine = testing::start_engine(make_tiny_model(), small_options());
  Request request = request_of(9, 12, 24);
  request.num_choices = 3;
  const auto first = ask(*engine, {request})[0];
  const auto again = ask(*engine, {request})[0];
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(first[i] == again[i]) << i;
  EXPECT_NE(first[0].tokens, first[1].tokens);
  EXPECT_NE(first[1].tokens, first[2].tokens);
  expect_idle_and_free(*engine);
}

TEST(Engine, StopTokensEndTheAnswerAndAreNotShown) {
  const auto engine = testing::start_engine(make_tiny_model(), small_options());
  Request request = request_of(2, 8, 20);
  request.sampling.temperature = 0;
  const Answer free_run = ask(*engine, {request})[0][0];
  ASSERT_EQ(free_run.tokens.size(), 20u);
  const int32_t stop = free_run.tokens[4];
  size_t first = 0;
  while (free_run.tokens[first] != stop) ++first;
  request.stop_token_ids = {stop};
  const Answer stopped = ask(*engine, {request})[0][0];
  EXPECT_EQ(stopped.finish, FinishReason::kStop);
  EXPECT_EQ(stopped.finish_token, stop);
  EXPECT_EQ(stopped.tokens, std::vector<int32_t>(free_run.tokens.begin(),
                                                 free_run.tokens.begin() + static_cast<int64_t>(first)));
  request.min_tokens = static_cast<int32_t>(first) + 3;  // the stop token is banned until then
  const Answer longer = ask(*engine, {request})[0][0];
  EXPECT_GE(longer.tokens.size(), first + 3);
}

TEST(Engine, BadWordsNeverAppear) {
  const auto engine = testing::start_engine(make_tiny_model(), small_options());
  Request request = request_of(2, 8, 30);
  request.sampling.temperature = 0;
  const Answer free_run = ask(*engine, {request})[0][0];
  const std::vector<int32_t> pair = {free_run.tokens[3], free_run.tokens[4]};
  request.bad_words = {pair};
  const Answer without = ask(*engine, {request})[0][0];
  for (size_t i = 0; i + 1 < without.tokens.size(); ++i)
    EXPECT_FALSE(without.tokens[i] == pair[0] && without.tokens[i + 1] == pair[1]) << i;
}

// No fault of the model: an error of the request that names the field, and nobody else's.
TEST(Engine, ARequestThatBansEveryTokenIsToldSo) {
  const auto model = make_tiny_model();
  const auto engine = testing::start_engine(model, small_options());
  std::vector<Request> requests(5, request_of(3, 10, 6));
  for (size_t i = 0; i < 3; ++i) requests[i].sampling.allowed_tokens = {2, 9};
  requests[0].bad_words = {{9}};
  requests[0].min_tokens = 3;        // 2 ends an answer
  requests[1].bad_words = {{9, 9}};  // then there is no third token but the end
  requests[1].min_tokens = 6;
  requests[2].bad_words = {{9, 9}};  // but here 2 may follow
  for (int32_t token = 0; token < 64; ++token) requests[3].bad_words.push_back({token});
  const auto answers = ask(*engine, requests);
  for (const size_t i : {0, 1, 3}) {
    EXPECT_EQ(answers[i][0].finish, FinishReason::kError) << i;
    EXPECT_EQ(answers[i][0].error.code(), StatusCode::kInvalidArgument) << answers[i][0].error.message();
    EXPECT_EQ(answers[i][0].error.param(), i == 3 ? "bad_words" : "allowed_token_ids");
    EXPECT_EQ(answers[i][0].tokens.size(), i == 1 ? 1u : 0u);
  }
  EXPECT_NE(answers[2][0].finish, FinishReason::kError);
  EXPECT_EQ(answers[4][0].finish, ask(*engine, {requests[4]})[0][0].finish);
  EXPECT_EQ(engine->stats().nan_requests, 0);
  testing::expect_idle_and_free(*engine);
}

TEST(Engine, PromptLogprobsAreThoseOfTheCutPrompt) {
  const auto model = make_tiny_model();
  std::vector<Answer> answers;
  for (const int32_t batched : {200, 33}) {
    EngineOptions options = small_options();
    options.max_num_batched_tokens = batched;
    const auto engine = testing::start_engine(model, options);
    Request request = request_of(4, 70, 0);
    request.prompt_logprobs = 2;
    answers.push_back(ask(*engine, {request})[0][0]);
    EXPECT_EQ(answers.back().finish, FinishReason::kLength);
    EXPECT_TRUE(answers.back().tokens.empty());
    ASSERT_EQ(answers.back().prompt_logprobs.size(), 70u);
    EXPECT_TRUE(std::isnan(answers.back().prompt_logprobs[0]));
    for (size_t i = 1; i < 70; ++i) EXPECT_LE(answers.back().prompt_logprobs[i], 0.0f);
  }
  for (size_t i = 1; i < 70; ++i)
    EXPECT_EQ(answers[0].prompt_logprobs[i], answers[1].prompt_logprobs[i]) << i;
}

TEST(Engine, ACancelledRequestStopsAndFreesItsPages) {
  const auto engine = testing::start_engine(make_tiny_model(), small_options());
  Collector collector;
  Request endless = request_of(1, 5, 250);
  const auto victim = collector.handle(endless);
  const auto other = collector.handle(request_of(2, 5, 60));
  ASSERT_TRUE(engine->submit(victim).ok());
  ASSERT_TRUE(engine->submit(other).ok());
  victim->cancel();
  const auto answers = collector.collect({victim, other});
  EXPECT_EQ(answers[0][0].finish, FinishReason::kCancelled);
  EXPECT_LT(answers[0][0].tokens.size(), 250u);
  EXPECT_EQ(answers[1][0].tokens, ask(*engine, {request_of(2, 5, 60)})[0][0].tokens);
  expect_idle_and_free(*engine);
}

TEST(Engine, CancelsInEveryStateLeaveNothingBehind) {
  EngineOptions options = small_options();
  options.max_num_seqs = 2;
  const auto engine = testing::start_engine(make_tiny_model(), options);
  for (int round = 0; round < 30; ++round) {
    Collector collector;
    std::vector<std::shared_ptr<RequestHandle>> handles;
    for (int i = 0; i < 6; ++i) {
      handles.push_back(collector.handle(request_of(i, i % 2 ? 200 : 9, 40)));
      ASSERT_TRUE(engine->submit(handles.back()).ok());
    }
    std::this_thread::sleep_for(std::chrono::microseconds(300 * round));
    for (size_t i = 0; i < handles.size(); i += 2) handles[i]->cancel();
    if (round % 3 == 0) handles[1]->cancel_choice(0);
    for (const auto& answers : collector.collect(handles)) EXPECT_EQ(answers[0].num_finishes, 1);
  }
  expect_idle_and_free(*engine);
}

TEST(Engine, ANanRowEndsThatRequestAlone) {
  const int32_t poisoned = 40;
  const auto model = make_tiny_model({}, [&](const std::string& name, std::vector<float>& embedding) {
    for (size_t i = 0; i < 32 && name == testing::kEmbedding; ++i)
      embedding[static_cast<size_t>(poisoned) * 32 + i] = std::numeric_limits<float>::quiet_NaN();
  });
  const auto engine = testing::start_engine(model, small_options());
  Request healthy = request_of(3, 9, 12);
  std::replace(healthy.prompt.begin(), healthy.prompt.end(), poisoned, 4);
  healthy.sampling.temperature = 0;
  Request ill = healthy;
  ill.prompt[2] = poisoned;
  const Answer alone = ask(*engine, {healthy})[0][0];
  const auto together = ask(*engine, {healthy, ill, healthy});
  EXPECT_EQ(together[1][0].finish, FinishReason::kError);
  EXPECT_EQ(together[1][0].error.reason(), "nan_logits");
  EXPECT_TRUE(together[0][0] == alone);
  EXPECT_TRUE(together[2][0] == alone);
  ill.max_tokens = 0;  // nothing is drawn, but its log probabilities are no numbers
  ill.prompt_logprobs = 0;
  EXPECT_EQ(ask(*engine, {ill})[0][0].error.reason(), "nan_logits");
  expect_idle_and_free(*engine);
}

TEST(Engine, RefusesWhatCanNeverRun) {
  const auto engine = testing::start_engine(make_tiny_model(), small_options());
  Collector collector;
  const auto expect_refused = [&](Request request, const std::string& param, const std::string& reason) {
    const Status status = engine->submit(collector.handle(std::move(request)));
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(status.param(), param) << status.message();
    EXPECT_EQ(status.reason(), reason) << status.message();
  };
  expect_refused(request_of(1, 200, 57), "max_tokens", "context_length_exceeded");
  expect_refused(request_of(1, 256, 1), "prompt", "context_length_exceeded");
  expect_refused(request_of(1, 0, 5), "prompt", "");
  for (const int32_t bad :
       {-1, 64, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()}) {
    Request request = request_of(1, 5, 5);
    request.prompt[3] = bad;
    expect_refused(request, "prompt[3]", "");
    request = request_of(1, 5, 5);
    request.stop_token_ids = {bad};
    expect_refused(request, "stop_token_ids[0]", "");
    request = request_of(1, 5, 5);
    request.sampling.logit_bias = {{bad, 1.0f}};
    expect_refused(request, "logit_bias", "");
  }
  Request request = request_of(1, 5, 5);
  request.num_choices = 17;
  expect_refused(request, "n", "");
  request = request_of(1, 5, -1);
  expect_refused(request, "max_tokens", "");
  EXPECT_EQ(ask(*engine, {request_of(1, 255, 1)})[0][0].tokens.size(), 1u);  // exactly full
}

TEST(Engine, AFullQueueSaysLater) {
  EngineOptions options = small_options();
  options.max_num_seqs = 1;
  options.max_queue_requests = 3;
  const auto engine = testing::start_engine(make_tiny_model(), options);
  Collector collector;
  std::vector<std::shared_ptr<RequestHandle>> handles;
  int refused = 0;
  for (int i = 0; i < 40; ++i) {
    const auto handle = collector.handle(request_of(i, 20, 100));
    const Status status = engine->submit(handle);
    if (status.ok()) {
      handles.push_back(handle);
    } else {
      EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
      ++refused;
    }
  }
  EXPECT_GT(refused, 0);
  EXPECT_GE(handles.size(), 3u);
  for (const auto& answers : collector.collect(handles)) EXPECT_EQ(answers[0].finish, FinishReason::kLength);
  expect_idle_and_free(*engine);
}

TEST(Engine, ATimeoutEndsARequestInEachState) {
  EngineOptions options = small_options();
  options.max_num_seqs = 1;
  const auto engine = testing::start_engine(make_tiny_model(), options);
  Request late = request_of(1, 200, 50);
  late.timeout = std::chrono::nanoseconds(1);
  Request queued = request_of(2, 200, 50);
  queued.timeout = std::chrono::nanoseconds(1);
  const auto answers = ask(*engine, {request_of(5, 3, 30), late, queued});
  EXPECT_EQ(answers[0][0].finish, FinishReason::kLength);
  for (const size_t i : {1, 2}) {
    EXPECT_EQ(answers[i][0].finish, FinishReason::kError);
    EXPECT_EQ(answers[i][0].error.code(), StatusCode::kDeadlineExceeded);
  }
  expect_idle_and_free(*engine);
}

TEST(Engine, LimitsWhatOneOwnerHasInFlight) {
  EngineOptions options = small_options();
  options.max_owner_requests = 2;
  const auto engine = testing::start_engine(make_tiny_model(), options);
  Collector collector;
  std::vector<std::shared_ptr<RequestHandle>> handles;
  const auto submit = [&](const std::string& owner, int32_t own_limit) {
    Request request = request_of(1, 5, 200);
    request.owner = owner;
    request.max_owner_requests = own_limit;
    const auto handle = collector.handle(request);
    Status status = engine->submit(handle);
    if (status.ok()) handles.push_back(handle);
    return status;
  };
  EXPECT_TRUE(submit("a", 0).ok());
  EXPECT_TRUE(submit("a", 0).ok());
  EXPECT_EQ(submit("a", 0).reason(), "concurrency_limit");
  EXPECT_TRUE(submit("b", 0).ok());
  EXPECT_TRUE(submit("a", 3).ok());  // the request says what its key may have
  for (const auto& handle : handles) handle->cancel();
  collector.collect(handles);
  expect_idle_and_free(*engine);
  handles.clear();
  EXPECT_TRUE(submit("a", 0).ok());
  collector.collect(handles);
}

TEST(Engine, ListsAndCancelsTheRequestsOfAnOwner) {
  const auto engine = testing::start_engine(make_tiny_model(), small_options());
  Collector collector;
  std::vector<std::shared_ptr<RequestHandle>> handles;
  for (const char* owner : {"a", "b"}) {
    Request request = request_of(1, 5, 250);
    request.owner = owner;
    request.id = "one";
    handles.push_back(collector.handle(request));
    ASSERT_TRUE(engine->submit(handles.back()).ok());
  }
  const std::vector<RequestInfo> list = engine->requests("a");
  ASSERT_EQ(list.size(), 1u);
  EXPECT_EQ(list[0].id, "one");
  EXPECT_EQ(list[0].prompt_tokens, 5);
  EXPECT_EQ(list[0].max_tokens, 250);
  EXPECT_FALSE(engine->cancel("one", "c"));
  EXPECT_FALSE(engine->cancel("two", "a"));
  EXPECT_TRUE(engine->cancel("one", "a"));
  const auto answers = collector.collect(handles);
  EXPECT_EQ(answers[0][0].finish, FinishReason::kCancelled);
  EXPECT_EQ(answers[1][0].finish, FinishReason::kLength);
  expect_idle_and_free(*engine);
  EXPECT_TRUE(engine->requests("a").empty());
  EXPECT_FALSE(engine->cancel("one", "a"));
}

TEST(Engine, DrainingFinishesWhatRunsAndTakesNothingNew) {
  const auto engine = testing::start_engine(make_tiny_model(), small_options());
  Collector collector;
  const auto running = collector.handle(request_of(1, 5, 100));
  ASSERT_TRUE(engine->submit(running).ok());
  engine->drain();
  EXPECT_EQ(engine->submit(collector.handle(request_of(2, 5, 5))).code(), StatusCode::kUnavailable);
  EXPECT_EQ(collector.collect({running})[0][0].tokens.size(), 100u);
}

TEST(Engine, StoppingEndsEveryStream) {
  Collector collector;
  std::vector<std::shared_ptr<RequestHandle>> handles;
  {
    const auto engine = testing::start_engine(make_tiny_model(), small_options());
    for (int i = 0; i < 12; ++i) {
      handles.push_back(collector.handle(request_of(i, 100, 150)));
      ASSERT_TRUE(engine->submit(handles.back()).ok());
    }
  }
  for (const auto& answers : collector.collect(handles)) EXPECT_EQ(answers[0].num_finishes, 1);
}

TEST(Engine, PlanRefusesWhatDoesNotFitAndSaysWhatToChange) {
  const auto model = make_tiny_model();
  EngineOptions options = small_options();
  const auto backend = make_backend(options);
  ASSERT_TRUE(backend.ok());
  // Of a machine whose memory does not go up and down.
  const auto plan = [&] {
    return Executor::plan(*model, **backend, fit_options(options, **backend), int64_t{1} << 30);
  };
  // Not even a short sequence fits: no length is named.
  options.memory_fraction = 1e-6;
  const std::string nothing = plan().status().message();
  EXPECT_NE(nothing.find("left; lower --max-model-len, raise --memory-fraction"), std::string::npos)
      << nothing;
  // A little is missing.
  double too_little = options.memory_fraction, enough = 0.5;
  for (int i = 0; i < 20; ++i) {
    options.memory_fraction = std::sqrt(too_little * enough);
    (plan().ok() ? enough : too_little) = options.memory_fraction;
  }
  options.memory_fraction = too_little;
  const std::string why = plan().status().message();
  const size_t place = why.find("lower --max-model-len to ");
  ASSERT_NE(place, std::string::npos) << why;
  options.max_model_len = std::atoi(why.c_str() + place + 25);
  EXPECT_GT(options.max_model_len, 0) << why;
  EXPECT_TRUE(plan().ok()) << why;
  options = small_options();
  options.max_model_len = 4096;
  EXPECT_FALSE(plan().ok());
  options = small_options();
  options.max_num_batched_tokens = 8;
  EXPECT_FALSE(plan().ok());
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they need all of the address space
// Starts an engine with so much address space left; 0: it says what there was no memory for, and what to do.
int start_with(const std::shared_ptr<const Model>& model, const EngineOptions& options, int64_t bytes,
               const std::string& what) {
  std::ifstream file("/proc/self/statm");
  int64_t pages = 0;
  file >> pages;
  const auto limit = static_cast<rlim_t>(pages * sysconf(_SC_PAGESIZE) + bytes);
  const rlimit limits = {limit, limit};
  if (setrlimit(RLIMIT_AS, &limits) != 0) return 2;
  const Result<std::unique_ptr<Engine>> engine = Engine::start(model, options);
  if (engine.ok()) return 3;
  const std::string& why = engine.status().message();
  std::fprintf(stderr, "%s\n", why.c_str());
  return why.find("no memory is left for " + what) != std::string::npos &&
                 why.find("--memory-fraction") != std::string::npos
             ? 0
             : 4;
}

TEST(EngineDeath, StartSaysWhatThereWasNoMemoryFor) {
  const auto model = make_tiny_model({.context = 1 << 16});
  EngineOptions options = small_options();
  options.threads = 1;
  options.max_model_len = 1 << 16;
  EXPECT_EXIT(std::exit(start_with(model, options, int64_t{64} << 20, "the work space of thread 0")),
              ::testing::ExitedWithCode(0), "");
}

// The plan counts what is left of the address space.
TEST(EngineDeath, ThePlanFitsTheAddressSpace) {
  const auto model = make_tiny_model({.context = 1 << 16});
  EngineOptions options = small_options();
  options.threads = 1;
  options.max_model_len = 1 << 16;
  const int64_t pool = plan_memory(*model, options)->pool;
  ASSERT_GT(pool, int64_t{100} << 20);
  constexpr int kStarted = 3;
  EXPECT_EXIT(std::exit(start_with(model, options, (int64_t{200} << 20) + pool / 2, "")),
              ::testing::ExitedWithCode(kStarted), "");
}
#endif

TEST(Engine, PlannedNumberOfSequencesRunsAtOnce) {
  EngineOptions options = small_options();
  options.max_num_seqs = 4;
  const auto engine = testing::start_engine(make_tiny_model(), options);
  const int64_t n = engine->memory_plan().max_sequences;
  ASSERT_GE(n, 1);
  std::vector<Request> requests;
  for (int64_t i = 0; i < n; ++i) requests.push_back(request_of(static_cast<int32_t>(i), 100, 156));
  for (const auto& answers : ask(*engine, requests)) EXPECT_EQ(answers[0].tokens.size(), 156u);
}

TEST(Engine, OneMoreThanThePlannedNumberWaits) {
  const auto model = make_tiny_model();
  EngineOptions options = small_options();
  options.max_num_seqs = 8;
  options.cache = CacheSettings::full();
  // Memory for three or so of eight.
  for (double low = 1e-6, high = 0.9; high / low > 1.02;) {
    options.memory_fraction = std::sqrt(low * high);
    const Result<MemoryPlan> fits = plan_memory(*model, options);
    (fits.ok() && fits->max_sequences >= 3 ? high : low) = options.memory_fraction;
  }
  const auto engine = testing::start_engine(model, options);
  const int64_t n = engine->memory_plan().max_sequences;
  ASSERT_GE(n, 2);
  ASSERT_LT(n, 8);
  Collector collector;
  std::vector<std::shared_ptr<RequestHandle>> handles;
  for (int64_t i = 0; i <= n; ++i) {
    handles.push_back(collector.handle(request_of(static_cast<int32_t>(i), 6, 250)));
    ASSERT_TRUE(engine->submit(handles.back()).ok());
  }
  // All but the last run at once; the last one waits until one of them has all its tokens.
  int64_t most = 0;
  while (handles.back()->phase.load() == RequestPhase::kQueued)
    most = std::max(most, engine->stats().running);
  EXPECT_EQ(most, n);
  int64_t done = 0;
  for (int64_t i = 0; i < n; ++i) done += handles[static_cast<size_t>(i)]->num_generated.load() == 250;
  EXPECT_GE(done, 1);
  for (const auto& answers : collector.collect(handles)) EXPECT_EQ(answers[0].tokens.size(), 250u);
  expect_idle_and_free(*engine);
}

}  // namespace
}  // namespace restkv

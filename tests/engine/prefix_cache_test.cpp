// The prefix cache by itself, and in the engine: the same answer with and without a hit, for any policy, cut and owner.
#include "engine/cache/prefix_cache.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <random>
#include <thread>

#include "tests/engine/answer_collector.h"
#include "tests/engine/random_settings.h"
#include "tests/engine/tiny_model.h"

namespace restkv {
namespace {

using testing::Answer;
using testing::ask;
using testing::make_tiny_model;
using testing::start_engine;

TEST(KeyedHash, IsSipHashWithAHundredAndTwentyEightBits) {
  // The reference implementation's first vectors: key 00 01 .. 0f, data empty and 00.
  const PrefixKey secret = {0x0706050403020100ull, 0x0f0e0d0c0b0a0908ull};
  EXPECT_EQ(keyed_hash(secret, {}), (PrefixKey{0xe6a825ba047f81a3ull, 0x930255c71472f66dull}));
  const std::byte zero{0};
  EXPECT_EQ(keyed_hash(secret, {&zero, 1}), (PrefixKey{0x44af996bd8c187daull, 0x45fc229b11597634ull}));
}

struct Fixture {
  explicit Fixture(int64_t max_pages = 8) : prefixes(pool, {4, 2, max_pages, 64}, {1, 2}) {}
  std::vector<int32_t> tokens(int32_t count, int32_t first = 0) {
    std::vector<int32_t> list(static_cast<size_t>(count));
    std::iota(list.begin(), list.end(), first);
    return list;
  }
  // As a prefill does it.
  bool insert(const std::vector<int32_t>& prompt, std::string_view salt = "") {
    auto insertion = prefixes.begin_insert(prefixes.keys(salt, prompt), prompt);
    if (!insertion) return false;
    prefixes.finish_insert(std::move(insertion));
    return true;
  }
  size_t hit(const std::vector<int32_t>& prompt, int64_t most = 1000, std::string_view salt = "") {
    return prefixes.find(prefixes.keys(salt, prompt), prompt, most).size();
  }
  PagePool pool{20};
  PrefixCache prefixes;
};

TEST(PrefixCache, HoldsWhatItSawTwice) {
  Fixture f;
  const auto prompt = f.tokens(14);  // three whole blocks
  EXPECT_FALSE(f.insert(prompt));
  EXPECT_TRUE(f.insert(prompt));
  EXPECT_EQ(f.pool.cached(), 6);
  EXPECT_EQ(f.hit(prompt), 3u);
  EXPECT_EQ(f.hit(prompt, 11), 2u);
  EXPECT_EQ(f.hit(f.tokens(7)), 1u);  // a page's length - 1 more
  EXPECT_EQ(f.hit(f.tokens(8)), 2u);
  EXPECT_EQ(f.hit(f.tokens(3)), 0u);
  EXPECT_EQ(f.hit(prompt, 1000, "other salt"), 0u);
  EXPECT_EQ(f.hit(f.tokens(14, 1)), 0u);
  EXPECT_TRUE(f.pool.is_consistent_by_page());
}

TEST(PrefixCache, EvictsTheOldestFromTheBackAndNeverWhatIsPinned) {
  Fixture f;
  const auto old_prompt = f.tokens(8), new_prompt = f.tokens(8, 100), third = f.tokens(8, 200);
  for (int i = 0; i < 2; ++i) {
    f.insert(old_prompt);
    f.insert(new_prompt);
  }
  EXPECT_EQ(f.pool.cached(), 8);
  const auto chain = f.prefixes.find(f.prefixes.keys("", old_prompt), old_prompt, 1000);
  f.prefixes.pin(chain);
  for (int i = 0; i < 2; ++i) f.insert(third);
  EXPECT_EQ(f.hit(old_prompt), 2u);
  EXPECT_EQ(f.hit(new_prompt), 0u);
  EXPECT_EQ(f.hit(third), 2u);
  EXPECT_EQ(f.prefixes.reclaimable_pages(), 4);
  f.prefixes.make_room(20);
  EXPECT_EQ(f.pool.free(), 16);  // the pinned ones stay
  f.prefixes.unpin(chain);
  f.prefixes.make_room(18);
  EXPECT_EQ(f.hit(old_prompt), 1u);  // the back went
  f.prefixes.clear();
  EXPECT_EQ(f.pool.free(), 20);
}

TEST(PrefixCache, AnAdmissionTakesThePagesOfWhatIsStillWritten) {
  Fixture f;
  const auto prompt = f.tokens(8);
  f.insert(prompt);
  auto insertion = f.prefixes.begin_insert(f.prefixes.keys("", prompt), prompt);
  ASSERT_TRUE(insertion);
  EXPECT_EQ(f.hit(prompt), 0u) << "visible before it is whole";
  EXPECT_EQ(f.prefixes.reclaimable_pages(), 4);
  f.prefixes.make_room(20);
  EXPECT_TRUE(insertion->blocks.empty());
  f.prefixes.finish_insert(std::move(insertion));
  EXPECT_EQ(f.hit(prompt), 0u);
  EXPECT_EQ(f.pool.free(), 20);
}

TEST(PrefixCache, NothingIsKeptWithoutRoom) {
  Fixture f(1);
  EXPECT_FALSE(f.prefixes.is_enabled());
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(f.insert(f.tokens(8)));
}

EngineOptions options_of(double fraction, int32_t batched_tokens, int32_t threads) {
  EngineOptions options;
  options.threads = threads;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = batched_tokens;
  options.max_model_len = 512;
  options.prefix_fraction = fraction;
  return options;
}

std::vector<Request> same_beginnings() {
  std::vector<Request> requests;
  for (const char* policy :
       {"full", "restkv", "snapkv", "streamingllm", "pyramidkv", "adakv", "tova", "h2o"}) {
    for (const int64_t budget : {400, 80}) {
      CacheRequest cache;
      cache.policy = policy;
      if (std::string(policy) != "full") cache.budget = budget;
      cache.window = 8;
      for (const int32_t shared : {159, 160, 161}) {
        Request request;
        for (int32_t i = 0; i < 200; ++i)
          request.prompt.push_back(i < shared ? 3 + (i * 7) % 60 : 3 + (i * 11 + shared) % 60);
        request.max_tokens = 40;
        request.ignore_eos = true;
        request.sampling.num_logprobs = 0;
        request.sampling.temperature = 0.7f;
        request.cache = *resolve_cache_settings(cache, {});
        requests.push_back(std::move(request));
      }
    }
  }
  return requests;
}

TEST(PrefixEngine, AnswersAreBitwiseTheSameWithAndWithoutAHit) {
  const auto model = make_tiny_model();
  const std::vector<Request> requests = same_beginnings();
  std::vector<Answer> without;
  {
    const auto engine = start_engine(model, options_of(0, 400, 2));
    for (const Request& request : requests) without.push_back(ask(*engine, {request})[0][0]);
  }
  for (const int32_t batched_tokens : {400, 48}) {
    const auto engine = start_engine(model, options_of(0.5, batched_tokens, 1));
    for (int round = 0; round < 3; ++round) {
      for (size_t i = 0; i < requests.size(); ++i) {
        const Answer answer = ask(*engine, {requests[i]})[0][0];
        EXPECT_TRUE(answer == without[i]) << i << " round " << round << " rows " << batched_tokens;
        EXPECT_EQ(answer.counters.cache.evicted, without[i].counters.cache.evicted) << i;
        const bool sees_all = requests[i].cache.policy == PolicyKind::kH2o;
        if (round == 2) {
          EXPECT_EQ(answer.counters.cached_tokens, sees_all ? 0 : 192) << i;
        }
      }
    }
    // And all at once, several of them in one step.
    const auto together = ask(*engine, requests);
    for (size_t i = 0; i < requests.size(); ++i) EXPECT_TRUE(together[i][0] == without[i]) << i;
    EXPECT_GT(engine->stats().prefix_hits, 0);
    EXPECT_GT(engine->stats().pages_cached, 0);
    // The last record is there a moment before the pages are counted as given back.
    for (int i = 0; i < 1000 && engine->stats().pages_owned != 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_EQ(engine->stats().pages_owned, 0);
  }
}

// Prompts that begin alike under settings of every kind, several choices, windows, groups that are no power of two: a hit of
// any length, in a batch and in units, changes no bit.
TEST(PrefixEngine, AHitChangesNothingUnderAnySettings) {
  const testing::TinyShape shapes[] = {
      {.layers = 2, .heads = 3, .kv_heads = 1, .head_dim = 8, .window = 0},
      {.layers = 3, .heads = 10, .kv_heads = 2, .head_dim = 6, .window = 18},
  };
  std::mt19937 random(5);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  for (const testing::TinyShape& shape : shapes) {
    const auto model = make_tiny_model(shape);
    std::vector<int32_t> stem;
    for (int32_t i = 0; i < 300; ++i) stem.push_back(3 + static_cast<int32_t>(below(60)));
    std::vector<Request> requests;
    while (requests.size() < 24) {
      const auto settings =
          resolve_cache_settings(testing::random_cache_request(random, 220), {.max_model_len = 512});
      if (!settings.ok()) continue;
      Request& request = requests.emplace_back();
      request.prompt.assign(stem.begin(), stem.begin() + below(301));
      for (int64_t own = 1 + below(40); own > 0; --own)
        request.prompt.push_back(3 + static_cast<int32_t>(below(60)));
      request.max_tokens = 1 + static_cast<int32_t>(below(60));
      request.num_choices = 1 + static_cast<int32_t>(below(4) == 0 ? below(4) : 0);
      request.ignore_eos = true;
      request.sampling.num_logprobs = 0;
      request.sampling.temperature = 0.8f;
      request.cache = *settings;
    }
    std::vector<std::vector<Answer>> without;
    {
      const auto engine = start_engine(model, options_of(0, 400, 1));
      for (const Request& request : requests) without.push_back(ask(*engine, {request})[0]);
    }
    for (const int32_t batched_tokens : {400, 17}) {
      const auto engine = start_engine(model, options_of(0.5, batched_tokens, 1));
      int num_hits = 0;
      for (int round = 0; round < 3; ++round) {
        const auto answers = ask(*engine, requests);
        for (size_t i = 0; i < requests.size(); ++i) {
          for (size_t choice = 0; choice < answers[i].size(); ++choice) {
            const Answer& answer = answers[i][choice];
            EXPECT_TRUE(answer == without[i][choice]) << "request " << i << " choice " << choice << " round "
                                                      << round << " " << policy_name(requests[i].cache.policy)
                                                      << ", " << answer.counters.cached_tokens << " cached";
            EXPECT_EQ(answer.counters.cache.evicted, without[i][choice].counters.cache.evicted) << i;
            num_hits += answer.counters.cached_tokens > 0;
          }
        }
      }
      EXPECT_GT(num_hits, 20);
      testing::expect_idle_and_free(*engine);
    }
  }
}

// The prompt is cut at token 120 and the rest is fed: its blocks are visible once the first token is drawn.
TEST(PrefixEngine, BlocksOfAFedPromptAreKept) {
  const auto engine = start_engine(make_tiny_model(), options_of(0.5, 400, 1));
  Request request = same_beginnings()[0];
  CacheRequest cache;
  cache.policy = "snapkv";  // needs no probe
  cache.budget = 80;
  cache.window = 8;
  cache.compress_at = 120;
  request.cache = *resolve_cache_settings(cache, {});
  const Answer first = ask(*engine, {request})[0][0];
  EXPECT_GT(first.counters.cache.evicted, 0);
  for (const int32_t cached : {0, 112, 112}) {  // 120 - 8 in blocks of 16
    const Answer answer = ask(*engine, {request})[0][0];
    EXPECT_TRUE(answer == first);
    EXPECT_EQ(answer.counters.cached_tokens, cached);
    testing::expect_idle_and_free(*engine);
  }
}

TEST(PrefixEngine, OwnersAndSaltsDoNotSeeEachOther) {
  const auto engine = start_engine(make_tiny_model(), options_of(0.5, 400, 1));
  Request request = same_beginnings()[0];
  const auto cached = [&](const char* owner, const char* salt) {
    request.owner = owner;
    request.cache_salt = salt;
    return ask(*engine, {request})[0][0].counters.cached_tokens;
  };
  EXPECT_EQ(cached("a", ""), 0);
  EXPECT_EQ(cached("a", ""), 0);  // second sight: now it is written
  EXPECT_EQ(cached("a", ""), 192);
  EXPECT_EQ(cached("b", ""), 0);
  EXPECT_EQ(cached("a", "salt"), 0);
  EXPECT_EQ(cached("", "a"), 0);
  EXPECT_EQ(cached("a", ""), 192);
}

TEST(PrefixEngine, ChoicesShareWholePagesOfTheirPrompt) {
  const auto model = make_tiny_model();
  Request request = same_beginnings()[0];
  request.num_choices = 4;
  std::vector<Answer> alone;
  const auto engine = start_engine(model, options_of(0, 400, 1));
  const auto answers = ask(*engine, {request})[0];
  EXPECT_NE(answers[0].tokens, answers[1].tokens);
  const auto again = ask(*engine, {request})[0];
  for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(answers[i] == again[i]);
  // Prompt 200, answer 39 entries: 15 pages a head, of which 12 are shared.
  testing::Collector collector;
  const auto handle = collector.handle(request);
  ASSERT_TRUE(engine->submit(handle).ok());
  int64_t most = 0;
  while (handle->phase.load() != RequestPhase::kFinished) most = std::max(most, engine->stats().pages_owned);
  collector.collect({handle});
  EXPECT_LE(most, 3 * 2 * (15 + 3 * 3));
  testing::expect_idle_and_free(*engine);
}

}  // namespace
}  // namespace restkv

// The trace of a sequence's cuts: what it says is what happened, and between cuts no head holds more than its C_lh.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>

#include "engine/eviction/budget.h"
#include "engine/trace_store.h"
#include "tests/engine/answer_collector.h"
#include "tests/engine/tiny_model.h"

namespace restkv {
namespace {

using testing::ask;
using testing::make_tiny_model;
using testing::start_engine;

constexpr int32_t kContext = 512;
constexpr int32_t kLayers = 3, kHeads = 2;

EngineOptions engine_options() {
  EngineOptions options;
  options.threads = 2;
  options.max_num_seqs = 10;
  options.max_num_batched_tokens = 120;
  options.max_model_len = kContext;
  return options;
}

Request request_of(int32_t seed, int32_t prompt_len, int32_t max_tokens, const CacheSettings& cache) {
  Request request;
  request.id = "cmpl-" + std::to_string(seed);
  request.owner = seed % 2 ? "alice" : "";
  for (int32_t i = 0; i < prompt_len; ++i) request.prompt.push_back(3 + (i * i * 13 + i * 7 + seed * 5) % 60);
  request.max_tokens = max_tokens;
  request.ignore_eos = true;
  request.sampling.temperature = 0.8f;
  request.sampling.seed = static_cast<uint64_t>(seed);
  request.cache = cache;
  return request;
}

// Random legal settings.
CacheSettings random_settings(std::mt19937& random) {
  const char* names[] = {"restkv",    "snapkv", "streamingllm", "h2o",   "tova",
                         "pyramidkv", "adakv",  "lacache",      "random"};
  for (;;) {
    CacheRequest cache;
    cache.policy = names[random() % 9];
    cache.budget = 20 + static_cast<int64_t>(random() % 200);
    cache.window = 1 + static_cast<int64_t>(random() % 24);
    cache.sinks = static_cast<int64_t>(random() % 6);
    cache.trace = random() % 2 ? TraceMode::kOn : TraceMode::kBins;
    if (random() % 2) cache.stride = 1 + static_cast<int64_t>(random() % 16);
    if (random() % 4 == 0) cache.pin = static_cast<int64_t>(random() % 12);
    if (random() % 4 == 0) cache.pin_head = static_cast<int64_t>(random() % 8);
    if (random() % 4 == 0) cache.pin_tail = static_cast<int64_t>(random() % 8);
    if (random() % 4 == 0) cache.fraction = 0.3;
    if (random() % 3 == 0) cache.compress_at = 1 + static_cast<int64_t>(random() % 200);
    if (random() % 2) {
      cache.probe = ProbeSpec{.kind = ProbeSpec::Kind::kTokens, .text = {}, .tokens = {4, 8, 15, 16, 23, 42}};
    } else {
      cache.probe = ProbeSpec{};
    }
    const Result<CacheSettings> settings = resolve_cache_settings(cache, {.max_model_len = kContext});
    if (settings.ok()) return *settings;
  }
}

TEST(CacheTrace, BudgetsAndProtectedRowsHoldAfterEveryStep) {
  const auto engine = start_engine(make_tiny_model(), engine_options());
  std::mt19937 random(23);
  std::vector<Request> requests;
  for (int32_t i = 0; i < 60; ++i) {
    requests.push_back(request_of(i, 1 + static_cast<int32_t>(random() % 300),
                                  1 + static_cast<int32_t>(random() % 150), random_settings(random)));
  }
  const auto answers = ask(*engine, requests);
  testing::expect_idle_and_free(*engine);
  int64_t num_cuts = 0;
  for (size_t r = 0; r < requests.size(); ++r) {
    const Request& request = requests[r];
    const CacheSettings& cache = request.cache;
    SCOPED_TRACE(request.id + " " + std::string(policy_name(cache.policy)));
    ASSERT_EQ(answers[r][0].finish, FinishReason::kLength) << answers[r][0].error.message();
    const auto trace = engine->traces().find(request.id, request.owner, 0, Clock::now());
    ASSERT_TRUE(trace) << "no trace";
    EXPECT_FALSE(engine->traces().find(request.id, "mallory", 0, Clock::now()));
    EXPECT_FALSE(engine->traces().find(request.id, request.owner, 1, Clock::now()));
    const auto prompt_len = static_cast<int32_t>(request.prompt.size());
    const SequenceBudget budget =
        plan_budget(cache, {kLayers, kHeads, {}}, nullptr, prompt_len, request.max_tokens);
    EXPECT_EQ(trace->budget, budget.budget);
    const int32_t total = prompt_len + request.max_tokens - 1;
    const bool shares = cache.allocation == Allocation::kAda;
    std::set<int32_t> held[kLayers][kHeads];
    int32_t tokens[kLayers] = {};
    int64_t evicted = 0;
    const auto catch_up = [&](int32_t layer, int32_t until) {
      int64_t layer_rows = 0;
      for (int32_t h = 0; h < kHeads; ++h) {
        for (int32_t t = tokens[layer]; t < until; ++t) held[layer][h].insert(t);
        layer_rows += static_cast<int64_t>(held[layer][h].size());
      }
      tokens[layer] = until;
      return layer_rows;
    };
    // The longest a head gets is just before a cut or at the end, except for prefill, whose rows never reach the pages.
    const auto expect_within = [&](int32_t layer) {
      for (int32_t h = 0; h < kHeads; ++h) {
        const auto c = static_cast<size_t>(budget.c_lh[static_cast<size_t>(layer * kHeads + h)]);
        if (!shares) {
          EXPECT_LE(held[layer][h].size(), c) << "layer " << layer << " head " << h;
        }
      }
    };
    for (size_t i = 0; i < trace->num_cuts(); ++i, ++num_cuts) {
      const CacheTrace::Cut cut = trace->cut(i);
      ASSERT_EQ(cut.heads.size(), static_cast<size_t>(kHeads));
      const bool is_prefill = tokens[cut.layer] == 0;
      const int64_t rows = catch_up(cut.layer, cut.tokens);
      if (!is_prefill) expect_within(cut.layer);
      if (!is_prefill && shares) {
        EXPECT_LE(rows, kHeads * budget.budget);
      }
      for (int32_t h = 0; h < kHeads; ++h) {
        std::set<int32_t>& rows_of_head = held[cut.layer][h];
        const CacheTrace::Head& head = cut.heads[static_cast<size_t>(h)];
        for (const int32_t position : head.evicted) {
          ASSERT_EQ(rows_of_head.erase(position), 1u)
              << "position " << position << " went twice or was not there";
        }
        evicted += static_cast<int64_t>(head.evicted.size());
        EXPECT_EQ(rows_of_head.size(), static_cast<size_t>(head.num_kept));
        EXPECT_TRUE(head.scores.empty() || head.scores.size() == rows_of_head.size());
        EXPECT_EQ(head.bins.empty(),
                  head.scores.empty() || head.evicted.empty() || cache.trace != TraceMode::kBins);
        for (const uint8_t bin : head.bins) EXPECT_LT(bin, kTraceBins);
        // What is protected is there.
        for (int32_t t = 0; t < std::min(cut.tokens, cache.pin_head); ++t)
          EXPECT_TRUE(rows_of_head.count(t)) << t;
        for (int32_t t = prompt_len - cache.pin_tail; t < std::min(cut.tokens, prompt_len); ++t) {
          EXPECT_TRUE(t < 0 || rows_of_head.count(t)) << t;
        }
        if (cache.policy == PolicyKind::kRestkv) {
          for (int32_t t = 0; t < std::min(cut.tokens, cache.sinks); ++t)
            EXPECT_TRUE(rows_of_head.count(t)) << t;
          for (int32_t t = std::max(0, cut.tokens - cache.window); t < cut.tokens; ++t) {
            EXPECT_TRUE(rows_of_head.count(t)) << t;
          }
        }
      }
      expect_within(cut.layer);
    }
    size_t longest = 0;
    int64_t sum = 0;
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      sum += catch_up(layer, total);
      expect_within(layer);
      for (const auto& rows : held[layer]) longest = std::max(longest, rows.size());
    }
    const CacheCounters& counters = answers[r][0].counters.cache;
    EXPECT_EQ(counters.evicted, evicted);
    EXPECT_EQ(counters.kept_max, static_cast<int32_t>(longest));
    EXPECT_EQ(counters.kept, (sum + kLayers * kHeads - 1) / (kLayers * kHeads));
    EXPECT_EQ(counters.events, static_cast<int64_t>(trace->num_cuts()));
  }
  EXPECT_GT(num_cuts, 500);
  // The totals are those of the sequences.
  int64_t evicted = 0;
  for (const auto& answer : answers) evicted += answer[0].counters.cache.evicted;
  EXPECT_EQ(engine->stats().evicted_rows, evicted);
}

// Traces that find no room end early, their answers do not; nothing of the room stays taken.
TEST(CacheTrace, TheEnginesTracesShareTheirMemory) {
  EngineOptions options = engine_options();
  options.trace_memory = 3000;
  const auto engine = start_engine(make_tiny_model(), options);
  CacheRequest cache;
  cache.budget = 80;
  cache.window = 8;
  cache.trace = TraceMode::kBins;
  std::vector<Request> requests;
  for (int32_t i = 0; i < 4; ++i)
    requests.push_back(request_of(i, 100, 100, *resolve_cache_settings(cache, {.max_model_len = kContext})));
  for (const auto& answer : ask(*engine, requests)) {
    EXPECT_EQ(answer[0].finish, FinishReason::kLength);
    EXPECT_GT(answer[0].counters.cache.events, 0);
  }
  testing::expect_idle_and_free(*engine);
  EXPECT_EQ(engine->traces().num_taken(), 0u);
  EXPECT_LE(engine->traces().num_bytes(), 3000u);
  const auto last = engine->traces().find(requests.back().id, requests.back().owner, 0, Clock::now());
  ASSERT_TRUE(last);
  EXPECT_TRUE(last->is_truncated);
}

// Rows that the pooled order or the probe brought in are pinned at the prompt's cut and never leave.
TEST(CacheTrace, PinnedRowsStayToTheEnd) {
  const auto engine = start_engine(make_tiny_model(), engine_options());
  CacheRequest cache;
  cache.budget = 80;
  cache.window = 8;
  cache.pin = 24;
  cache.trace = TraceMode::kOn;
  cache.probe = ProbeSpec{.kind = ProbeSpec::Kind::kTokens, .text = {}, .tokens = {4, 8, 15}};
  CacheRequest unpinned = cache;
  unpinned.pin = 0;
  const auto old_rows = [&](const CacheRequest& settings, int32_t seed) {
    const Request request =
        request_of(seed, 300, 200, *resolve_cache_settings(settings, {.max_model_len = kContext}));
    ask(*engine, {request});
    const auto trace = engine->traces().find(request.id, request.owner, 0, Clock::now());
    std::vector<std::set<int32_t>> held(kLayers * kHeads);
    std::vector<int32_t> tokens(kLayers, 0);
    for (size_t i = 0; i < trace->num_cuts(); ++i) {
      const CacheTrace::Cut cut = trace->cut(i);
      for (int32_t h = 0; h < kHeads; ++h) {
        auto& rows = held[static_cast<size_t>(cut.layer * kHeads + h)];
        for (int32_t t = tokens[static_cast<size_t>(cut.layer)]; t < cut.tokens; ++t) rows.insert(t);
        for (const int32_t p : cut.heads[static_cast<size_t>(h)].evicted) rows.erase(p);
      }
      tokens[static_cast<size_t>(cut.layer)] = cut.tokens;
    }
    // Of the prompt between the sinks and its window.
    int64_t fewest = kContext;
    for (const auto& rows : held)
      fewest = std::min<int64_t>(
          fewest, std::count_if(rows.begin(), rows.end(), [](int32_t p) { return p >= 4 && p < 292; }));
    return fewest;
  };
  EXPECT_GE(old_rows(cache, 3), 24);
  EXPECT_LT(old_rows(unpinned, 5), 24) << "rows of the prompt stay without pins too: the test shows nothing";
}

// What stays anyhow is not scored (0) and ranks before what is.
TEST(CacheTrace, BinsRankEvictedRowsBehindThoseThatStayAnyhow) {
  CacheTrace header;
  header.num_layers = header.num_kv_heads = 1;
  TraceWriter writer(header, true);
  std::vector<int32_t> kept(24);
  std::iota(kept.begin(), kept.end(), 0);  // 16 settled, 8 by their scores; 8 go
  std::vector<float> scores(32, 0.0f);
  for (size_t row = 16; row < 32; ++row) scores[row] = static_cast<float>(40 - row);
  scores[17] = NAN;
  const TraceWriter::HeadRows rows{kept, scores};
  writer.add_cut(0, 32, {&rows, 1});
  const CacheTrace::Head head = writer.take()->cut(0).heads[0];
  EXPECT_EQ(head.evicted, (std::vector<int32_t>{24, 25, 26, 27, 28, 29, 30, 31}));
  EXPECT_EQ(head.bins, (std::vector<uint8_t>{12, 12, 13, 13, 14, 14, 15, 15}));
}

TEST(CacheTrace, EndsWhereItDoesNotFit) {
  CacheTrace header;
  header.num_layers = 1;
  header.num_kv_heads = 1;
  TraceWriter writer(header, false);
  std::vector<int32_t> kept(100'000);
  std::vector<float> scores(kept.size() + 1, 0.5f);
  for (size_t i = 0; i < kept.size(); ++i) kept[i] = static_cast<int32_t>(i + 1);
  int32_t cuts = 0;
  for (int32_t tokens = 100'001; tokens < 100'200; ++tokens, ++cuts) {
    const TraceWriter::HeadRows rows{kept, scores};
    writer.add_cut(0, tokens, {&rows, 1});
  }
  const auto trace = writer.take();
  EXPECT_TRUE(trace->is_truncated);
  EXPECT_GT(trace->num_cuts(), 50u);
  EXPECT_LT(trace->num_cuts(), static_cast<size_t>(cuts));
  EXPECT_LE(trace->num_bytes(), kMaxTraceBytes);
  const CacheTrace::Cut last = trace->cut(trace->num_cuts() - 1);
  EXPECT_EQ(last.heads[0].evicted, std::vector<int32_t>{static_cast<int32_t>(trace->num_cuts()) - 1});
  EXPECT_EQ(last.heads[0].scores.size(), kept.size());
  EXPECT_EQ(last.heads[0].scores[7], 0.5f);
}

// One that is written and one that is kept share the room; what is kept goes first.
TEST(TraceStore, TracesBeingWrittenTakeFromTheSameRoom) {
  constexpr size_t kBytes = 4000;
  CacheTrace header;
  header.num_layers = header.num_kv_heads = 1;
  TraceStore store({.max_traces = 100, .max_bytes = kBytes, .max_age = std::chrono::seconds(60)});
  const Clock::time_point start{};
  const std::vector<int32_t> kept{0, 1, 2, 3};
  const auto add_cuts = [&](TraceWriter& writer, int32_t first, int32_t count) {
    for (int32_t tokens = first; tokens < first + count; ++tokens) {
      const TraceWriter::HeadRows rows{kept, {}};
      writer.add_cut(0, tokens, {&rows, 1});
      ASSERT_LE(store.num_bytes() + store.num_taken(), kBytes);
    }
  };
  {
    TraceWriter first(header, false, &store);
    add_cuts(first, 5, 20);
    EXPECT_GE(store.num_taken(), 20 * (5 + sizeof(std::vector<uint8_t>)) + kept.size() * sizeof(int32_t));
    const auto trace = first.take();
    EXPECT_FALSE(trace->is_truncated);
    EXPECT_EQ(store.num_taken(), 0u);
    store.put("first", "", 0, trace, start);
    EXPECT_EQ(store.num_bytes(), trace->num_bytes());
  }
  {
    TraceWriter second(header, false, &store), third(header, false, &store);
    add_cuts(second, 5, 10);
    EXPECT_TRUE(store.find("first", "", 0, start));
    add_cuts(second, 15, 20);
    add_cuts(third, 5, 1000);
    EXPECT_FALSE(store.find("first", "", 0, start));
    const auto cut_short = third.take();
    EXPECT_TRUE(cut_short->is_truncated);
    EXPECT_GT(cut_short->num_cuts(), 10u);
    EXPECT_LT(cut_short->num_cuts(), 1000u);
    EXPECT_EQ(cut_short->cut(cut_short->num_cuts() - 1).heads[0].evicted.size(), 1u);
    add_cuts(second, 35, 1);  // there is room again
    const auto whole = second.take();
    EXPECT_FALSE(whole->is_truncated);
    EXPECT_EQ(whole->num_cuts(), 31u);
    TraceWriter lost(header, false, &store);  // its request is cancelled: nobody takes it
    add_cuts(lost, 5, 3);
    EXPECT_GT(store.num_taken(), 0u);
  }
  EXPECT_EQ(store.num_taken(), 0u);
}

TEST(TraceStore, IsBoundedInNumberBytesAndAge) {
  CacheTrace header;
  header.num_layers = header.num_kv_heads = 1;
  const auto trace_of = [&](int32_t cuts) {
    TraceWriter writer(header, false);
    for (int32_t tokens = 2; tokens < 2 + cuts; ++tokens) {
      const int32_t kept = 1;
      const TraceWriter::HeadRows rows{{&kept, 1}, {}};
      writer.add_cut(0, tokens, {&rows, 1});
    }
    return writer.take();
  };
  const size_t bytes = trace_of(10)->num_bytes();
  TraceStore store({.max_traces = 3, .max_bytes = 4 * bytes, .max_age = std::chrono::seconds(60)});
  const Clock::time_point start{};
  for (const char* id : {"a", "b", "c", "d"}) store.put(id, "", 0, trace_of(10), start);
  EXPECT_FALSE(store.find("a", "", 0, start));
  EXPECT_TRUE(store.find("b", "", 0, start));
  EXPECT_EQ(store.num_bytes(), 3 * bytes);
  store.put("e", "", 0, trace_of(30), start + std::chrono::seconds(30));  // about 3 times as large
  EXPECT_FALSE(store.find("c", "", 0, start));
  EXPECT_TRUE(store.find("e", "", 0, start + std::chrono::seconds(30)));
  EXPECT_LE(store.num_bytes(), 4 * bytes);
  EXPECT_FALSE(store.find("e", "", 0, start + std::chrono::seconds(91)));
  EXPECT_EQ(store.num_bytes(), 0u);
}

}  // namespace
}  // namespace restkv

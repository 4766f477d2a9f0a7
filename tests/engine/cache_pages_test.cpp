// The page invariants of the cache under eviction, checked between all steps of a ragged batch, and that nothing outside
// [0, kv_len) of a head is ever read: those slots, and all free pages, are filled with NaN before every step.
#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "engine/device.h"
#include "engine/executor.h"
#include "engine/host_memory.h"
#include "tests/engine/tiny_model.h"

namespace restkv {
namespace {

constexpr int32_t kContext = 512;

struct Batch {
  explicit Batch(const Model& model, DType dtype) : model(model) {
    options.threads = 2;
    options.max_num_seqs = 12;
    options.max_num_batched_tokens = 400;
    options.max_model_len = kContext;
    options.cache_dtype = dtype;
    backend = *make_backend(options);
    const auto plan = Executor::plan(model, *backend, options, available_host_memory());
    EXPECT_TRUE(plan.ok()) << plan.status().message();
    executor = std::make_unique<Executor>(model, *backend, options, *plan);
  }

  Sequence& add(const CacheRequest& cache, int32_t prompt_len, int32_t max_tokens) {
    Request request;
    const auto seed = static_cast<int32_t>(sequences.size());
    for (int32_t i = 0; i < prompt_len; ++i)
      request.prompt.push_back(3 + (i * i * 13 + i * 7 + seed * 5) % 60);
    request.max_tokens = max_tokens;
    request.sampling.temperature = 0.8f;
    request.sampling.seed = static_cast<uint64_t>(seed);
    request.sampling.num_logprobs = 0;
    const Result<CacheSettings> settings = resolve_cache_settings(cache, {.max_model_len = kContext});
    EXPECT_TRUE(settings.ok()) << settings.status().message();
    request.cache = *settings;
    auto& sequence = sequences.emplace_back(std::make_unique<Sequence>());
    sequence->handle = std::make_shared<RequestHandle>(std::move(request), nullptr);
    sequence->tokens = sequence->request().prompt;
    sequence->prompt_len = prompt_len;
    executor->prepare(*sequence);
    return *sequence;
  }

  template <class Between>
  void run(Between&& between) {
    logprobs.assign(sequences.size(), {});
    for (auto& sequence : sequences) {
      EXPECT_TRUE(executor->can_admit(*sequence));
      executor->admit(*sequence);
      between();
      StepBatch batch;
      batch.prompts.push_back(sequence.get());
      step(batch);
      between();
    }
    for (bool is_open = true; is_open;) {
      StepBatch batch;
      is_open = false;
      for (auto& sequence : sequences) {
        if (sequence->position < sequence->prompt_len) {
          batch.decodes.push_back(
              {sequence.get(), std::min(sequence->feed_rows, sequence->prompt_len - sequence->position)});
        } else if (sequence->num_generated() < sequence->request().max_tokens) {
          batch.decodes.push_back({sequence.get(), 1});
        }
      }
      if (batch.decodes.empty()) break;
      is_open = true;
      step(batch);
      between();
    }
    for (auto& sequence : sequences) executor->release(*sequence);
    EXPECT_EQ(executor->pool().owned(), 0);
    EXPECT_EQ(executor->pool().free(), executor->pool().total());
    EXPECT_TRUE(executor->pool().is_consistent_by_page());
  }

  void step(const StepBatch& batch) {
    executor->run_step(batch, results);
    for (const StepResult& result : results) {
      result.sequence->tokens.push_back(result.sample->token);
      for (size_t i = 0; i < sequences.size(); ++i)
        if (sequences[i].get() == result.sequence) logprobs[i].push_back(result.sample->logprob);
    }
  }

  template <class Visit>  // layer, KV head, tables of the layer
  void for_heads(const Sequence& sequence, Visit&& visit) const {
    const KvCache& cache = executor->cache();
    for (int64_t layer = 0; layer < model.config.num_layers; ++layer) {
      const HeadTables tables = cache.tables(sequence.memory->cache, layer);
      for (int32_t h = 0; h < model.config.num_kv_heads; ++h) visit(layer, h, tables);
    }
  }

  void check_invariants() const {
    const KvCache& cache = executor->cache();
    const int32_t slots = cache.view().slots;
    ASSERT_TRUE(executor->pool().is_consistent_by_page());
    ASSERT_EQ(executor->pool().free() + executor->pool().owned(), executor->pool().total());
    std::set<int32_t> owners;  // every page once
    int64_t num_owned = 0;
    for (const auto& sequence : sequences) {
      if (!sequence->memory || !sequence->memory->is_admitted) continue;
      const SequenceMemory& memory = *sequence->memory;
      num_owned += memory.cache.num_pages;
      for (const int32_t page : memory.cache.owned)
        ASSERT_TRUE(owners.insert(page).second) << "page " << page;
      const std::set<int32_t> own(memory.cache.owned.begin(), memory.cache.owned.end());
      const bool is_evict = memory.settings.decode == DecodeMode::kEvict;
      for_heads(*sequence, [&](int64_t layer, int32_t h, const HeadTables& tables) {
        const auto index = static_cast<size_t>(layer * model.config.num_kv_heads + h);
        const int32_t len = tables.kv_len[h];
        ASSERT_LE(len, memory.cache.capacity[index]);
        if (is_evict) {
          ASSERT_LE(len, memory.budget.c_lh[index]);
        }
        ASSERT_LE(len, sequence->position);
        int32_t last = -1;
        for (int32_t i = 0; i < len; ++i) {
          const int32_t page = tables.pages[h * tables.stride + i / slots];
          ASSERT_TRUE(own.count(page)) << "an entry in somebody else's page";
          const int32_t position = cache.view().positions(page)[i % slots];
          ASSERT_GT(position, last) << "positions do not increase";
          ASSERT_LT(position, sequence->position);
          last = position;
          if (memory.settings.policy == PolicyKind::kRestkv && i < memory.settings.sinks) {
            ASSERT_EQ(position, i) << "a sink";
          }
          // The window's rows are the last ones, without a gap.
          if (memory.settings.policy == PolicyKind::kRestkv && len - i <= memory.settings.window) {
            ASSERT_EQ(position, sequence->position - (len - i)) << "of the window";
          }
        }
        if (len > 0) {
          ASSERT_EQ(last, sequence->position - 1);
        }
      });
    }
    ASSERT_EQ(num_owned, executor->pool().owned());
  }

  void poison() const {
    const PagedCacheView& view = executor->cache().view();
    std::vector<std::vector<bool>> live(static_cast<size_t>(executor->pool().total()));
    for (auto& page : live) page.assign(static_cast<size_t>(view.slots), false);
    for (const auto& sequence : sequences) {
      if (!sequence->memory || !sequence->memory->is_admitted) continue;
      const SequenceCache& cache = sequence->memory->cache;
      for (const auto* tables : {&cache.ring, &cache.sums}) {  // hold queries and sums, not entries
        for (const SequenceCache::Table& table : *tables) {
          for (int64_t i = 0; i < table.width * model.config.num_kv_heads; ++i) {
            const int32_t page = cache.ids[table.begin + static_cast<size_t>(i)];
            if (page >= 0) live[static_cast<size_t>(page)].assign(static_cast<size_t>(view.slots), true);
          }
        }
      }
      for_heads(*sequence, [&](int64_t, int32_t h, const HeadTables& tables) {
        for (int32_t i = 0; i < tables.kv_len[h]; ++i) {
          live[static_cast<size_t>(tables.pages[h * tables.stride + i / view.slots])]
              [static_cast<size_t>(i % view.slots)] = true;
        }
      });
    }
    const auto row_bytes = static_cast<size_t>(bytes_of(view.dtype, view.head_dim));
    for (size_t page = 0; page < live.size(); ++page) {
      const auto id = static_cast<int32_t>(page);
      for (int32_t slot = 0; slot < view.slots; ++slot) {
        if (live[page][static_cast<size_t>(slot)]) continue;
        std::memset(view.keys(id) + static_cast<size_t>(slot) * row_bytes, 0xFF, row_bytes);
        std::memset(view.values(id) + static_cast<size_t>(slot) * row_bytes, 0xFF, row_bytes);
        view.positions(id)[slot] = 0;  // in sight of every query
      }
    }
  }

  const Model& model;
  EngineOptions options;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Executor> executor;
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::vector<StepResult> results;
  std::vector<std::vector<float>> logprobs;
};

void fill(Batch& batch) {
  int32_t i = 0;
  for (const char* name : {"restkv", "snapkv", "streamingllm", "h2o", "tova", "pyramidkv", "adakv", "lacache",
                           "random", "full"}) {
    CacheRequest cache;
    cache.policy = name;
    cache.budget = 40 + 7 * i;  // no multiple of a page
    cache.window = 8;
    if (i % 3 == 1) cache.compress_at = 90;
    if (i == 0) cache.pin = 8;
    cache.probe = ProbeSpec{};
    batch.add(cache, 60 + 31 * i, 70);
    ++i;
  }
  CacheRequest grow;
  grow.budget = 50;
  grow.window = 8;
  grow.decode = "grow";
  batch.add(grow, 150, 70);
}

TEST(CachePages, InvariantsHoldBetweenAllSteps) {
  const auto model = testing::make_tiny_model();
  Batch batch(*model, DType::kF32);
  fill(batch);
  batch.run([&] { batch.check_invariants(); });
}

TEST(CachePages, PoisonOutsideOfTheEntriesChangesNothing) {
  const auto model = testing::make_tiny_model();
  for (const DType dtype : {DType::kF32, DType::kF16}) {
    Batch clean(*model, dtype), poisoned(*model, dtype);
    fill(clean);
    fill(poisoned);
    clean.run([] {});
    poisoned.run([&] { poisoned.poison(); });
    for (size_t i = 0; i < clean.sequences.size(); ++i) {
      EXPECT_EQ(clean.sequences[i]->tokens, poisoned.sequences[i]->tokens) << i;
      EXPECT_EQ(clean.logprobs[i], poisoned.logprobs[i]) << i;
      EXPECT_EQ(clean.logprobs[i].size(), 70u);
    }
  }
}

}  // namespace
}  // namespace restkv

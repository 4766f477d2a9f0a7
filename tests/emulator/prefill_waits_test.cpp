// The host enqueues a prompt without waiting for the device in between: all layers and their cuts, in a step or in units, and rows
// that are fed. One wait at the end takes what was counted. The executor is driven as the engine thread drives it.
#include <algorithm>
#include <memory>
#include <vector>

#include "engine/device.h"
#include "engine/executor.h"
#include "tests/emulator/emulated_backend.h"
#include "tests/engine/tiny_model.h"

namespace restkv {
namespace {

constexpr int32_t kUnitRows = 16;

CacheRequest cache_of(const char* policy, int32_t budget) {
  CacheRequest cache;
  cache.policy = policy;
  if (budget > 0) cache.budget = budget;
  cache.window = 4;
  return cache;
}

struct Seen {
  std::vector<int32_t> tokens;       // of both choices
  std::vector<CacheCounters> cache;  // of both, at the end
  int64_t most_waits = 0;   // from the start of a step, or of a turn's units, to the call that finishes it
  int32_t cached_rows = 0;  // of the prompt, from the prefix cache
};

// An executor on the emulated device, or on the CPU.
class Driver {
 public:
  Driver(int64_t layers, bool on_cpu) {
    testing::TinyShape shape;
    shape.layers = layers;
    model_ = testing::make_tiny_model(shape);
    options_.device = "cpu";
    options_.max_model_len = 128;
    options_.max_num_seqs = 4;
    options_.max_num_batched_tokens = 64;
    options_.prefix_fraction = 0.3;
    options_.threads = 1;
    backend_ =
        on_cpu ? *make_backend(options_) : make_emulated_backend({.page_slots = 16, .counts = &counts_});
    const Result<MemoryPlan> plan = Executor::plan(*model_, *backend_, options_, available_memory(*backend_));
    CHECK(plan.ok()) << plan.status().message();
    executor_ = std::make_unique<Executor>(*model_, *backend_, options_, *plan);
  }
  Executor& executor() { return *executor_; }

  // Two choices of one request, admitted.
  Choices admit(const CacheRequest& cache, int32_t first_token) {
    Choices choices;
    Request request;
    for (int32_t i = 0; i < 44; ++i) request.prompt.push_back(3 + (first_token + i * 7) % 60);
    request.max_tokens = 4;
    request.num_choices = 2;
    request.sampling.temperature = 0;
    request.cache = *resolve_cache_settings(cache, {});
    const auto handle = std::make_shared<RequestHandle>(std::move(request), nullptr);
    for (int32_t choice = 0; choice < 2; ++choice) {
      auto sequence = std::make_unique<Sequence>();
      sequence->handle = handle;
      sequence->choice = choice;
      sequence->tokens = handle->request.prompt;
      sequence->prompt_len = static_cast<int32_t>(sequence->tokens.size());
      sequence->phase = SequencePhase::kPrefill;
      executor_->prepare(*sequence);
      choices.push_back(std::move(sequence));
    }
    choices[0]->followers.push_back(choices[1].get());
    choices[1]->leader = choices[0].get();
    EXPECT_TRUE(executor_->can_admit(choices));
    executor_->admit(choices);
    return choices;
  }

  void start_units(Sequence& leader, int64_t num_layers) {
    executor_->start_prefill(leader, true);
    for (int32_t layer = 0; layer < num_layers; ++layer) {
      for (int32_t row = leader.first_row; row < leader.prefill_rows(); row += kUnitRows)
        executor_->start_unit({&leader, layer, row, std::min(kUnitRows, leader.prefill_rows() - row)});
    }
  }

  Seen whole(const CacheRequest& cache, bool in_units, int32_t first_token = 0) {
    Choices choices = admit(cache, first_token);
    Sequence& leader = *choices[0];
    Seen seen;
    seen.cached_rows = leader.first_row;
    StepBatch batch;
    const auto step = [&] {
      measured(seen, [&] { executor_->start_step(batch); });
      finish([&] { executor_->finish_step(results_); });
    };
    if (in_units) {
      measured(seen, [&] { start_units(leader, model_->config.num_layers); });
      finish([&] { executor_->finish_units(results_); });
    } else {
      batch.prompts.push_back(&leader);
      step();
    }
    leader.followers.clear();
    for (;;) {
      batch.clear();
      for (const auto& choice : choices) {
        const int32_t rest = choice->prompt_len - choice->position;
        if (rest > 1) {
          batch.decodes.push_back({choice.get(), std::min(rest, choice->feed_rows)});
        } else if (executor_->max_feed_rows(*choice) > 0) {
          batch.decodes.push_back({choice.get(), 1});
        }
      }
      if (batch.empty()) break;
      step();
    }
    for (const auto& choice : choices) {
      seen.tokens.insert(seen.tokens.end(), choice->tokens.begin() + choice->prompt_len,
                         choice->tokens.end());
      seen.cache.push_back(executor_->cache_counters(*choice));
      executor_->release(*choice);
    }
    return seen;
  }

 private:
  template <class Work>
  void measured(Seen& seen, Work work) {
    const int64_t before = counts_.waits;
    work();
    seen.most_waits = std::max<int64_t>(seen.most_waits, counts_.waits - before);
  }
  template <class Work>
  void finish(Work work) {
    const int64_t before = counts_.waits;
    work();
    EXPECT_LE(counts_.waits - before, 1);
    for (const StepResult& result : results_) {
      result.sequence->phase = SequencePhase::kDecode;
      result.sequence->tokens.push_back(result.sample->token);
      const CacheCounters now = executor_->cache_counters(*result.sequence);
      EXPECT_EQ(result.cache->evicted, now.evicted);
      EXPECT_EQ(result.cache->events, now.events);
    }
  }

  std::shared_ptr<const Model> model_;
  EngineOptions options_;
  DeviceCounts counts_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Executor> executor_;
  std::vector<StepResult> results_;
};

// None while a step or a turn's units are enqueued: with a prompt that is seen for the first time, one that goes to the prefix
// cache, one that is read from it, and rows that are fed behind a compressed prompt. What is cut keeps and counts what it does on
// the CPU.
TEST(Prefill, IsEnqueuedWithoutWaiting) {
  struct Case {
    const char* name;
    CacheRequest cache;
    int sights;
  };
  std::vector<Case> cases = {{"full", cache_of("full", 0), 3},
                             {"restkv", cache_of("restkv", 24), 3},
                             {"h2o", cache_of("h2o", 24), 1},
                             {"compress_at", cache_of("restkv", 24), 1}};
  cases[1].cache.pin = 2;
  cases[3].cache.stride = 4;
  cases[3].cache.compress_at = 33;
  for (const bool in_units : {false, true}) {
    Driver emulated(2, false), cpu(2, true);
    for (size_t i = 0; i < cases.size(); ++i) {
      const Case& one = cases[i];
      for (int sight = 0; sight < one.sights; ++sight) {
        SCOPED_TRACE(std::string(one.name) + (in_units ? " in units" : " in a step") + ", sight " +
                     std::to_string(sight));
        const auto first = static_cast<int32_t>(i);
        const Seen seen = emulated.whole(one.cache, in_units, first);
        const Seen expected = cpu.whole(one.cache, in_units, first);
        EXPECT_EQ(seen.most_waits, 0);
        EXPECT_EQ(seen.cached_rows, sight == 2 ? 32 : 0);
        EXPECT_EQ(seen.tokens.size(), 8u);
        EXPECT_EQ(seen.tokens, expected.tokens);
        for (size_t choice = 0; choice < 2; ++choice) {
          EXPECT_EQ(seen.cache[choice].evicted, expected.cache[choice].evicted);
          EXPECT_EQ(seen.cache[choice].events, expected.cache[choice].events);
          EXPECT_EQ(seen.cache[choice].kept, expected.cache[choice].kept);
          EXPECT_EQ(seen.cache[choice].evicted > 0, one.cache.policy != "full");
        }
      }
    }
    emulated.executor().clear_prefixes();
    EXPECT_EQ(emulated.executor().pool().free(), emulated.executor().pool().total());
  }
}

// A prompt that goes between two layers, while cuts of the first one are enqueued: nothing of it is written to or counted any more,
// and the next one has its pages.
TEST(Prefill, ReleaseBeforeTheWait) {
  Driver run(2, false);
  CacheRequest cache = cache_of("restkv", 24);
  cache.pin = 2;
  std::vector<StepResult> results;
  const Seen expected = run.whole(cache, true);
  run.executor().clear_prefixes();
  const EvictionTotals before = run.executor().eviction_totals();
  {
    Choices choices = run.admit(cache, 1);
    run.start_units(*choices[0], 1);
    for (const auto& choice : choices) run.executor().release(*choice);
    choices.clear();
    run.executor().finish_units(results);
    EXPECT_TRUE(results.empty());
  }
  EXPECT_EQ(run.executor().eviction_totals().events, before.events);
  EXPECT_EQ(run.executor().pool().free(), run.executor().pool().total());
  const Seen again = run.whole(cache, true);
  EXPECT_EQ(again.tokens, expected.tokens);
  EXPECT_EQ(again.cache[1].evicted, expected.cache[1].evicted);
  EXPECT_EQ(run.executor().eviction_totals().events - before.events,
            again.cache[0].events + again.cache[1].events);
}

}  // namespace
}  // namespace restkv

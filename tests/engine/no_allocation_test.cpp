// A decode step allocates nothing once it has seen its largest batch, in steps with a cut and in those without.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "engine/device.h"
#include "engine/executor.h"
#include "engine/host_memory.h"
#include "tests/engine/prefilled_sequence.h"
#include "tests/engine/tiny_model.h"

namespace {
std::atomic<int64_t> num_allocations{0};

void* counted(std::size_t size) {
  num_allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
}  // namespace

void* operator new(std::size_t size) { return counted(size); }
void* operator new[](std::size_t size) { return counted(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace restkv {
namespace {

TEST(DecodeStep, AllocatesNothing) {
  const auto model = testing::make_tiny_model();
  EngineOptions options;
  options.threads =
      1;  // each thread of a pool has buffers of its own that grow until it has seen the largest unit
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 128;
  options.max_model_len = 512;
  auto backend = make_backend(options);
  const auto plan = Executor::plan(*model, **backend, options, available_host_memory());
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  Executor executor(*model, **backend, options, *plan);

  const char* policies[] = {"full", "restkv", "restkv", "snapkv", "h2o", "tova", "streamingllm", "lacache"};
  std::vector<Sequence> sequences(std::size(policies));
  std::vector<StepResult> results;
  StepBatch batch;
  for (size_t i = 0; i < sequences.size(); ++i) {
    CacheRequest cache;
    cache.policy = policies[i];
    cache.window = 8;
    cache.budget = 48 + static_cast<int64_t>(i);
    if (i == 2) cache.preset = "paper";
    Request request;
    request.prompt = testing::some_prompt(60, static_cast<int32_t>(i));
    request.max_tokens = 300;
    request.sampling.temperature = 0;
    request.cache = *resolve_cache_settings(cache, {});
    testing::start_on(executor, std::move(request), sequences[i]);
    batch.decodes.push_back({&sequences[i], 1});
  }
  const auto events = [&] {
    int64_t sum = 0;
    for (const Sequence& sequence : sequences) sum += executor.cache_counters(sequence).events;
    return sum;
  };
  const auto step = [&] {
    executor.run_step(batch, results);
    for (const StepResult& result : results) result.sequence->tokens.push_back(result.sample->token);
  };
  for (int i = 0; i < 80; ++i) step();
  const int64_t events_before = events(), before = num_allocations.load();
  int64_t worst = 0;
  for (int i = 0; i < 100; ++i) {
    const int64_t at_start = num_allocations.load();
    step();
    worst = std::max(worst, num_allocations.load() - at_start);
  }
  const int64_t allocated = num_allocations.load() - before;
  EXPECT_EQ(allocated, 0) << "at most " << worst << " in a step";
  EXPECT_GT(events(), events_before + 100) << "steps with cuts are among them";
  for (Sequence& sequence : sequences) executor.release(sequence);
}

}  // namespace
}  // namespace restkv

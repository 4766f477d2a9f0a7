// Who runs when, with a host that counts pages by hand.
#include "engine/scheduler.h"

#include <gtest/gtest.h>

namespace restkv {
namespace {

// Room for `entries` entries and one long prompt at a time.
class CountingHost final : public SequenceHost {
 public:
  explicit CountingHost(int64_t entries) : free(entries) {}
  bool can_admit(const Sequence& s) const override { return s.max_entries() <= free; }
  void admit(Sequence& s) override { free -= s.max_entries(); }
  void release(Sequence& s) override {
    free += s.max_entries();
    if (prefilling == &s) prefilling = nullptr;
  }
  bool can_start_prefill(const Sequence&) const override { return prefilling == nullptr; }
  void start_prefill(Sequence& s) override { prefilling = &s; }
  int64_t free;
  const Sequence* prefilling = nullptr;
};

std::unique_ptr<Sequence> sequence(int32_t prompt_len, int32_t max_tokens) {
  Request request;
  request.prompt.assign(static_cast<size_t>(prompt_len), 1);
  request.max_tokens = max_tokens;
  auto s = std::make_unique<Sequence>();
  s->tokens = request.prompt;
  s->prompt_len = prompt_len;
  s->handle = std::make_shared<RequestHandle>(std::move(request), nullptr);
  return s;
}

struct Fixture {
  explicit Fixture(int64_t entries) : host(entries) {}
  std::vector<Sequence*> admit() {
    std::vector<Sequence*> admitted;
    scheduler.admit(admitted);
    return admitted;
  }
  CountingHost host;
  Scheduler scheduler{
      {.max_num_seqs = 4, .max_num_batched_tokens = 64, .unit_rows_beside_decode = 16, .num_layers = 3},
      host};
};

TEST(Scheduler, AdmitsInOrderAndNeverPassesTheHeadOfTheLine) {
  Fixture f(100);
  f.scheduler.enqueue(sequence(40, 21));  // 60 entries
  f.scheduler.enqueue(sequence(40, 21));  // does not fit beside it
  f.scheduler.enqueue(sequence(1, 1));    // would fit, but came later
  EXPECT_EQ(f.admit().size(), 1u);
  EXPECT_EQ(f.scheduler.queue().size(), 2u);
  f.scheduler.retire(f.scheduler.running().front().get());
  EXPECT_EQ(f.host.free, 100);
  EXPECT_EQ(f.admit().size(), 2u);
}

TEST(Scheduler, HoldsAtMostMaxNumSeqs) {
  Fixture f(1000);
  for (int i = 0; i < 6; ++i) f.scheduler.enqueue(sequence(2, 2));
  EXPECT_EQ(f.admit().size(), 4u);
  EXPECT_EQ(f.admit().size(), 0u);
}

TEST(Scheduler, ShortPromptsJoinDecodeRowsWithinTheStep) {
  Fixture f(1000);
  f.scheduler.enqueue(sequence(10, 5));
  f.scheduler.enqueue(sequence(50, 5));
  f.scheduler.enqueue(sequence(30, 5));
  const auto admitted = f.admit();
  StepBatch batch;
  f.scheduler.plan_step(batch);
  EXPECT_EQ(batch.prompts.size(), 2u);  // 10 + 50 rows; 30 more would be past 64
  admitted[0]->phase = admitted[1]->phase = SequencePhase::kDecode;
  f.scheduler.plan_step(batch);
  EXPECT_EQ(batch.decodes.size(), 2u);
  ASSERT_EQ(batch.prompts.size(), 1u);
  EXPECT_EQ(batch.prompts[0], admitted[2]);
}

TEST(Scheduler, LongPromptsRunInUnitsLayerByLayer) {
  Fixture f(1000);
  f.scheduler.enqueue(sequence(100, 5));
  Sequence* s = f.admit().front();
  StepBatch batch;
  f.scheduler.plan_step(batch);
  EXPECT_TRUE(batch.empty());
  std::vector<std::pair<int32_t, int32_t>> seen;
  for (bool done = false; !done;) {
    const PrefillUnit unit = f.scheduler.plan_unit();
    ASSERT_EQ(unit.sequence, s);
    EXPECT_EQ(f.host.prefilling, s);
    seen.emplace_back(unit.layer, unit.row_begin);
    done = f.scheduler.finish_unit(unit);
  }
  const std::vector<std::pair<int32_t, int32_t>> expected = {{0, 0},  {0, 64}, {1, 0},
                                                             {1, 64}, {2, 0},  {2, 64}};
  EXPECT_EQ(seen, expected);
  s->phase = SequencePhase::kDecode;
  EXPECT_EQ(f.scheduler.plan_unit().sequence, nullptr);
}

TEST(Scheduler, UnitsAreSmallWhileOthersDecode) {
  Fixture f(1000);
  f.scheduler.enqueue(sequence(4, 5));
  f.scheduler.enqueue(sequence(100, 5));
  f.admit().front()->phase = SequencePhase::kDecode;
  EXPECT_EQ(f.scheduler.plan_unit().num_rows, 16);
}

TEST(Scheduler, ASecondLongPromptWaitsForScratchAndFollowsTheFirst) {
  Fixture f(1000);
  f.scheduler.enqueue(sequence(100, 5));
  f.scheduler.enqueue(sequence(90, 5));
  const auto admitted = f.admit();
  EXPECT_EQ(f.scheduler.plan_unit().sequence, admitted[0]);
  Sequence* second = admitted[1];
  f.scheduler.retire(admitted[0]);  // cancelled in the middle of its prefill
  EXPECT_EQ(f.scheduler.plan_unit().sequence, second);
  EXPECT_EQ(f.host.prefilling, second);
}

TEST(Scheduler, RetiresFromTheQueueWithoutTouchingTheHost) {
  Fixture f(10);
  f.scheduler.enqueue(sequence(100, 5));
  f.admit();
  f.scheduler.retire(f.scheduler.queue().front().get());
  EXPECT_TRUE(f.scheduler.empty());
  EXPECT_EQ(f.host.free, 10);
}

}  // namespace
}  // namespace restkv

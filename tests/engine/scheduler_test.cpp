// Who runs when, with a host that counts pages by hand.
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "engine/scratch_arena.h"

namespace restkv {
namespace {

// Room for `entries` entries, and scratch for prompts of 8k beside any other.
class CountingHost final : public SequenceHost {
 public:
  explicit CountingHost(int64_t entries) : free(entries) {}
  bool can_admit(const Choices& choices) const override {
    int64_t entries = 0;
    for (const auto& s : choices) entries += s->max_entries();
    return entries <= free;
  }
  void admit(const Choices& choices) override {
    for (const auto& s : choices) free -= s->max_entries();
  }
  void release(Sequence& s) override {
    free += s.max_entries();
    if (const auto it = leases.find(&s); it != leases.end()) {
      scratch.give_back(it->second);
      leases.erase(it);
    }
  }
  bool can_start_prefill(const Sequence& s, bool may_use_open) const override {
    return scratch.can_take(s.prompt_len, may_use_open);
  }
  void start_prefill(Sequence& s, bool may_use_open) override {
    leases[&s] = scratch.take(s.prompt_len, may_use_open);
  }
  void hand_over(Sequence& from, Sequence& to) override {
    if (const auto it = leases.find(&from); it != leases.end()) {
      leases[&to] = it->second;
      leases.erase(it);
    }
  }
  int64_t free;
  ScratchArena scratch{ScratchArena::plan_blocks(65'536), true};
  std::map<const Sequence*, ScratchArena::Lease> leases;
};

std::unique_ptr<Sequence> sequence(int32_t prompt_len, int32_t max_tokens, int32_t priority = 0) {
  Request request;
  request.prompt.assign(static_cast<size_t>(prompt_len), 1);
  request.max_tokens = max_tokens;
  request.priority = priority;
  auto s = std::make_unique<Sequence>();
  s->tokens = request.prompt;
  s->prompt_len = s->prefill_len = prompt_len;
  s->handle = std::make_shared<RequestHandle>(std::move(request), nullptr);
  return s;
}

// A token a millisecond, a row of a layer in ten microseconds.
CostModel steady_cost(int32_t num_layers) {
  CostModel cost(num_layers);
  for (int i = 0; i < 50; ++i) {
    cost.observe_step(1 + i % 8, 100 * i, 1e-3);
    cost.observe_unit(16 * i, 16 + i % 64, 1e-5 * (16 + i % 64));
  }
  return cost;
}

struct Fixture {
  explicit Fixture(int64_t entries, SchedulingPolicy policy = SchedulingPolicy::kFifo, bool is_fitted = false,
                   double alone_seconds = 0, int32_t max_num_seqs = 4)
      : host(entries),
        cost(is_fitted ? steady_cost(3) : CostModel(3)),
        scheduler({.max_num_seqs = max_num_seqs,
                   .max_num_batched_tokens = 64,
                   .num_layers = 3,
                   .policy = policy,
                   .alone_seconds = alone_seconds},
                  cost, host) {}
  Sequence* add(std::unique_ptr<Sequence> s, int64_t milliseconds = 0) {
    Choices choices;
    Sequence* added = s.get();
    choices.push_back(std::move(s));
    scheduler.enqueue(std::move(choices), Clock::time_point(std::chrono::milliseconds(milliseconds)));
    return added;
  }
  std::vector<Sequence*> admit() {
    std::vector<Sequence*> admitted;
    scheduler.admit(admitted);
    return admitted;
  }
  // A turn's step is planned, its units follow.
  StepBatch plan_step() {
    StepBatch batch;
    scheduler.plan_step(batch);
    return batch;
  }
  CountingHost host;
  CostModel cost;
  Scheduler scheduler;
};

TEST(Scheduler, NeverPassesTheHeadOfTheLine) {
  for (const auto policy :
       {SchedulingPolicy::kFifo, SchedulingPolicy::kShortest, SchedulingPolicy::kPriority}) {
    Fixture f(100, policy);
    f.add(sequence(40, 21));  // 60 entries
    f.add(sequence(40, 21));  // does not fit beside it
    f.add(sequence(1, 1));    // would fit, but comes later
    EXPECT_EQ(f.admit().size(), 1u);
    EXPECT_EQ(f.scheduler.num_waiting(), 2);
    EXPECT_EQ(f.scheduler.waiting_tokens(), 41);
    f.scheduler.retire(f.scheduler.running().front().get());
    EXPECT_EQ(f.host.free, 100);
    EXPECT_EQ(f.admit().size(), 2u);
  }
}

TEST(Scheduler, ShortestFirstButNobodyWaitsForEver) {
  Fixture f(1'000'000, SchedulingPolicy::kShortest, true);
  // 2,000 tokens are 2 s: those that arrive within the 2 s and take no time pass, later ones do not.
  Sequence* long_one = f.add(sequence(4, 2000), 0);
  Sequence* early = f.add(sequence(4, 2), 1000);
  Sequence* late = f.add(sequence(4, 2), 3000);
  const auto admitted = f.admit();
  ASSERT_EQ(admitted.size(), 3u);
  EXPECT_EQ(admitted[0], early);
  EXPECT_EQ(admitted[1], long_one);
  EXPECT_EQ(admitted[2], late);
}

TEST(Scheduler, TheAnswerOfALongPromptIsAsShortAsItsBudgetMakesIt) {
  Fixture f(100'000, SchedulingPolicy::kShortest);
  for (int i = 0; i < 50; ++i) f.cost.observe_step(1, 100 * i, 1e-4 + 1e-7 * 100 * i);
  Sequence* whole = f.add(sequence(1000, 100));
  auto s = sequence(3000, 100);
  s->handle->request.cache = CacheSettings{};
  s->handle->request.cache.budget = 128;
  Sequence* cut = f.add(std::move(s));
  EXPECT_EQ(f.admit(), (std::vector<Sequence*>{cut, whole}));
}

TEST(Scheduler, PriorityThenArrival) {
  Fixture f(1'000'000, SchedulingPolicy::kPriority, true);
  Sequence* a = f.add(sequence(4, 2, 5));
  Sequence* b = f.add(sequence(4, 2, -1));
  Sequence* c = f.add(sequence(4, 2, 5));
  EXPECT_EQ(f.admit(), (std::vector<Sequence*>{b, a, c}));
}

TEST(Scheduler, ChoicesAreAdmittedTogether) {
  Fixture f(1000);
  f.add(sequence(2, 2));
  Choices choices;
  for (int i = 0; i < 4; ++i) choices.push_back(sequence(2, 2));
  f.scheduler.enqueue(std::move(choices), {});
  EXPECT_EQ(f.admit().size(), 1u);  // four do not fit beside one
  f.scheduler.retire(f.scheduler.running().front().get());
  EXPECT_EQ(f.admit().size(), 4u);
}

TEST(Scheduler, ChoicesShareOnePrefillAndOutliveItsLeader) {
  Fixture f(1000);
  Choices choices;
  for (int i = 0; i < 3; ++i) choices.push_back(sequence(100, 5));
  Sequence* leader = choices[0].get();
  Sequence* second = choices[1].get();
  Sequence* third = choices[2].get();
  f.scheduler.enqueue(std::move(choices), {});
  f.admit();
  f.plan_step();
  PrefillUnit unit = f.scheduler.plan_unit();
  EXPECT_EQ(unit.sequence, leader);
  EXPECT_EQ(leader->followers, (std::vector<Sequence*>{second, third}));
  f.scheduler.finish_unit(unit);
  f.scheduler.retire(leader);
  f.plan_step();
  unit = f.scheduler.plan_unit();
  EXPECT_EQ(unit.sequence, second);
  EXPECT_EQ(unit.row_begin, 64);  // it goes on where the leader was
  EXPECT_TRUE(f.host.leases.contains(second));
  EXPECT_EQ(second->followers, std::vector<Sequence*>{third});
  f.scheduler.retire(third);
  EXPECT_TRUE(second->followers.empty());
  f.scheduler.retire(second);
  EXPECT_EQ(f.host.free, 1000);
  EXPECT_EQ(f.host.scratch.num_used(), 0);
}

TEST(Scheduler, HoldsAtMostMaxNumSeqs) {
  Fixture f(1000);
  for (int i = 0; i < 6; ++i) f.add(sequence(2, 2));
  EXPECT_EQ(f.admit().size(), 4u);
  EXPECT_EQ(f.admit().size(), 0u);
}

TEST(Scheduler, ShortPromptsJoinDecodeRowsWithinTheStep) {
  Fixture f(1000);
  f.add(sequence(10, 5));
  f.add(sequence(50, 5));
  f.add(sequence(30, 5));
  const auto admitted = f.admit();
  EXPECT_EQ(f.plan_step().prompts.size(), 2u);  // 10 + 50 rows; 30 more would be past 64
  f.scheduler.start_decode(*admitted[0]);
  f.scheduler.start_decode(*admitted[1]);
  const StepBatch batch = f.plan_step();
  EXPECT_EQ(batch.decodes.size(), 2u);
  ASSERT_EQ(batch.prompts.size(), 1u);
  EXPECT_EQ(batch.prompts[0], admitted[2]);
}

TEST(Scheduler, APromptThatWouldTakeLongerThanAStepRunsInUnits) {
  Fixture f(1000, SchedulingPolicy::kFifo, true);
  f.add(sequence(2, 5));
  const auto first = f.admit();
  f.scheduler.start_decode(*first[0]);
  Sequence* brief = f.add(sequence(10, 5));  // 3 layers of 0.1 ms, a step takes 1 ms
  Sequence* wide = f.add(sequence(60, 5));   // 1.8 ms
  f.admit();
  const StepBatch batch = f.plan_step();
  EXPECT_EQ(batch.prompts, std::vector<Sequence*>{brief});
  f.scheduler.start_decode(*brief);
  const PrefillUnit unit = f.scheduler.plan_unit();
  EXPECT_EQ(unit.sequence, wide);
  EXPECT_TRUE(f.host.leases.contains(wide));
}

TEST(Scheduler, APromptOfThePrefixCacheTakesTheTimeOfWhatIsLeft) {
  Fixture f(100'000, SchedulingPolicy::kFifo, true);
  f.add(sequence(2, 5));
  const auto first = f.admit();
  f.scheduler.start_decode(*first[0]);
  auto hit = sequence(510, 5);
  hit->first_row = 500;  // ten rows to compute, as the host finds at admission
  Sequence* brief = f.add(std::move(hit));
  f.admit();
  EXPECT_EQ(f.plan_step().prompts, std::vector<Sequence*>{brief});
}

TEST(Scheduler, ATurnWhereNothingDecodesHasAsManyUnitsAsItsTimeHasRoomFor) {
  // Units of 64 and 36 rows, six of them; a turn has room for four and a half.
  const CostModel cost = steady_cost(3);
  const double large = cost.unit_seconds(0, 64), small = cost.unit_seconds(64, 36);
  ASSERT_GT(small, 0);
  for (const bool is_fitted : {true, false}) {  // of unknown ones a turn has one
    Fixture f(1000, SchedulingPolicy::kFifo, is_fitted, 2.5 * large + 2 * small);
    f.add(sequence(100, 5));
    f.admit();
    std::vector<int32_t> units_of_turns;
    for (bool done = false; !done;) {
      EXPECT_TRUE(f.plan_step().empty());
      int32_t units = 0;
      for (PrefillUnit unit = f.scheduler.plan_unit(); unit.sequence && !done;
           unit = f.scheduler.plan_unit()) {
        done = f.scheduler.finish_unit(unit);
        ++units;
        if (done) break;
      }
      units_of_turns.push_back(units);
    }
    const auto expected = is_fitted ? std::vector<int32_t>{4, 2} : std::vector<int32_t>{1, 1, 1, 1, 1, 1};
    EXPECT_EQ(units_of_turns, expected);
  }
}

TEST(Scheduler, UnitsWaitedForTogetherCountAsTheirMean) {
  CostModel cost(3);
  for (int i = 0; i < 60; ++i) {
    CostModel::Units units;
    double seconds = 0;
    for (int k = 0; k <= i % 3; ++k) {
      const int32_t rows = 16 + 8 * ((i + k) % 7);
      units.add(0, rows);
      seconds += 1e-4 + 1e-5 * rows;
    }
    cost.observe_units(units, seconds);
  }
  EXPECT_NEAR(cost.unit_seconds(0, 32), 1e-4 + 1e-5 * 32, 2e-5);
  EXPECT_NEAR(cost.unit_seconds(0, 64), 1e-4 + 1e-5 * 64, 2e-5);
}

TEST(Scheduler, LongPromptsRunInUnitsLayerByLayer) {
  Fixture f(1000);
  Sequence* s = f.add(sequence(100, 5));
  f.admit();
  std::vector<std::pair<int32_t, int32_t>> seen;
  for (bool done = false; !done;) {
    EXPECT_TRUE(f.plan_step().empty());
    const PrefillUnit unit = f.scheduler.plan_unit();
    ASSERT_EQ(unit.sequence, s);
    EXPECT_TRUE(f.host.leases.contains(s));
    seen.emplace_back(unit.layer, unit.row_begin);
    done = f.scheduler.finish_unit(unit);
    EXPECT_EQ(f.scheduler.plan_unit().sequence, nullptr) << "one unit a turn where nothing decodes";
  }
  const std::vector<std::pair<int32_t, int32_t>> expected = {{0, 0},  {0, 64}, {1, 0},
                                                             {1, 64}, {2, 0},  {2, 64}};
  EXPECT_EQ(seen, expected);
  f.scheduler.start_decode(*s);
  f.plan_step();
  EXPECT_EQ(f.scheduler.plan_unit().sequence, nullptr);
}

TEST(Scheduler, UnitsOfATurnTakeMostOfAStepsTimeAndNoMore) {
  Fixture f(100'000, SchedulingPolicy::kFifo, true);
  f.add(sequence(4, 5));
  Sequence* s = f.add(sequence(1000, 5));
  f.scheduler.start_decode(*f.admit().front());
  int turns = 0;
  for (bool done = false; !done; ++turns) {
    f.plan_step();
    double seconds = 0;
    int units = 0;
    for (PrefillUnit unit = f.scheduler.plan_unit(); unit.sequence && !done; unit = f.scheduler.plan_unit()) {
      EXPECT_EQ(unit.sequence, s);
      seconds += f.cost.unit_seconds(unit.row_begin, unit.num_rows);
      ++units;
      done = f.scheduler.finish_unit(unit);
    }
    EXPECT_GE(units, 1);
    EXPECT_LE(seconds, 0.75e-3);  // of a step of 1 ms
    if (!done) {
      EXPECT_GE(seconds, 0.45e-3);
    }
  }
  EXPECT_GE(turns, 40);  // 3 layers of 10 ms
}

// seconds of the units of the next turn
double unit_seconds_of_turn(Fixture& f) {
  f.plan_step();
  double seconds = 0;
  for (PrefillUnit unit = f.scheduler.plan_unit(); unit.sequence; unit = f.scheduler.plan_unit()) {
    seconds += f.cost.unit_seconds(unit.row_begin, unit.num_rows);
    EXPECT_FALSE(f.scheduler.finish_unit(unit));
  }
  return seconds;
}

TEST(Scheduler, PromptsGetMoreOfATurnWhereMoreOfThemWaitThanSequencesDecode) {
  Fixture f(1'000'000, SchedulingPolicy::kFifo, true);
  Sequence* first = f.add(sequence(4, 5));
  f.add(sequence(5000, 5));
  f.admit();
  f.scheduler.start_decode(*first);
  EXPECT_NEAR(unit_seconds_of_turn(f), 0.7e-3, 0.2e-3);  // a step takes 1 ms
  f.add(sequence(5000, 5));
  f.add(sequence(5000, 5));
  f.admit();
  EXPECT_NEAR(unit_seconds_of_turn(f), 2.1e-3, 0.2e-3);  // three for one
}

TEST(Scheduler, TheShareOfManyPromptsIsBounded) {
  Fixture f(1'000'000, SchedulingPolicy::kFifo, true, 0, 16);
  Sequence* first = f.add(sequence(4, 5));
  for (int i = 0; i < 12; ++i) f.add(sequence(5000, 5));
  f.admit();
  f.scheduler.start_decode(*first);
  EXPECT_NEAR(unit_seconds_of_turn(f), 3.5e-3, 0.2e-3);
}

TEST(Scheduler, LongPromptsShareTheScratchShortestFirst) {
  Fixture f(1'000'000, SchedulingPolicy::kShortest, true);
  Sequence* huge = f.add(sequence(60'000, 5));
  f.admit();
  f.plan_step();
  EXPECT_EQ(f.scheduler.plan_unit().sequence, huge);
  Sequence* second = f.add(sequence(50'000, 5));  // no room beside the first
  Sequence* small = f.add(sequence(300, 5));      // the small part is there for it
  f.admit();
  f.plan_step();
  const PrefillUnit unit = f.scheduler.plan_unit();
  EXPECT_EQ(unit.sequence, small);
  EXPECT_FALSE(f.host.leases.contains(second));
  f.scheduler.retire(huge);  // cancelled in the middle of its prefill
  f.scheduler.retire(small);
  f.plan_step();
  EXPECT_EQ(f.scheduler.plan_unit().sequence, second);
}

TEST(Scheduler, AnOldLongPromptLeavesEverySecondUnitToMuchShorterOnes) {
  Fixture f(1'000'000, SchedulingPolicy::kShortest, true);
  const auto at = [](int64_t ms) { return Clock::time_point(std::chrono::milliseconds(ms)); };
  Sequence* huge = f.add(sequence(30'000, 5));  // 0.9 s
  f.admit();
  huge->admitted = at(0);
  f.plan_step();
  f.scheduler.finish_unit(f.scheduler.plan_unit());
  Sequence* small = f.add(sequence(300, 5), 10'000);  // long after the old one's time is over
  Sequence* similar = f.add(sequence(20'000, 5), 10'000);
  f.admit();
  small->admitted = similar->admitted = at(10'000);
  int of_small = 0, of_huge = 0;
  for (bool done = false; !done;) {
    f.plan_step();
    const PrefillUnit unit = f.scheduler.plan_unit();
    ASSERT_NE(unit.sequence, nullptr);
    EXPECT_NE(unit.sequence, similar) << "who is not much shorter waits for the old one";
    (unit.sequence == small ? of_small : of_huge) += 1;
    done = f.scheduler.finish_unit(unit) && unit.sequence == small;
  }
  EXPECT_EQ(of_small, 15) << "3 layers of 300 rows, 64 a unit";
  EXPECT_LE(std::abs(of_small - of_huge), 1);
  f.scheduler.start_decode(*small);
  f.scheduler.retire(small);
  f.plan_step();
  EXPECT_EQ(f.scheduler.plan_unit().sequence, huge);
}

TEST(Scheduler, SmallPromptsDoNotKeepAHugeOneFromTheScratch) {
  Fixture f(1'000'000, SchedulingPolicy::kFifo, true);
  Sequence* first = f.add(sequence(9000, 5));
  Sequence* huge = f.add(sequence(60'000, 5));
  Sequence* small = f.add(sequence(8000, 5));
  Sequence* another = f.add(sequence(8000, 5));
  f.admit();
  f.plan_step();
  f.scheduler.plan_unit();
  EXPECT_TRUE(f.host.leases.contains(first));
  EXPECT_FALSE(f.host.leases.contains(huge));
  EXPECT_TRUE(f.host.leases.contains(small));     // in the part for small prompts
  EXPECT_FALSE(f.host.leases.contains(another));  // there is open room, but the huge one waits for it
}

TEST(Scheduler, RetiresFromTheQueueWithoutTouchingTheHost) {
  Fixture f(10);
  Sequence* s = f.add(sequence(100, 5));
  f.admit();
  f.scheduler.retire(s);
  EXPECT_TRUE(f.scheduler.empty());
  EXPECT_EQ(f.scheduler.num_waiting(), 0);
  EXPECT_EQ(f.host.free, 10);
}

TEST(CostModel, FitsWhatItIsShown) {
  CostModel cost(4);
  EXPECT_EQ(cost.step_seconds(1, 100), 0.0);
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {
    const auto rows = static_cast<int64_t>(1 + random() % 32),
               entries = static_cast<int64_t>(random() % 100'000);
    cost.observe_step(rows, entries,
                      5e-3 + 1e-4 * static_cast<double>(rows) + 2e-8 * static_cast<double>(entries));
    const auto first = static_cast<int64_t>(random() % 8192),
               count = static_cast<int64_t>(16 + random() % 500);
    cost.observe_unit(first, count,
                      1e-4 + 1e-5 * static_cast<double>(count) +
                          1e-9 * static_cast<double>(count) *
                              (static_cast<double>(first) + 0.5 * static_cast<double>(count)));
  }
  EXPECT_NEAR(cost.step_seconds(16, 50'000), 7.6e-3, 2e-4);
  EXPECT_NEAR(cost.unit_seconds(4096, 256), 1e-4 + 2.56e-3 + 1e-9 * 256 * 4224, 2e-4);
  const int32_t rows = cost.unit_rows(4096, 512, 2e-3);
  EXPECT_EQ(rows % CostModel::kRowTile, 0);
  EXPECT_LE(cost.unit_seconds(4096, rows), 2e-3);
  EXPECT_GT(cost.unit_seconds(4096, rows + CostModel::kRowTile), 2e-3);
  EXPECT_EQ(cost.unit_rows(4096, 512, 0), CostModel::kRowTile);
}

TEST(ScratchArena, KeepsAnEighthForSmallPrompts) {
  ScratchArena arena(ScratchArena::plan_blocks(65'536), true);
  auto huge = arena.take(65'536, true);
  EXPECT_FALSE(arena.can_take(8193, true));
  auto small = arena.take(8192, false);
  EXPECT_FALSE(arena.can_take(8192, true));
  arena.give_back(huge);
  arena.give_back(huge);  // nothing is held any more
  EXPECT_FALSE(arena.can_take(8192, false));
  EXPECT_TRUE(arena.can_take(8192, true));
  arena.give_back(small);
  EXPECT_EQ(arena.num_used(), 0);
  EXPECT_EQ(ScratchArena::plan_blocks(8192), 32);
  EXPECT_EQ(ScratchArena::plan_blocks(8191), 32);
}

TEST(ScratchArena, KeepsASlotForSmallPrompts) {
  ScratchArena arena(ScratchArena::plan_blocks(65'536), true);
  std::vector<ScratchArena::Lease> large;
  for (int32_t i = 0; i < kMaxPrefills - 1; ++i) large.push_back(arena.take(8193, true));
  EXPECT_FALSE(arena.can_take(8193, true)) << "there is room, and a slot";
  auto small = arena.take(100, true);
  EXPECT_FALSE(arena.can_take(100, true)) << "no slot is left";
  arena.give_back(small);
  arena.give_back(large[0]);
  EXPECT_TRUE(arena.can_take(8193, true));
  // Small ones may have them all.
  for (int32_t i = 1; i < kMaxPrefills - 1; ++i) arena.give_back(large[static_cast<size_t>(i)]);
  for (int32_t i = 0; i < kMaxPrefills; ++i) EXPECT_GE(arena.take(8192, true).slot, 0);
  // Where every prompt is a small one there is nothing to keep.
  ScratchArena equal(ScratchArena::plan_blocks(8192), false);
  for (int32_t i = 0; i < kMaxPrefills; ++i) EXPECT_GE(equal.take(2000, true).slot, 0);
}

}  // namespace
}  // namespace restkv

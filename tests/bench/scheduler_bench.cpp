// What the scheduler itself costs: a step with 512 live sequences, for short and long prompts, and a request among many that
// wait. A host that has room for everything it is asked for; no model, no cache.
//   scheduler_bench
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "engine/scheduler.h"

namespace restkv {
namespace {

class OpenHost final : public SequenceHost {
 public:
  bool can_admit(const Choices&) const override { return true; }
  void admit(const Choices&) override {}
  void release(Sequence&) override {}
  bool can_start_prefill(const Sequence&, bool) const override { return true; }
  void start_prefill(Sequence&, bool) override {}
  void hand_over(Sequence&, Sequence&) override {}
};

std::unique_ptr<Sequence> sequence(int32_t prompt_len, int32_t max_tokens) {
  Request request;
  request.prompt.assign(static_cast<size_t>(prompt_len), 1);
  request.max_tokens = max_tokens;
  auto s = std::make_unique<Sequence>();
  s->tokens = request.prompt;
  s->prompt_len = s->prefill_len = prompt_len;
  s->handle = std::make_shared<RequestHandle>(std::move(request), nullptr);
  return s;
}

CostModel fitted_cost() {
  CostModel cost(32);
  for (int i = 0; i < 50; ++i) {
    cost.observe_step(1 + i, 100 * i, 1e-2 + 1e-4 * i);
    cost.observe_unit(16 * i, 16 + i, 1e-5 * (16 + i));
  }
  return cost;
}

double microseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
}

void enqueue(Scheduler& scheduler, std::unique_ptr<Sequence> one, int64_t milliseconds) {
  Choices choices;
  choices.push_back(std::move(one));
  scheduler.enqueue(std::move(choices), Clock::time_point(std::chrono::milliseconds(milliseconds)));
}

// Median time of admit, plan_step and plan_unit with 511 sequences that decode and one long prompt in work.
void measure_step(int32_t prompt_len) {
  constexpr int32_t kLive = 512;
  const CostModel cost = fitted_cost();
  OpenHost host;
  Scheduler scheduler({.max_num_seqs = kLive, .max_num_batched_tokens = 2048, .num_layers = 32}, cost, host);
  for (int32_t i = 0; i < kLive; ++i) enqueue(scheduler, sequence(prompt_len, 100), i);
  std::vector<Sequence*> admitted;
  scheduler.admit(admitted);
  for (size_t i = 0; i + 1 < admitted.size(); ++i) {
    admitted[i]->position = prompt_len;
    scheduler.start_decode(*admitted[i]);
  }
  StepBatch batch;
  std::vector<double> times;
  for (int round = 0; round < 2000; ++round) {
    const auto start = std::chrono::steady_clock::now();
    admitted.clear();
    scheduler.admit(admitted);
    scheduler.plan_step(batch);
    const bool has_unit = scheduler.plan_unit().sequence != nullptr;  // never finished: the prompt has no end
    times.push_back(microseconds_since(start));
    if (batch.decodes.size() < kLive - 1) std::puts("a decode row is missing");
    // A short prompt joins the step while that leaves it time.
    if (!has_unit && batch.prompts.empty()) std::puts("the prompt is missing");
  }
  std::sort(times.begin(), times.end());
  std::printf("| %d live, prompts of %d tokens | %.1f us a step, 99th percentile %.1f |\n", kLive, prompt_len,
              times[times.size() / 2], times[times.size() * 99 / 100]);
}

// A request joins, one is admitted and ends, while `waiting` others wait.
void measure_queue(int32_t waiting) {
  const CostModel cost = fitted_cost();
  OpenHost host;
  Scheduler scheduler({.max_num_seqs = 1, .max_num_batched_tokens = 2048, .num_layers = 32}, cost, host);
  for (int32_t i = 0; i < waiting; ++i) enqueue(scheduler, sequence(16 + i % 50, 10 + i % 90), i);
  std::vector<Sequence*> admitted;
  std::vector<double> times;
  for (int32_t round = 0; round < 5000; ++round) {
    std::unique_ptr<Sequence> one = sequence(16 + round % 50, 10 + round % 90);
    const auto start = std::chrono::steady_clock::now();
    enqueue(scheduler, std::move(one), waiting + round);
    admitted.clear();
    scheduler.admit(admitted);
    scheduler.retire(admitted.front());
    times.push_back(microseconds_since(start));
  }
  std::sort(times.begin(), times.end());
  std::printf("| %d waiting | %.2f us a request, 99th percentile %.2f |\n", waiting, times[times.size() / 2],
              times[times.size() * 99 / 100]);
}

}  // namespace
}  // namespace restkv

int main() {
  std::puts("| scheduler alone | time |\n|---|---|");
  for (const int32_t prompt_len : {100, 2000, 100'000}) restkv::measure_step(prompt_len);
  for (const int32_t waiting : {100, 1000, 10'000, 100'000}) restkv::measure_queue(waiting);
}

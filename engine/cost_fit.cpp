// The first samples of the cost model, before the first request.
#include "engine/engine_core.h"

#include <algorithm>

namespace restkv {

void EngineCore::fit_costs() {
  // One sequence that is fed row by row and in units of one layer; nothing of it is kept.
  Request request;
  const int64_t rows =
      std::min<int64_t>({plan_.max_model_len - 1, 256, int64_t{options_.max_num_batched_tokens}});
  if (rows < 2) return;
  request.prompt.assign(static_cast<size_t>(rows), 0);
  request.max_tokens = 1;
  Sequence sequence;
  sequence.handle = std::make_shared<RequestHandle>(std::move(request), nullptr);
  sequence.tokens = sequence.request().prompt;
  sequence.prompt_len = static_cast<int32_t>(rows);
  executor_.prepare(sequence);
  if (!executor_.can_admit(sequence)) return;
  executor_.admit(sequence);
  sequence.prompt_len = 1;  // behind it every step draws
  const auto measure = [&](auto&& work) {
    const Clock::time_point start = now_();
    work();
    return seconds_between(start, now_());
  };
  StepBatch batch;
  for (int round = 0; round < 4 && sequence.position + 8 < rows; ++round) {
    const int32_t fed = round == 3 ? 8 : 1;
    batch.clear();
    batch.decodes.push_back({&sequence, fed});
    const int64_t entries = int64_t{fed} * sequence.position;
    const double time = measure([&] { executor_.run_step(batch, results_); });
    if (round > 0) cost_.observe_step(fed, entries, time);  // the first one reads the weights from disk
  }
  executor_.release(sequence);

  sequence.prompt_len = static_cast<int32_t>(rows);
  executor_.prepare(sequence);
  executor_.admit(sequence);
  executor_.start_prefill(sequence, true);
  sequence.position = 0;
  int32_t row = 0;
  for (int32_t count = CostModel::kRowTile; row < rows; count *= 2) {
    const auto taken = static_cast<int32_t>(std::min<int64_t>(count, rows - row - 1));
    if (taken <= 0) break;  // the layer's last row stays away: it would store the layer
    cost_.observe_unit(row, taken, measure([&] {
                         executor_.run_unit({&sequence, 0, row, taken}, results_);
                       }));
    row += taken;
  }
  executor_.release(sequence);
}

}  // namespace restkv

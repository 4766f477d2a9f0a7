// Sequences on an executor alone, without engine and scheduler: for tests of single steps.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "engine/executor.h"

namespace restkv::testing {

// [count] tokens of a vocabulary of 64, others for each `seed`.
inline std::vector<int32_t> some_prompt(int32_t count, int32_t seed) {
  std::vector<int32_t> prompt;
  for (int32_t t = 0; t < count; ++t) prompt.push_back(3 + (t * 7 + seed) % 60);
  return prompt;
}

// Admits it, runs its whole prompt in a step of its own and takes its first token. The caller releases it.
inline void start_on(Executor& executor, Request request, Sequence& sequence) {
  sequence.tokens.reserve(request.prompt.size() + static_cast<size_t>(request.max_tokens));
  sequence.tokens = request.prompt;
  sequence.prompt_len = static_cast<int32_t>(request.prompt.size());
  sequence.handle = std::make_shared<RequestHandle>(std::move(request), nullptr);
  executor.prepare(sequence);
  executor.admit(sequence);
  StepBatch batch;
  batch.prompts.push_back(&sequence);
  std::vector<StepResult> results;
  executor.run_step(batch, results);
  sequence.tokens.push_back(results.at(0).sample->token);
}

}  // namespace restkv::testing

// Drives the executor directly: the first piece is a prompt (cut into units where it is longer than a step),
// every further piece is fed through the cache.
#include "engine/logits.h"

#include <algorithm>

#include "engine/device.h"
#include "engine/executor.h"
#include "engine/request_checks.h"

namespace restkv {
namespace {

using Sink = std::function<void(int64_t first_row, int64_t rows, const float* logits)>;

// Throws DeviceError.
Status run(const Model& model, const EngineOptions& asked, std::span<const int32_t> tokens,
           std::span<const int32_t> pieces, const Sink& sink) {
  const Result<std::unique_ptr<Backend>> made = make_backend(asked);
  if (!made.ok()) return made.status();
  Backend& backend = **made;
  const EngineOptions options = fit_options(asked, backend);
  const Result<MemoryPlan> plan = Executor::plan(model, backend, options, available_memory(backend));
  if (!plan.ok()) return plan.status();
  if (static_cast<int64_t>(tokens.size()) > plan->max_model_len) {
    return invalid_argument(std::to_string(tokens.size()) + " tokens; at most " +
                            std::to_string(plan->max_model_len) + " fit")
        .with_reason("context_length_exceeded");
  }
  Executor executor(model, backend, options, *plan);
  std::vector<float> on_host;  // [rows, V]
  executor.set_logits_observer([&](const Sequence&, int64_t first_row, ConstTensor logits) {
    on_host.resize(static_cast<size_t>(logits.rows * logits.cols));
    backend.read_back(logits, on_host.data());
    sink(first_row, logits.rows, on_host.data());
  });

  Request request;
  const auto piece_len = [&](size_t index) {
    const size_t rest = tokens.size();
    return pieces.empty() ? static_cast<int32_t>(rest) : pieces[std::min(index, pieces.size() - 1)];
  };
  const auto first_len = std::min<size_t>(tokens.size(), static_cast<size_t>(std::max(1, piece_len(0))));
  request.prompt.assign(tokens.begin(), tokens.begin() + static_cast<int64_t>(first_len));
  request.max_tokens = static_cast<int32_t>(tokens.size() - first_len) + 1;
  Sequence sequence;
  sequence.handle = std::make_shared<RequestHandle>(std::move(request), nullptr);
  sequence.tokens.assign(tokens.begin(), tokens.begin() + static_cast<int64_t>(first_len));
  sequence.prompt_len = static_cast<int32_t>(first_len);
  sequence.phase = SequencePhase::kPrefill;
  executor.prepare(sequence);
  if (!executor.can_admit(sequence)) return {StatusCode::kFailedPrecondition, "the page pool is too small"};
  executor.admit(sequence);

  std::vector<StepResult> results;
  StepBatch batch;
  executor.prefill(sequence, results);
  sequence.tokens.assign(tokens.begin(), tokens.end());
  for (size_t piece = 1; sequence.position < static_cast<int32_t>(tokens.size()); ++piece) {
    const int32_t rest = static_cast<int32_t>(tokens.size()) - sequence.position;
    const int32_t rows = std::min({std::max(1, piece_len(piece)), rest, options.max_num_batched_tokens,
                                   executor.max_feed_rows(sequence)});
    batch.clear();
    batch.decodes.push_back({&sequence, rows});
    executor.run_step(batch, results);
  }
  executor.release(sequence);
  return {};
}

}  // namespace

Status compute_logits(const Model& model, const EngineOptions& asked, std::span<const int32_t> tokens,
                      std::span<const int32_t> pieces,
                      const std::function<void(int64_t first_row, int64_t rows, const float* logits)>& sink) {
  if (Status s = check_token_ids(tokens, model.config.vocab_size, "tokens"); !s.ok()) return s;
  if (tokens.empty()) return invalid_argument("no tokens");
  try {
    return run(model, asked, tokens, pieces, sink);
  } catch (const DeviceError& error) {
    return status_of(error);
  }
}

}  // namespace restkv

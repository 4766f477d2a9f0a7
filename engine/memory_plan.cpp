// Bytes of every part of memory for given options; the executor allocates what stands here and nothing else.
#include <algorithm>

#include "engine/device.h"
#include "engine/executor.h"
#include "engine/model/weight_placement.h"
#include "engine/step_buffers.h"

namespace restkv {
namespace {

// Pages of a sequence that fills max_model_len.
int64_t pages_of_longest(const ModelConfig& config, const CacheShape& shape, int32_t slots,
                         const AllocationTables* tables, const CacheSettings& settings,
                         int64_t max_model_len) {
  SequenceMemory memory;
  Evictor::plan(config, tables, settings, std::max<int64_t>(1, max_model_len - 1), 1, memory);
  return KvCache::pages_for(memory.reservation, shape, slots);
}

}  // namespace

Result<MemoryPlan> Executor::plan(const Model& model, Backend& backend, const EngineOptions& options,
                                  int64_t available_bytes) {
  const ModelConfig& config = model.config;
  if (options.max_num_batched_tokens <= options.max_num_seqs) {
    return invalid_argument("max_num_batched_tokens (" + std::to_string(options.max_num_batched_tokens) +
                            ") must be greater than max_num_seqs (" + std::to_string(options.max_num_seqs) +
                            "), or no prompt could join a full batch");
  }
  if (options.max_model_len > config.context_len) {
    return invalid_argument("max_model_len " + std::to_string(options.max_model_len) + " is beyond the " +
                            std::to_string(config.context_len) + " tokens the model was trained for");
  }
  if (Status status = backend.check_attention_shape(attention_shape(config)); !status.ok()) return status;
  const CacheShape shape = cache_shape(config, options.cache_dtype);
  const int32_t slots = backend.page_slots();
  const CacheSettings full = CacheSettings::full();
  const auto workspace_of = [&](int64_t tokens) {
    Arena arena = Arena::counting();
    const Transformer transformer(config, model.weights, backend, arena, options.max_num_batched_tokens,
                                  logit_rows(options));
    StepBuffers::make(arena, config, options, backend.activation_type(), tokens);
    return arena.used();
  };
  const auto scratch_of = [&](int64_t tokens) {
    return ScratchArena::plan_blocks(tokens) * kScratchBlockRows *
           scratch_row_bytes(config, backend.activation_type(), options.cache_dtype);
  };

  MemoryPlan plan;
  Arena weights = Arena::counting();
  place_weights(model.weights, backend, weights);
  plan.weights_copy = weights.used();
  plan.weights = plan.weights_copy > 0 ? plan.weights_copy : model.weights.num_bytes;
  plan.projections = Projections::bytes(config.num_layers, config.num_heads, config.head_dim);
  plan.page_bytes = KvCache::page_bytes(backend, shape);
  const int64_t budget =
      static_cast<int64_t>(options.memory_fraction *
                           static_cast<double>(std::max<int64_t>(0, available_bytes - plan.weights))) -
      plan.projections;
  // A sequence of `tokens` must fit with everything kept, whatever the default policy.
  const auto bytes_with = [&](int64_t tokens) {
    return workspace_of(tokens) + scratch_of(tokens) +
           pages_of_longest(config, shape, slots, nullptr, full, tokens) *
               (plan.page_bytes + TableStore::bytes(backend, 1));
  };
  plan.max_model_len = options.max_model_len > 0 ? options.max_model_len : config.context_len;
  if (bytes_with(plan.max_model_len) > budget) {
    int64_t fits = 0;
    for (int64_t step = int64_t{1} << 30; step > 0; step /= 2)
      if (fits + step <= plan.max_model_len && bytes_with(fits + step) <= budget) fits += step;
    if (options.max_model_len > 0 || fits < 256) {
      return Status(
          StatusCode::kFailedPrecondition,
          "one sequence of " + std::to_string(plan.max_model_len) + " tokens needs " +
              std::to_string(bytes_with(plan.max_model_len) >> 20) + " MiB of cache and work space, " +
              std::to_string(std::max<int64_t>(0, budget) >> 20) + " MiB are left; " +
              (fits > 0 ? "lower --max-model-len to " + std::to_string(fits) + " or raise --memory-fraction"
                        : "lower --max-model-len, raise --memory-fraction or the limit of memory (a "
                          "container's, ulimit -v)"));
    }
    plan.max_model_len = fits;
  }
  plan.workspace = workspace_of(plan.max_model_len);
  plan.scratch = scratch_of(plan.max_model_len);
  const int64_t pages_full = pages_of_longest(config, shape, slots, nullptr, full, plan.max_model_len);
  plan.pages = std::min<int64_t>(
      {(budget - plan.workspace - plan.scratch) / (plan.page_bytes + TableStore::bytes(backend, 1)),
       pages_full * options.max_num_seqs, int64_t{INT32_MAX}});
  plan.pool = plan.pages * plan.page_bytes;
  plan.tables = TableStore::bytes(backend, plan.pages);
  SequenceMemory longest;
  Evictor::plan(config, options.allocation.get(), options.cache, std::max<int64_t>(1, plan.max_model_len - 1),
                1, longest);
  plan.max_sequences = std::min<int64_t>(options.max_num_seqs,
                                         plan.pages / KvCache::pages_for(longest.reservation, shape, slots));
  plan.sequence = plan.page_bytes * KvCache::pages_for(longest.reservation, shape, slots) +
                  4 * KvCache::table_entries(longest.reservation, shape, slots);
  for (const bool has_ring : longest.reservation.ring_layer) {
    if (!has_ring) continue;
    plan.ring += plan.page_bytes * config.num_kv_heads *
                 QueryRing::num_pages(longest.reservation.ring_window,
                                      static_cast<int32_t>(config.group_size()), slots);
  }
  return plan;
}

Result<MemoryPlan> plan_memory(const Model& model, const EngineOptions& options) {
  try {
    const Result<std::unique_ptr<Backend>> backend = make_backend(options);
    if (!backend.ok()) return backend.status();
    return Executor::plan(model, **backend, fit_options(options, **backend), available_memory(**backend));
  } catch (const DeviceError& error) {
    return status_of(error);
  }
}

}  // namespace restkv

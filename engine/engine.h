// The facade: everything a server, a CLI verb or a test needs of the engine. One engine thread owns all
// scheduler, sequence and page state (engine/README.md); what crosses threads is RequestHandle, atomic
// counters and snapshots.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/eviction/allocation_file.h"
#include "engine/histograms.h"
#include "engine/model/weights.h"
#include "engine/request.h"
#include "engine/trace_store.h"

namespace restkv {

class Backend;

struct EngineOptions {
  std::string device = "auto";         // auto, cpu, cuda, cuda:N
  int32_t threads = 0;                 // 0: physical cores
  int64_t max_model_len = 0;           // 0: the model's context, bounded by memory
  int32_t max_num_seqs = 0;            // sequences that decode in one step; 0: fit_options, by device
  int32_t max_num_batched_tokens = 0;  // rows of a step; 0: fit_options, by device
  bool deterministic =
      false;                // on a card: an answer does not depend on what runs beside it; the CPU's never do
  bool cuda_graphs = true;  // decode steps reach a card as graphs
  double memory_fraction = 0.5;     // of what the machine leaves beside the weights, for the page pool
  DType cache_dtype = DType::kF32;  // kF32 or kF16; on a card that of its activations (fit_options)
  // Makes the backend in place of make_backend(): tests run the engine on the emulated device.
  std::function<Result<std::unique_ptr<Backend>>()> backend_maker;
  CacheSettings cache = CacheSettings::full();         // what the plan counts a sequence with
  std::shared_ptr<const AllocationTables> allocation;  // of `calibrated`; null: no request may ask for it
  double prefix_fraction = 0.2;        // of the pool, at most, for beginnings of prompts; 0: none are kept
  int64_t prefix_max_tokens = 16'384;  // of one prompt
  SchedulingPolicy scheduling = SchedulingPolicy::kShortest;
  int32_t max_queue_requests = 1024;
  int64_t max_queue_tokens = 1 << 22;
  int32_t max_owner_requests = 0;    // requests of one API key in flight; 0: no limit
  int64_t trace_memory = 256 << 20;  // bytes of all traces of cuts, in main memory, beside the plan
};

// Bytes of every part of memory, fixed at start; `inspect` prints it.
struct MemoryPlan {
  int64_t weights = 0;  // mapped file, shared with the page cache on the CPU; elsewhere the backend's copy
  int64_t weights_copy = 0;  // of them in the backend's own memory
  int64_t projections = 0;   // R_g of the output projections, for scoring
  int64_t workspace = 0;     // activations of one step
  int64_t scratch = 0;       // prefill arena
  int64_t pool = 0;          // pages
  int64_t tables = 0;        // of pages, on a device
  int64_t ring = 0;          // of one sequence: query ring pages
  // One sequence that fills max_model_len under the default settings: pages, ring, sums, tables.
  int64_t sequence = 0;
  int64_t page_bytes = 0;
  int64_t pages = 0;
  int64_t max_sequences = 0;  // that fill max_model_len under the default cache settings
  int64_t max_model_len = 0;
};
// What an engine with these options would take, without loading weights into memory. Error: does not fit,
// which setting to change and to what.
Result<MemoryPlan> plan_memory(const Model& model, const EngineOptions& options);

struct EngineStats {
  int64_t running = 0, waiting = 0;
  int64_t waiting_tokens = 0;
  int32_t page_slots = 0;  // entries of a page
  int64_t pages_total = 0, pages_free = 0, pages_owned = 0, pages_cached = 0;
  int64_t steps = 0;
  int64_t steps_ahead = 0;  // enqueued while the step before them was still in flight
  int64_t prompt_tokens = 0, generated_tokens = 0;
  int64_t prefix_queries = 0,
          prefix_hits = 0;  // prompt tokens looked up in the prefix cache, and found there
  int64_t evicted_rows = 0, eviction_events = 0, nan_rows = 0;  // as of now, running sequences included
  double eviction_prefill_seconds = 0, eviction_decode_seconds = 0;
  // Of sequences that ended: entries over all heads, and those that went.
  int64_t ended_rows = 0, ended_rows_gone = 0;
  int64_t nan_requests = 0;                               // sequences that ended with NaN logits
  std::array<int64_t, kNumPolicies> evicted_by_policy{};  // rows, by PolicyKind
  int64_t finished_stop = 0, finished_length = 0, finished_cancelled = 0, finished_error = 0;
};

// A request in flight, for its owner.
struct RequestInfo {
  std::string id;
  RequestPhase phase = RequestPhase::kQueued;
  int64_t prompt_tokens = 0, generated_tokens = 0, max_tokens = 0;
  int32_t num_choices = 1, priority = 0;
  double age_seconds = 0;
};

class Engine {
 public:
  // Starts the engine thread. `threads` compute threads, workspaces and the page pool exist when this
  // returns.
  static Result<std::unique_ptr<Engine>> start(std::shared_ptr<const Model> model,
                                               const EngineOptions& options);
  virtual ~Engine() = default;  // stops at once: running requests end as cancelled

  // Any thread. Errors: INVALID_ARGUMENT (what could never fit, reason context_length_exceeded; a bad token
  // id), RESOURCE_EXHAUSTED (queue full, too many of this owner), UNAVAILABLE (draining, broken). On success the stream
  // ends with exactly one kFinish record per choice.
  virtual Status submit(const std::shared_ptr<RequestHandle>& handle) = 0;
  virtual void drain() = 0;          // no new requests from now on; running ones go on
  virtual bool is_idle() const = 0;  // nothing queued or running
  virtual bool is_healthy() const = 0;
  // Requests in flight of one owner, oldest first; any thread.
  virtual std::vector<RequestInfo> requests(std::string_view owner) const = 0;
  // Cancels the owner's requests of this id; false: there is none.
  virtual bool cancel(std::string_view id, std::string_view owner) = 0;
  virtual void cancel_all() = 0;  // everything in flight; any thread
  virtual EngineStats stats() const = 0;
  virtual Histograms histograms() const = 0;
  // What the last turns did, where a self-check failed; no text and no tokens. Empty while all is well.
  virtual std::string fault_trace() const = 0;
  // Traces of sequences that ended (cache.trace).
  virtual TraceStore& traces() = 0;
  virtual const Model& model() const = 0;
  virtual const MemoryPlan& memory_plan() const = 0;
  virtual const EngineOptions& options() const = 0;
};

}  // namespace restkv

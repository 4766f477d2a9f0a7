// What the executor keeps for one sequence from the moment it is queued: its cache settings and budget, its pages from
// admission on, and what sampling counts. Engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/cache/kv_cache.h"
#include "engine/eviction/budget.h"
#include "engine/eviction/policy.h"
#include "engine/eviction/trace.h"
#include "engine/prompt_prefix.h"
#include "engine/scratch_arena.h"
#include "engine/token_stream.h"

namespace restkv {

struct SequenceMemory {
  // Decided when the sequence is queued.
  CacheSettings settings;
  SequenceBudget budget;       // C, C_lh, stride; C_lh of shared layers change once, at their first selection
  PolicyRecipe recipe;         // of layers that score
  PolicyRecipe window_recipe;  // of windowed layers that hold their whole window: rows outside it go first
  CacheReservation reservation;
  int32_t prefill_len = 0;     // prompt tokens that prefill compresses
  std::vector<int32_t> probe;  // token ids behind them
  int32_t pin_stride = 0;      // pinned rows a head may have
  // Nothing is ever cut: whole pages of the prompt may be those of another choice.
  bool may_share = false;
  PrefixUse prefix;  // of the first choice of a request

  // From admission on.
  bool is_admitted = false;
  SequenceCache cache;
  std::vector<bool>
      was_cut;  // [L*K] a later cut leaves C_lh - stride, the first one the layer's stagger more
  std::vector<int32_t> pins, num_pins;  // [L, K, pin_stride] positions ascending, [L, K]
  std::vector<int32_t> summed_until;    // [L] h2o: queries at positions before are in the sums
  // Every token appends one row to every head; only a cut changes what follows from the number of tokens.
  int64_t num_gone = 0;                // rows that left, over all heads
  std::vector<int32_t> full_at;        // [L] tokens with which a head of the layer is full; INT32_MAX: never
  std::vector<int32_t> layer_longest;  // [L] longest head's kv_len minus the tokens
  int32_t longest = 0;                 // of all layers
  CacheCounters counters;
  std::unique_ptr<TraceWriter> trace;  // null: not asked for

  std::vector<uint64_t> prompt_tokens;        // [ceil(V/64)] bitmap; empty without penalties
  std::vector<uint16_t> counts;               // [V] counts in the answer; empty without penalties
  ScratchArena::Lease scratch;                // of a long prompt, while its prefill is in work
  std::vector<SampleResult> prompt_logprobs;  // [prompt_len - 1], of prompt tokens 1.. where asked for
};

}  // namespace restkv

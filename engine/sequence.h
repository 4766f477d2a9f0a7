// One choice of one request while the engine works on it. Plain numbers: what a backend needs for it (pages,
// scratch, penalty counts) hangs on `memory`, which only the executor looks into. Engine thread only.
//   queued -> (admit) -> prefill -> (compress_at) feed -> decode -> finished;  a cancel or an error leads from each state
//   to finished
#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/request.h"

namespace restkv {

enum class SequencePhase : uint8_t { kQueued, kPrefill, kFeed, kDecode, kFinished };

// Who comes first: the smaller value, then who arrived first.
struct ScheduleKey {
  double value = 0;
  uint64_t arrival = 0;
  auto operator<=>(const ScheduleKey&) const = default;
};

struct SequenceMemory;  // sequence_memory.h
struct SequenceMemoryDeleter {
  void operator()(SequenceMemory* memory) const;
};

struct Sequence {
  std::shared_ptr<RequestHandle> handle;
  int32_t choice = 0;
  SequencePhase phase = SequencePhase::kQueued;
  std::vector<int32_t> tokens;  // prompt, then the answer; capacity for all of it
  int32_t prompt_len = 0;
  // Decided when it is queued (Executor::prepare). [0, prefill_len) prefill | [prefill_len, prompt_len) fed through the
  // decode path, at most feed_rows in a step.
  int32_t prefill_len = 0;
  int32_t probe_len = 0;  // rows behind the prefill that only give queries
  int32_t feed_rows = 1;
  int32_t position = 0;  // tokens whose K and V are in the cache; drives RoPE, never a count of entries
  int32_t drawn_row =
      0;  // of its last draw in that step; where position == tokens.size() the host does not know the token yet
  CacheCounters cache;        // as of the last token that was delivered
  int32_t first_row = 0;      // prompt rows before it come from the prefix cache (of a group: the leader's)
  int32_t cached_tokens = 0;  // the same for every choice, for its counters
  bool in_units = false;      // the prompt runs in units and holds scratch
  int32_t unit_layer = 0;     // then: the layer in work
  int32_t unit_row = 0;       // and its first row that is not done; first_row from admission on
  // Prefill group: further sequences of the same prompt, each with its own cache settings, that this one's prefill
  // serves. They are admitted before its first row, take no part in a batch of their own until its last, and then each
  // draws its own first token.
  std::vector<Sequence*> followers;
  Sequence* leader = nullptr;  // of a follower, until then
  ScheduleKey key;             // set by the scheduler
  size_t index = 0;            // among the running ones
  Clock::time_point queued{}, admitted{}, first_token{}, last_token{};
  std::unique_ptr<SequenceMemory, SequenceMemoryDeleter> memory;  // from the queue to the end

  const Request& request() const { return handle->request; }
  int32_t prefill_rows() const { return prefill_len + probe_len; }
  int32_t num_generated() const { return static_cast<int32_t>(tokens.size()) - prompt_len; }
  // Entries the cache must have room for: the last token of the answer is never fed back.
  int32_t max_entries() const { return prompt_len + std::max(0, request().max_tokens - 1); }
  bool is_cancelled() const {
    return handle->cancelled.load(std::memory_order_relaxed) ||
           (handle->cancelled_choices.load(std::memory_order_relaxed) >> choice & 1u);
  }
};

}  // namespace restkv

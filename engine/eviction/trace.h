// What became of a sequence's cache, cut by cut: a compact record, written by the engine thread, read as an immutable
// snapshot. Per cut and KV head: which positions went (as gaps), f16 scores of the rows that stayed, and, where asked for,
// the rank bins of those that went. What a head holds follows: what it held, the tokens since, minus what went.
//   bytes of a cut: layer, tokens | per head: flags, rows that went, gaps | scores of the rows that stayed | bins
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "engine/eviction/cache_settings.h"

namespace restkv {

inline constexpr size_t kMaxTraceBytes = size_t{16} << 20;  // of one sequence
// A row that went: how good it was among all rows of its head, 0 the best.
inline constexpr int32_t kTraceBins = 16;

class CacheTrace {
 public:
  struct Head {
    std::vector<int32_t> evicted;  // positions, ascending
    std::vector<float> scores;     // of the rows that stayed, by position; empty: the policy has none
    std::vector<uint8_t> bins;     // [evicted] in [0, kTraceBins); empty: not asked for
    int32_t num_kept = 0;
  };
  struct Cut {
    int32_t layer = 0;
    int32_t tokens = 0;  // of the sequence, when it was cut
    std::vector<Head> heads;
  };

  int32_t num_layers = 0, num_kv_heads = 0, prompt_len = 0, budget = 0;
  PolicyKind policy = PolicyKind::kFull;
  bool is_truncated = false;  // later cuts did not fit kMaxTraceBytes

  size_t num_cuts() const { return cuts_.size(); }
  size_t num_bytes() const { return num_bytes_; }  // that it takes in memory
  Cut cut(size_t index) const;

 private:
  friend class TraceWriter;
  std::deque<std::vector<uint8_t>> cuts_;  // each as large as it is
  size_t num_bytes_ = 0;
};

// The memory that all traces share: those being written, and those that are kept.
class TraceRoom {
 public:
  virtual ~TraceRoom() = default;
  virtual bool take(size_t bytes) = 0;  // false: so many are not left
  virtual void give_back(size_t bytes) = 0;
};

// One for a sequence, on the engine thread.
class TraceWriter {
 public:
  // `room` (null: not bounded) outlives it. The trace ends early (is_truncated) where there is none left.
  TraceWriter(const CacheTrace& header, bool with_bins, TraceRoom* room = nullptr);
  ~TraceWriter();
  TraceWriter(const TraceWriter&) = delete;

  // A cut of one layer with `tokens` tokens. kept [K][..]: row indices before it, ascending; scores [K][rows before it], or
  // empty. What is not in `kept` went; nothing is written if nothing did.
  struct HeadRows {
    std::span<const int32_t> kept;
    std::span<const float> scores;
  };
  void add_cut(int32_t layer, int32_t tokens, std::span<const HeadRows> heads);
  bool has_ended() const { return trace_->is_truncated; }  // nothing more is written
  // What was written; its bytes are no longer taken from the room.
  std::shared_ptr<const CacheTrace> take();

 private:
  // Rows before the cut: what the head held, then the tokens since.
  std::vector<int32_t> rows_before(size_t head, int32_t layer, int32_t tokens) const;
  std::vector<uint8_t> ranks(const HeadRows& head) const;  // [rows] in bins
  bool reserve(size_t bytes);                              // taken from the room from now on
  void end();                                              // it does not fit any more

  std::shared_ptr<CacheTrace> trace_;
  bool with_bins_;
  TraceRoom* room_;
  size_t reserved_ = 0;                     // bytes
  std::vector<std::vector<int32_t>> held_;  // [L*K] positions after the head's last cut
  size_t num_held_ = 0;                     // of all heads
  std::vector<int32_t> tokens_;             // [L] at the layer's last cut
};

}  // namespace restkv

// Runs the five steps for (sequence, layer) pairs that are due: observe -> score -> smooth -> select -> compact, in prefill
// and in decode alike. It owns no memory: results of the steps live in the workspace it was given, between two calls
// nothing is remembered.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "engine/eviction/policy.h"
#include "kernels/backend.h"

namespace restkv {

// One (sequence, layer) to cut. Pointers are borrowed for the call.
struct Cut {
  const PolicyRecipe* recipe = nullptr;
  int32_t layer = 0;
  int32_t window = 0;       // of the layer's attention; 0: full
  bool is_prefill = false;  // pooled, and the probe counts
  RowSource rows = {};
  QuerySource queries = {};         // the recipe's: the newest, the last W, or those since the last cut
  QuerySource probe = {};           // its rows' queries; no positions: none
  ConstTensor projection = {};      // [H*D, D] of factor_projection, where the recipe uses it
  ConstTensor attention_sums = {};  // [K, N] h2o after prefill: what add_queries has summed
  EntrySums sums =
      {};  // h2o: sums before the cut (len) and where those of the survivors go; pages null: none
  const int32_t* keep = nullptr;  // [K] rows to keep at most
  ProtectedRows protect = {};     // protection_of, with dead_before and pins where the layer has them
  int32_t share_floor = 0;        // scope kShare: share_floor() of budget.h
  int32_t share_slack = 0;
  int32_t* share = nullptr;  // [K] out; null: the heads have their shares already
  HeadTables destination = {};
  int32_t max_new_pins = 0;
  int32_t* new_pins = nullptr;      // [K, max_new_pins] out: positions
  int32_t* num_new_pins = nullptr;  // [K] out
  int32_t* kept_len = nullptr;      // [K] out: kv_len from now on
  int32_t* num_dead = nullptr;      // [K] out or null
  int32_t* non_finite = nullptr;    // [K] out or null
  int64_t* moved = nullptr;         // [K] out or null: rows written
};

// What a cut decided, before its rows move: for traces and tests. kept [K, cap] row indices (kept_len of them), scores of
// the first score array after smoothing [K, >= N].
using CutObserver = std::function<void(const Cut& cut, ConstTensor kept, ConstTensor scores)>;

class Cutter {
 public:
  Cutter(Backend& backend, const AttentionShape& shape, const PagedCacheView& cache, Tensor workspace)
      : backend_(backend), shape_(shape), cache_(cache), workspace_(workspace) {}

  // Bytes that one cut of `rows` rows with `queries` queries and `probe` probe queries takes; the workspace must hold the
  // largest, and holding several lets them run together.
  static int64_t workspace_bytes(const PolicyRecipe& recipe, const AttentionShape& shape, int64_t rows,
                                 int64_t queries, int64_t probe);

  // Bytes of host arrays that an op takes at most for a cut (Backend::max_op_bytes).
  static int64_t host_bytes(const Cut& cut, int32_t num_kv_heads);

  // Cuts are independent: neighbours change no bit of a result.
  void run(std::span<const Cut> cuts);
  // h2o's pass over a chunk of a prompt: adds the attention of `queries` to sums [K, >= N].
  void add_queries(const RowSource& rows, const QuerySource& queries, int32_t window, Tensor sums);

  void set_observer(CutObserver observer) { observer_ = std::move(observer); }

 private:
  void run_group(std::span<const Cut> cuts);

  Backend& backend_;
  AttentionShape shape_;
  PagedCacheView cache_;
  Tensor workspace_;  // [1, bytes] u8
  CutObserver observer_;
  // Reused: a step allocates nothing once it has seen its largest batch.
  std::vector<ObserveItem> observes_, probe_observes_;
  std::vector<ScoreItem> scores_, probe_scores_;
  std::vector<SmoothItem> smooths_, probe_smooths_;
  std::vector<SelectItem> selects_;
  std::vector<CompactItem> compacts_;
  std::vector<int32_t> drift_rows_;  // [cuts, K]
};

// What a recipe protects: sinks and recent rows, and the prompt's beginning and end where they are pinned.
ProtectedRows protection_of(const PolicyRecipe& recipe, const CacheSettings& settings, int64_t prompt_len,
                            bool is_windowed_layer);

}  // namespace restkv

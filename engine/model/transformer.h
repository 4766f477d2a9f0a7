// One transformer for all families, described by ModelConfig: runs one layer over the rows of a step or of a
// prefill unit through the op interface. It owns no sequence: the caller says where K and V go and what each
// row attends to.
//   x [T, M] -> norm -> q, k, v -> (q/k norm) -> rope, store -> attention -> o -> (norm) + x -> norm -> glu
//   -> (norm) + x
#pragma once

#include <cstdint>
#include <span>

#include "engine/model/weights.h"
#include "kernels/backend.h"
#include "kernels/base/arena.h"

namespace restkv {

// What the rows of one call are, and where each segment's K and V live. Segments of one layer.
struct LayerRows {
  Tensor residual;                     // [T, M], updated in place
  std::span<const int32_t> positions;  // [T]
  std::span<const StoreSegment> stores;
  std::span<const PrefillSegment> prefills;
  std::span<const DecodeSegment> decodes;
  PagedCacheView cache;
};

class Transformer {
 public:
  // Buffers for calls of up to `max_rows` rows and `max_logit_rows` rows of logits come from `arena`. `weights`: those of
  // the config, placed for the backend; both live as long as this does.
  Transformer(const ModelConfig& config, const WeightViews& weights, Backend& backend, Arena& arena,
              int64_t max_rows, int64_t max_logit_rows);

  // residual[t] = embedding of ids[t]; ~i: of the i-th of `drawn`.
  void embed(std::span<const int32_t> ids, ConstTensor drawn, Tensor residual);
  // Rotary tables for the rows of the calls that follow.
  void prepare(std::span<const int32_t> positions);
  // Layer `layer` over rows prepared before. `after_store` runs when K and V are stored and before attention
  // reads them. The residual lacks the layer's last block until the next layer has begun, or settle().
  template <class AfterStore>
  void run_layer(int64_t layer, const LayerRows& rows, AfterStore&& after_store) {
    project(layer, rows);
    after_store();
    attend(layer, rows);
  }
  // What the last run_layer owes the residual.
  void settle(Tensor residual);
  // Attention of rows of the layer in work over their pages, from `after_store`: for rows that need more than one call.
  void attend_pages(int64_t layer, std::span<const int32_t> positions,
                    std::span<const DecodeSegment> segments, const PagedCacheView& cache);
  // Rotated queries [count, H*D] of rows [begin, begin + count) of the last run_layer.
  ConstTensor queries(int64_t begin, int64_t count) const { return q_.row_range(begin, count); }
  // Logits [n, V] of the given rows of `residual`; n <= max_logit_rows. Valid until the next call.
  Tensor logits(ConstTensor residual, std::span<const int32_t> rows);

  int64_t max_rows() const { return max_rows_; }
  int64_t max_logit_rows() const { return max_logit_rows_; }
  const ModelConfig& config() const { return config_; }

 private:
  void project(int64_t layer, const LayerRows& rows);
  void attend(int64_t layer, const LayerRows& rows);
  AttentionShape shape_of(int64_t layer) const {
    return attention_shape(config_, config_.layers[static_cast<size_t>(layer)].window);
  }
  Tensor first_rows(const Tensor& buffer, int64_t count) const { return buffer.row_range(0, count); }

  const ModelConfig& config_;
  const WeightViews& weights_;
  Backend& backend_;
  int64_t max_rows_;
  int64_t max_logit_rows_;
  RopeFrequencies rope_, rope_local_;
  bool has_local_rope_ = false;
  bool owes_delta_ = false;               // delta_ of the last layer has not joined the residual
  Tensor rope_table_, rope_local_table_;  // [R, D]
  Tensor hidden_;                         // [R, M] normed input of a block
  Tensor delta_;                          // [R, M] a block's output before it joins the residual
  Tensor attended_;                       // [R, H*D]
  Tensor q_, k_, v_;   // [R, H*D], [R, K*D], [R, K*D]: columns of one buffer, one product's result
  Tensor gate_, up_;   // [R, F]: columns of one buffer
  Tensor logit_rows_;  // [n, M]
  Tensor logits_;      // [n, V]
};

}  // namespace restkv

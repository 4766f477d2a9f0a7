#include "engine/eviction/projections.h"

#include <utility>

namespace restkv {

Projections::Projections(Backend& backend, std::vector<ConstTensor> output_weights, int64_t num_heads,
                         int64_t head_dim)
    : backend_(backend),
      output_weights_(std::move(output_weights)),
      num_heads_(num_heads),
      head_dim_(head_dim),
      memory_(
          backend.allocate_for("the layers' projections",
                               bytes(static_cast<int64_t>(output_weights_.size()), num_heads_, head_dim_))),
      is_there_(output_weights_.size(), false) {}

ConstTensor Projections::layer(int64_t layer) {
  const auto index = static_cast<size_t>(layer);
  const int64_t layer_bytes = bytes(1, num_heads_, head_dim_);
  const Tensor r =
      dense(memory_->data() + layer * layer_bytes, DType::kF32, num_heads_ * head_dim_, head_dim_);
  if (!is_there_[index]) {
    backend_.factor_projection(
        {.weight = output_weights_[index], .num_heads = static_cast<int32_t>(num_heads_), .out = r});
    is_there_[index] = true;
  }
  return r;
}

}  // namespace restkv

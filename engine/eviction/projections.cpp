// One thread, layers in order, stopped between two heads.
#include "engine/eviction/projections.h"

#include "engine/eviction/projection.h"

namespace restkv {

Projections::Projections(Backend& backend, std::vector<ConstTensor> output_weights, int64_t num_heads,
                         int64_t head_dim)
    : output_weights_(std::move(output_weights)),
      num_heads_(num_heads),
      head_dim_(head_dim),
      memory_(backend.allocate(bytes(static_cast<int64_t>(output_weights_.size()), num_heads, head_dim))),
      thread_([this] { run(); }) {}

Projections::~Projections() {
  is_stopping_.store(true);
  thread_.join();
}

void Projections::run() {
  CHECK(memory_ != nullptr) << "no address space for the projections";
  const int64_t per_head = head_dim_ * head_dim_;
  auto* out = reinterpret_cast<float*>(memory_->data());
  for (const ConstTensor& weight : output_weights_) {
    for (int64_t head = 0; head < num_heads_; ++head, out += per_head) {
      if (is_stopping_.load(std::memory_order_relaxed)) return;
      project_output_head(weight, head, head_dim_, out);
    }
    {
      const std::lock_guard lock(mutex_);
      ++num_done_;
    }
    done_.notify_all();
  }
}

ConstTensor Projections::layer(int64_t layer) {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return num_done_ > layer; });
  const auto* data =
      reinterpret_cast<const float*>(memory_->data()) + layer * num_heads_ * head_dim_ * head_dim_;
  return dense(static_cast<const void*>(data), DType::kF32, num_heads_ * head_dim_, head_dim_);
}

}  // namespace restkv

// One thread, layers in order, stopped between two heads.
#include "engine/eviction/projections.h"

#include "engine/eviction/projection.h"

namespace restkv {
namespace {

std::unique_ptr<DeviceBuffer> allocate(Backend& backend, int64_t bytes) {
  std::unique_ptr<DeviceBuffer> memory = backend.allocate(bytes);
  CHECK(memory != nullptr) << "no memory for the projections: " << bytes << " bytes";
  return memory;
}

}  // namespace

Projections::Projections(Backend& backend, std::vector<ConstTensor> output_weights, int64_t num_heads,
                         int64_t head_dim)
    : output_weights_(std::move(output_weights)),
      num_heads_(num_heads),
      head_dim_(head_dim),
      backend_(backend),
      memory_(allocate(backend, bytes(static_cast<int64_t>(output_weights_.size()), num_heads, head_dim))),
      computed_(backend.is_host_memory() ? 0 : static_cast<size_t>(memory_->bytes() / 4)),
      is_on_device_(output_weights_.size(), backend.is_host_memory()),
      thread_([this] { run(); }) {}

Projections::~Projections() {
  is_stopping_.store(true);
  thread_.join();
}

void Projections::run() {
  const int64_t per_head = head_dim_ * head_dim_;
  auto* out = computed_.empty() ? reinterpret_cast<float*>(memory_->data()) : computed_.data();
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
  lock.unlock();
  const int64_t first = layer * num_heads_ * head_dim_ * head_dim_;
  const Tensor placed = dense(memory_->data() + first * 4, DType::kF32, num_heads_ * head_dim_, head_dim_);
  if (!is_on_device_[static_cast<size_t>(layer)]) {
    backend_.write(placed, computed_.data() + first);
    is_on_device_[static_cast<size_t>(layer)] = true;
  }
  return placed;
}

}  // namespace restkv

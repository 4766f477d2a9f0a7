// R_g of every layer, computed in the background from load on: the first selection of a layer waits for it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/backend.h"

namespace restkv {

class Projections {
 public:
  // output_weights [L]: W_o [M, H*D] of each layer; they must live as long as this does.
  Projections(Backend& backend, std::vector<ConstTensor> output_weights, int64_t num_heads, int64_t head_dim);
  ~Projections();

  static int64_t bytes(int64_t num_layers, int64_t num_heads, int64_t head_dim) {
    return num_layers * num_heads * head_dim * head_dim * 4;
  }
  // [H*D, D] f32, R_g transposed, head below head. Waits until the layer is there.
  ConstTensor layer(int64_t layer);

 private:
  void run();

  const std::vector<ConstTensor> output_weights_;
  const int64_t num_heads_, head_dim_;
  Backend& backend_;
  std::unique_ptr<DeviceBuffer> memory_;  // [L, H*D, D]
  std::vector<float> computed_;           // the same on the host, where memory_ is not the host's
  std::mutex mutex_;
  std::condition_variable done_;
  int64_t num_done_ = 0;            // layers; mutex_
  std::vector<bool> is_on_device_;  // [L] of layers that were copied; layer() alone
  std::atomic<bool> is_stopping_{false};
  std::thread thread_;
};

}  // namespace restkv

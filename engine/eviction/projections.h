// R_g of every layer, computed where a selection first needs it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/backend.h"

namespace restkv {

class Projections {
 public:
  // output_weights [L]: W_o [M, H*D] of each layer where the backend's ops find it; they must live as long as this does.
  Projections(Backend& backend, std::vector<ConstTensor> output_weights, int64_t num_heads, int64_t head_dim);

  static int64_t bytes(int64_t num_layers, int64_t num_heads, int64_t head_dim) {
    return num_layers * num_heads * head_dim * head_dim * 4;
  }
  // [H*D, D] f32, R_g transposed, head below head. The first call for a layer enqueues the op that fills it.
  ConstTensor layer(int64_t layer);

 private:
  Backend& backend_;
  const std::vector<ConstTensor> output_weights_;
  const int64_t num_heads_, head_dim_;
  const std::unique_ptr<DeviceBuffer> memory_;  // [L, H*D, D]
  std::vector<bool> is_there_;                  // [L]
};

}  // namespace restkv

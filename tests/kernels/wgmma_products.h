// A warpgroup's two products as prefill attention makes them, alone, on a card and on the emulator: q k^T from shared memory,
// w v with w in registers.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/tensor.h"

namespace restkv {

struct WgmmaProducts {
  DType dtype;                // kF16, kBF16: q, k, w, v are rounded to it
  int32_t dim;                // D: 64, 96, 128, 256
  std::vector<float> q;       // [64, D]
  std::vector<float> k, v;    // [keys, D]
  std::vector<float> w;       // [64, keys]
  std::vector<float> s, out;  // [64, keys], [64, D]: the results

  int32_t num_keys() const { return dim <= 128 ? 128 : 64; }
};

// Each by its compiler; false: the card has no wgmma.
namespace cuda {
bool run_wgmma_products(WgmmaProducts& products);
}
namespace cuda_emulated {
bool run_wgmma_products(WgmmaProducts& products);
}

}  // namespace restkv

// The launches of a step, kept to reach the device as one: kernels with their params struct, and products that the vendor's
// library computes. Two lists are equal when every launch is, to the byte: then the graph made of one does the other's work,
// because all that differs between two steps lies in memory (context.h: staged arrays have the same places again).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "kernels/base/tensor.h"
#include "kernels/cuda/device_check.h"
#include "kernels/cuda/launch_types.h"

namespace restkv::cuda {

// out[t, n] = sum over c of x[t, c] * weight[n, c] + bias[n], row-major with strides in elements.
struct Product {
  const void* x = nullptr;       // [rows, cols]
  const void* weight = nullptr;  // [num, cols]
  void* out = nullptr;           // [rows, num]
  const void* bias = nullptr;    // [num] of `type`, may be null
  int64_t rows = 0, cols = 0, num = 0;
  int64_t x_stride = 0, weight_stride = 0, out_stride = 0;
  DType type = DType::kBF16;  // of x and weight: kBF16, kF16
  DType out_type = DType::kBF16;
  bool operator==(const Product&) const = default;
};

struct KernelLaunch {
  const void* kernel = nullptr;
  Grid grid;
  uint32_t block = 0, smem = 0;
  size_t params = 0, params_bytes = 0;                                    // in the list's bytes
  void (*run)(const KernelLaunch& launch, const void* params) = nullptr;  // starts it now; the emulator's way
  bool operator==(const KernelLaunch&) const = default;
};

// Starts a kernel on a card, now (card.cpp).
void start_kernel(const KernelLaunch& launch, const void* params, const Stream& stream);

class LaunchList {
 public:
  struct Item {
    bool is_product = false;
    KernelLaunch kernel;
    Product product;
    RunningOp op;  // that asked for it, for messages
    bool operator==(const Item& other) const {
      return is_product == other.is_product && kernel == other.kernel && product == other.product;
    }
  };

  template <class Params>
  void add(const void* kernel, Grid grid, uint32_t block, uint32_t smem, const Params& params,
           void (*run)(const KernelLaunch&, const void*)) {
    static_assert(std::is_trivially_copyable_v<Params>);
    Params clean = params;
    // Equal values are equal bytes. gcc 12 mistakes the place of padding that follows an array: params structs have none there.
    __builtin_clear_padding(&clean);
    const size_t at = (bytes_.size() + 15) / 16 * 16;
    bytes_.resize(at + sizeof clean);
    std::memcpy(bytes_.data() + at, &clean, sizeof clean);
    Item& item = items_.emplace_back();
    item.op = running_op();
    item.kernel = {kernel, grid, block, smem, at, sizeof clean, run};
  }
  void add(const Product& product) {
    Item& item = items_.emplace_back();
    item.op = running_op();
    item.is_product = true;
    item.product = product;
  }
  void clear() {
    items_.clear();
    bytes_.clear();
  }
  bool empty() const { return items_.empty(); }
  const std::vector<Item>& items() const { return items_; }
  const std::byte* params(const KernelLaunch& launch) const { return bytes_.data() + launch.params; }
  uint64_t hash() const;
  bool operator==(const LaunchList&) const = default;

 private:
  std::vector<Item> items_;
  std::vector<std::byte> bytes_;  // params structs, 16-byte aligned
};

}  // namespace restkv::cuda

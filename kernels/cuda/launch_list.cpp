#include "kernels/cuda/launch_list.h"

namespace restkv::cuda {
namespace {

uint64_t mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15ull;
  return hash ^ hash >> 32;
}

}  // namespace

uint64_t LaunchList::hash() const {
  uint64_t hash = mix(items_.size(), bytes_.size());
  for (const Item& item : items_) {
    if (item.is_product) {
      hash = mix(hash, reinterpret_cast<uintptr_t>(item.product.out));
      hash = mix(hash, static_cast<uint64_t>(item.product.rows));
    } else {
      hash = mix(hash, reinterpret_cast<uintptr_t>(item.kernel.kernel));
      hash = mix(hash, uint64_t{item.kernel.grid.x} << 32 | item.kernel.grid.y << 16 | item.kernel.grid.z);
    }
  }
  size_t at = 0;
  for (; at + 8 <= bytes_.size(); at += 8) {
    uint64_t word;
    std::memcpy(&word, bytes_.data() + at, 8);
    hash = mix(hash, word);
  }
  for (; at < bytes_.size(); ++at) hash = mix(hash, static_cast<uint64_t>(bytes_[at]));
  return hash;
}

}  // namespace restkv::cuda

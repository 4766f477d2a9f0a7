// What the kernel tests share: the backends as columns of the table, seeded random inputs, and the comparison (places of
// NaN and infinity first, then the error relative to the row's size, then the cosine).
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/float16.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/card.h"
#include "tests/emulator/emulated_backend.h"
#include "tests/emulator/host_copies.h"

namespace restkv {

struct BackendCase {
  std::string name;
  std::function<std::unique_ptr<Backend>(int threads)> make;
  bool is_device = false;    // kernels of the card, there or emulated: an op's memory travels there and back
  bool is_emulated = false;  // kernels of the card, a thousand times slower
  bool is_row_independent = true;  // a row's bits do not depend on how many stand beside it
  bool is_exact = true;            // sums in the CPU's fixed order: decode equals prefill to the bit
  bool has_bf16_cache = false;
  bool is_half_only = false;      // what it does in f32 is another column's
  int32_t head_dim_multiple = 1;  // of the head dims it takes
};

inline constexpr int64_t kEmulatedBytes = int64_t{64}
                                          << 30;  // address space; only what is touched becomes memory

// A card's backend in f32, as a column; the process has opened it before. As small as the emulated one: each test opens its own, and
// page-locked memory takes long to get.
inline std::unique_ptr<Backend> open_test_card(bool is_deterministic, DType type = DType::kF32) {
  constexpr int64_t kMiB = int64_t{1} << 20;
  auto card = cuda::open_card(0, {.type = type,
                                  .workspace_bytes = 32 * kMiB,
                                  .staging_bytes = 8 * kMiB,
                                  .is_deterministic = is_deterministic});
  CHECK(card.ok()) << card.status().message();
  return with_host_memory(std::move(*card), /*keeps_memory=*/true);
}

// Every backend present: each processor level of the CPU is a column (RESTKV_CPU_TARGET names a single one); `emulated` is
// the CUDA backend with all its kernels on the emulator, in f32; `cuda` the same on a card, where there is one. The columns
// of a device take and give host memory all the same (host_copies.h).
inline const std::vector<BackendCase>& backend_cases() {
  static const std::vector<BackendCase> cases = [] {
    std::vector<BackendCase> list;
    const char* only = std::getenv("RESTKV_CPU_TARGET");
    for (const std::string_view target : cpu_targets()) {
      const std::string name(target);
      if (only != nullptr && name != only) continue;
      list.push_back({"cpu_" + name, [name](int threads) { return make_cpu_backend(threads, name); }});
    }
    if (only == nullptr) {
      const BackendCase emulated{
          .name = "emulated",
          .make =
              [](int) { return with_host_memory(make_emulated_backend({.memory_bytes = kEmulatedBytes})); },
          .is_device = true,
          .is_emulated = true,
          .is_row_independent = false,
          .is_exact = false,
          .has_bf16_cache = true,
          .head_dim_multiple = 8};
      list.push_back(emulated);
      list.push_back(emulated);
      list.back().name = "emulated_deterministic";
      list.back().make = [](int) {
        return with_host_memory(
            make_emulated_backend({.is_deterministic = true, .memory_bytes = kEmulatedBytes}));
      };
      list.back().is_row_independent = true;
      if (cuda::count_cards().ok()) {
        for (const bool is_deterministic : {false, true}) {
          BackendCase card = emulated;
          card.name = is_deterministic ? "cuda_deterministic" : "cuda";
          card.make = [is_deterministic](int) { return open_test_card(is_deterministic); };
          card.is_emulated = false;
          card.is_row_independent = is_deterministic;
          list.push_back(card);
        }
      }
    }
    return list;
  }();
  return cases;
}

// The columns of attention and eviction, which `deterministic` does not change.
inline const std::vector<BackendCase>& device_op_cases() {
  static const std::vector<BackendCase> cases = [] {
    std::vector<BackendCase> list = backend_cases();
    std::erase_if(list, [](const BackendCase& c) { return c.name.ends_with("_deterministic"); });
    return list;
  }();
  return cases;
}

inline constexpr DType kWeightTypes[] = {DType::kF32,  DType::kF16,    DType::kBF16,  DType::kQ4_0,
                                         DType::kQ4_1, DType::kQ5_0,   DType::kQ5_1,  DType::kQ8_0,
                                         DType::kQ2_K, DType::kQ3_K,   DType::kQ4_K,  DType::kQ5_K,
                                         DType::kQ6_K, DType::kIQ4_NL, DType::kIQ4_XS};

// A weight where the backend's ops find it.
class PlacedWeight {
 public:
  PlacedWeight(Backend& backend, const ConstTensor& weight) {
    Arena count = Arena::counting();
    tensor_ = backend.place_weight(weight, /*is_matrix=*/true, count);
    if (count.used() == 0) return;
    memory_ = backend.allocate(count.used());
    Arena arena(memory_->data(), memory_->bytes());
    tensor_ = backend.place_weight(weight, /*is_matrix=*/true, arena);
  }
  const ConstTensor& tensor() const { return tensor_; }

 private:
  std::unique_ptr<DeviceBuffer> memory_;
  ConstTensor tensor_;
};

using Floats = std::vector<float>;

inline Floats random_floats(int64_t n, uint64_t seed, float size = 1.0f) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, size);
  Floats values(static_cast<size_t>(n));
  for (float& x : values) x = normal(random);
  return values;
}

// [rows, cols] of any weight type: random bits, with the blocks' own scales made small and finite.
struct Weights {
  std::vector<std::byte> bytes;
  ConstTensor tensor;

  Weights(DType dtype, int64_t rows, int64_t cols, uint64_t seed) {
    const DTypeInfo& info = dtype_info(dtype);
    bytes.resize(static_cast<size_t>(bytes_of(dtype, cols) * rows));
    std::mt19937_64 random(seed);
    for (std::byte& b : bytes) b = static_cast<std::byte>(random());
    std::vector<int64_t> halves;  // offsets of f16 scales in a block
    switch (dtype) {
      case DType::kQ4_1:
      case DType::kQ5_1:
      case DType::kQ4_K:
      case DType::kQ5_K: halves = {0, 2}; break;
      case DType::kQ2_K: halves = {80, 82}; break;
      case DType::kQ3_K: halves = {108}; break;
      case DType::kQ6_K: halves = {208}; break;
      default: halves = {0}; break;
    }
    const int64_t blocks = static_cast<int64_t>(bytes.size()) / info.block_bytes;
    std::normal_distribution<float> normal(0.0f, 0.02f);
    for (int64_t b = 0; b < blocks; ++b) {
      std::byte* block = bytes.data() + b * info.block_bytes;
      if (dtype == DType::kF32) {
        const float value = normal(random);
        std::memcpy(block, &value, 4);
        continue;
      }
      for (const int64_t offset : halves) {
        const uint16_t value =
            dtype == DType::kBF16 ? f32_to_bf16(normal(random)) : f32_to_f16(normal(random));
        std::memcpy(block + offset, &value, 2);
      }
    }
    tensor = dense(bytes.data(), dtype, rows, cols);
  }
};

inline ConstTensor view(const Floats& values, int64_t rows) {
  return dense(values.data(), DType::kF32, rows, static_cast<int64_t>(values.size()) / rows);
}
inline Tensor view(Floats& values, int64_t rows) {
  return dense(values.data(), DType::kF32, rows, static_cast<int64_t>(values.size()) / rows);
}

// actual [n] against expected [n]: NaN and infinities in the same places, every error at most tolerance times the root
// mean square of the expected values (at least 1e-30), cosine at least 1 - tolerance.
inline void expect_close(const float* actual, const std::vector<double>& expected, double tolerance,
                         const std::string& what) {
  double square = 0.0, actual_square = 0.0, product = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double a = static_cast<double>(actual[i]), e = expected[i];
    ASSERT_EQ(std::isnan(a), std::isnan(e)) << what << " [" << i << "]: " << a << ", expected " << e;
    ASSERT_EQ(std::isinf(a), std::isinf(e)) << what << " [" << i << "]: " << a << ", expected " << e;
    if (!std::isfinite(e)) {
      ASSERT_EQ(a > 0, e > 0) << what << " [" << i << "]";  // the infinity's sign; false for NaN
      continue;
    }
    square += e * e;
    actual_square += a * a;
    product += a * e;
  }
  const double size =
      std::max(std::sqrt(square / static_cast<double>(std::max<size_t>(1, expected.size()))), 1e-30);
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!std::isfinite(expected[i])) continue;
    ASSERT_LE(std::abs(static_cast<double>(actual[i]) - expected[i]), tolerance * size)
        << what << " [" << i << "]: " << actual[i] << ", expected " << expected[i];
  }
  if (square > 0.0) {
    ASSERT_GE(product / std::sqrt(square * actual_square), 1.0 - tolerance) << what << ": cosine";
  }
}

inline bool same_bits(const float* a, const float* b, int64_t n) {
  return std::memcmp(a, b, static_cast<size_t>(n) * 4) == 0;
}

// Pages of all heads of one sequence in one layer: head h, entry j lies in page permuted(h * stride + j / S). Free slots
// hold NaN, so that reading one shows.
struct TestCache {
  PagedCacheView view;
  std::vector<std::byte> bytes;
  std::vector<int32_t> pages;   // [K, stride]
  std::vector<int32_t> kv_len;  // [K]
  int32_t stride;

  // slots 0: the backend's own.
  TestCache(Backend& backend, DType dtype, int32_t num_kv_heads, int32_t head_dim, int32_t capacity,
            int32_t slots = 0) {
    view.dtype = dtype;
    view.slots = slots > 0 ? slots : backend.page_slots();
    view.head_dim = head_dim;
    view.page_bytes = PagedCacheView::bytes_per_page(dtype, view.slots, head_dim);
    stride = (capacity + view.slots - 1) / view.slots;
    const int32_t num_pages = num_kv_heads * stride;
    bytes.assign(static_cast<size_t>(view.page_bytes * num_pages), std::byte{0xFF});  // NaN in f32 and f16
    view.pool = bytes.data();
    for (int32_t i = 0; i < num_pages; ++i) pages.push_back(i);
    std::mt19937 random(7);
    std::shuffle(pages.begin(), pages.end(), random);
    kv_len.assign(static_cast<size_t>(num_kv_heads), 0);
  }
  HeadTables tables() const { return {pages.data(), stride, kv_len.data()}; }

  // Entries 0.. of all heads: keys and values [n, K*D] in the cache's type.
  void fill(const ConstTensor& keys, const ConstTensor& values, std::span<const int32_t> positions) {
    const int64_t row_bytes = bytes_of(view.dtype, view.head_dim);
    for (size_t h = 0; h < kv_len.size(); ++h) {
      for (int64_t j = 0; j < keys.rows; ++j) {
        const int32_t page = pages[h * static_cast<size_t>(stride) + static_cast<size_t>(j / view.slots)];
        const int64_t slot = j % view.slots, column = static_cast<int64_t>(h) * row_bytes;
        std::memcpy(view.keys(page) + slot * row_bytes, static_cast<const std::byte*>(keys.row(j)) + column,
                    static_cast<size_t>(row_bytes));
        std::memcpy(view.values(page) + slot * row_bytes,
                    static_cast<const std::byte*>(values.row(j)) + column, static_cast<size_t>(row_bytes));
        view.positions(page)[slot] = positions[static_cast<size_t>(j)];
      }
    }
  }
};

// The pages of several caches as one pool, for a batch.
struct SharedPool {
  PagedCacheView view;
  std::vector<std::byte> bytes;

  explicit SharedPool(const PagedCacheView& like) : view(like) {}
  // Copies the cache's pages behind those taken before and numbers its tables anew.
  void take(TestCache& cache) {
    const auto first = static_cast<int32_t>(static_cast<int64_t>(bytes.size()) / view.page_bytes);
    bytes.insert(bytes.end(), cache.bytes.begin(), cache.bytes.end());
    for (int32_t& page : cache.pages) page += first;
    view.pool = bytes.data();
  }
};

}  // namespace restkv

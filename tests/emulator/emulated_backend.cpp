// Compiled with the namespace of the emulated kernels (CMakeLists.txt). New memory is poisoned as on a card, where it holds
// what was there before.
#include "emulator/emulated_backend.h"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "emulator/emulator.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_check.h"

namespace restkv::cuda {
namespace {

constexpr int kPoison = 0xFF;

class EmulatedRuntime final : public Runtime {
 public:
  explicit EmulatedRuntime(int64_t memory_bytes) : left_(memory_bytes) {
    limits_.name = "emulated";
    limits_.num_multiprocessors = 4;
    limits_.max_shared_bytes = static_cast<int32_t>(emulator::options().max_shared_bytes);
    limits_.memory_bytes = memory_bytes;
  }

  const DeviceLimits& limits() const override { return limits_; }
  Stream stream() const override { return nullptr; }
  int64_t free_bytes() override {
    CUDA_CHECK(emulator::next_call_error());
    return left_;
  }

  std::byte* allocate(int64_t bytes) override {
    CUDA_CHECK(emulator::next_call_error());
    const std::lock_guard lock(mutex_);
    if (bytes > left_) return nullptr;
    auto* memory =
        static_cast<std::byte*>(std::aligned_alloc(256, static_cast<size_t>((bytes + 511) / 256 * 256)));
    if (memory == nullptr) return nullptr;
    if (bytes <= kPoisonedBytes) std::memset(memory, kPoison, static_cast<size_t>(bytes));
    left_ -= bytes;
    sizes_[memory] = bytes;
    return memory;
  }
  void release(std::byte* memory) override {
    const std::lock_guard lock(mutex_);
    const auto size = sizes_.find(memory);
    if (size == sizes_.end()) return;
    left_ += size->second;
    sizes_.erase(size);
    std::free(memory);
  }
  std::byte* allocate_host(int64_t bytes) override {
    CUDA_CHECK(emulator::next_call_error());
    return static_cast<std::byte*>(std::malloc(static_cast<size_t>(bytes)));
  }
  void release_host(std::byte* memory) override { std::free(memory); }

  void copy_to_device(void* to, const void* from, int64_t bytes) override {
    CUDA_CHECK(emulator::next_call_error());
    std::memcpy(to, from, static_cast<size_t>(bytes));
  }
  void copy_to_host(void* to, const void* from, int64_t bytes) override {
    CUDA_CHECK(emulator::next_call_error());
    std::memcpy(to, from, static_cast<size_t>(bytes));
  }
  void fill_zero(void* to, int64_t bytes) override {
    CUDA_CHECK(emulator::next_call_error());
    std::memset(to, 0, static_cast<size_t>(bytes));
  }
  void synchronize() override { CUDA_CHECK(emulator::next_call_error()); }

 private:
  static constexpr int64_t kPoisonedBytes = int64_t{256} << 20;  // larger pieces stay untouched address space

  DeviceLimits limits_;
  std::mutex mutex_;
  int64_t left_;
  std::unordered_map<std::byte*, int64_t> sizes_;
};

}  // namespace
}  // namespace restkv::cuda

namespace restkv {

std::unique_ptr<Backend> make_emulated_backend(const EmulatedOptions& options) {
  return cuda::make_backend(std::make_unique<cuda::EmulatedRuntime>(options.memory_bytes),
                            {.type = options.type,
                             .page_slots = options.page_slots,
                             .workspace_bytes = options.workspace_bytes,
                             .is_deterministic = options.is_deterministic});
}

}  // namespace restkv

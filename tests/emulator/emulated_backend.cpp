// Compiled with the namespace of the emulated kernels (CMakeLists.txt). New memory is poisoned as on a card, where it holds
// what was there before.
#include "emulator/emulated_backend.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "emulator/device_queue.h"
#include "emulator/emulator.h"
#include "kernels/base/check.h"
#include "kernels/base/device_error.h"
#include "kernels/base/float16.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_check.h"

namespace restkv::cuda {
namespace {

constexpr int kPoison = 0xFF;

class EmulatedGraph final : public LaunchGraph {
 public:
  explicit EmulatedGraph(const LaunchList& launches) : list(std::make_shared<const LaunchList>(launches)) {}
  const std::shared_ptr<const LaunchList> list;  // a launch in flight needs it after the graph is gone
};

float value_at(const void* data, DType type, int64_t i) {
  if (type == DType::kF32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  return type == DType::kBF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

class EmulatedRuntime final : public Runtime {
 public:
  explicit EmulatedRuntime(const EmulatedOptions& options)
      : queue_(emulator::options().timing, emulator::options().timing_seed),
        left_(options.memory_bytes),
        has_library_(options.has_library),
        refuses_graphs_(options.refuses_graphs),
        refuses_launches_(options.refuses_launches),
        counts_(options.counts) {
    const int64_t memory_bytes = options.memory_bytes;
    limits_.name = "emulated";
    limits_.num_multiprocessors = options.num_multiprocessors;
    limits_.max_shared_bytes = options.max_shared_bytes > 0
                                   ? options.max_shared_bytes
                                   : static_cast<int32_t>(emulator::max_shared_bytes(options.card));
    limits_.has_wgmma = options.card == emulator::Card::kSm90;
    limits_.memory_bytes = memory_bytes;
  }

  const DeviceLimits& limits() const override { return limits_; }
  void bind() override {
    emulator::options().max_shared_bytes = static_cast<uint32_t>(limits_.max_shared_bytes);
    emulator::options().has_wgmma = limits_.has_wgmma;
  }
  // Asked for before each launch: those that wait for their turn gather in a list.
  Stream stream() const override {
    if (!queue_.is_lazy()) return nullptr;
    CUDA_CHECK(emulator::next_call_error());
    return {nullptr, &launches_};
  }
  int64_t free_bytes() override {
    CUDA_CHECK(emulator::next_call_error());
    return left_;
  }

  std::byte* allocate(int64_t bytes) override {
    CUDA_CHECK(emulator::next_call_error());
    const std::lock_guard lock(mutex_);
    if (bytes > left_) return nullptr;
    const bool is_large = bytes > kPoisonedBytes;
    auto* memory = is_large ? address_space(bytes)
                            : static_cast<std::byte*>(
                                  std::aligned_alloc(256, static_cast<size_t>((bytes + 511) / 256 * 256)));
    if (memory == nullptr) return nullptr;
    if (is_large) {
      fresh_.insert(memory);
    } else {
      std::memset(memory, kPoison, static_cast<size_t>(bytes));
      const uint32_t word = emulator::options().unwritten;
      for (int64_t i = 0; word != 0 && i + 4 <= bytes; i += 4) std::memcpy(memory + i, &word, 4);
    }
    left_ -= bytes;
    sizes_[memory] = bytes;
    return memory;
  }
  void release(std::byte* memory) override {
    finish();
    const std::lock_guard lock(mutex_);
    const auto size = sizes_.find(memory);
    if (size == sizes_.end()) return;
    left_ += size->second;
    const bool is_large = size->second > kPoisonedBytes;
    if (is_large) {
      munmap(memory, static_cast<size_t>(size->second));
    } else {
      std::free(memory);
    }
    sizes_.erase(size);
    fresh_.erase(memory);
  }
  bool is_own_address(const void* data) const override {
    const std::lock_guard lock(mutex_);
    const auto* address = static_cast<const std::byte*>(data);
    const auto behind = sizes_.upper_bound(const_cast<std::byte*>(address));
    if (behind == sizes_.begin()) return false;
    const auto& [begin, size] = *std::prev(behind);
    return address < begin + size;
  }
  std::byte* allocate_host(int64_t bytes) override {
    CUDA_CHECK(emulator::next_call_error());
    auto* memory = static_cast<std::byte*>(std::malloc(static_cast<size_t>(bytes)));
    std::memset(memory, kPoison, static_cast<size_t>(bytes));
    page_locked_[memory] = bytes;
    return memory;
  }
  void release_host(std::byte* memory) override {
    finish();
    page_locked_.erase(memory);
    std::free(memory);
  }

  void copy_to_device(void* to, const void* from, int64_t bytes) override {
    CUDA_CHECK(emulator::next_call_error());
    const auto* begin = static_cast<const std::byte*>(from);
    std::vector<std::byte> values(begin, begin + bytes);
    if (!is_page_locked(begin)) {  // read at once, as on a card
      return enqueue([to, values = std::move(values)] { std::memcpy(to, values.data(), values.size()); });
    }
    in_flight_.push_back({begin, std::move(values), kNumMarks});
    enqueue([=] { std::memcpy(to, from, static_cast<size_t>(bytes)); });
  }
  void copy_to_host(void* to, const void* from, int64_t bytes) override {
    CUDA_CHECK(emulator::next_call_error());
    enqueue([=] { std::memcpy(to, from, static_cast<size_t>(bytes)); });
  }
  void fill_zero(void* to, int64_t bytes) override {
    CUDA_CHECK(emulator::next_call_error());
    {
      // A large piece that nobody has written is address space of zeros, and stays it.
      const std::lock_guard lock(mutex_);
      auto* memory = static_cast<std::byte*>(to);
      if (fresh_.erase(memory) > 0 && sizes_[memory] == bytes) return;
    }
    enqueue([=] { std::memset(to, 0, static_cast<size_t>(bytes)); });
  }
  void synchronize() override {
    CUDA_CHECK(emulator::next_call_error());
    if (counts_) ++counts_->waits;
    finish();
    land([](const Copy&) { return true; });
  }
  void mark(int slot) override {
    CUDA_CHECK(emulator::next_call_error());
    collect();
    queue_.mark(slot);
    for (Copy& copy : in_flight_)
      if (copy.slot == kNumMarks) copy.slot = slot;
  }
  void wait_for(int slot) override {
    CUDA_CHECK(emulator::next_call_error());
    if (counts_) ++counts_->waits;
    collect();
    queue_.wait_for(slot);
    land([slot](const Copy& copy) { return copy.slot == slot; });
  }

  bool multiply(const Product& product, Stream stream) override {
    if (!has_library_) return false;
    if (stream.list != nullptr) {
      stream.list->add(product);
    } else {
      CUDA_CHECK(emulator::next_call_error());
      run(product);
    }
    return true;
  }
  void launch_all(const LaunchList& list) override {
    if (counts_) ++counts_->piecewise;
    size_t count = 0;  // that were launched
    const auto send = [&] { enqueue([this, list, count] { run(list, count); }); };
    try {
      for (const LaunchList::Item& item : list.items()) {
        const OpScope scope(item.op);
        CUDA_CHECK(emulator::next_call_error());
        ++count;
      }
    } catch (const DeviceError&) {
      send();
      throw;
    }
    send();
  }
  std::unique_ptr<LaunchGraph> make_graph(const LaunchList& list) override {
    if (refuses_graphs_) throw DeviceError("no graphs here", /*is_sticky=*/false);
    if (counts_) ++counts_->made;
    return std::make_unique<EmulatedGraph>(list);
  }
  void launch_graph(LaunchGraph& graph) override {
    CUDA_CHECK(emulator::next_call_error());
    if (refuses_launches_) throw DeviceError("no memory for it", /*is_sticky=*/false);
    if (counts_) ++counts_->launched;
    enqueue([this, list = static_cast<EmulatedGraph&>(graph).list] { run(*list, list->items().size()); });
  }

 private:
  static constexpr int64_t kPoisonedBytes = int64_t{256} << 20;  // larger pieces stay untouched address space

  // A copy from page-locked memory that the device, for all the host may know, has not made yet.
  struct Copy {
    const std::byte* from;
    std::vector<std::byte> bytes;
    int slot;  // of the mark behind it; kNumMarks: none yet
  };
  bool is_page_locked(const std::byte* address) const {
    const auto behind = page_locked_.upper_bound(const_cast<std::byte*>(address));
    if (behind == page_locked_.begin()) return false;
    const auto& [begin, size] = *std::prev(behind);
    return address < begin + size;
  }
  // The host waited for these: it must have left their memory alone.
  template <class Which>
  void land(Which which) {
    for (const Copy& copy : in_flight_) {
      CHECK(!which(copy) || std::memcmp(copy.from, copy.bytes.data(), copy.bytes.size()) == 0)
          << "the host changed memory that a copy was reading";
    }
    std::erase_if(in_flight_, which);
  }

  // Launches that no list of the caller holds take their place among the rest.
  void collect() {
    if (launches_.empty()) return;
    queue_.add([this, list = std::exchange(launches_, {})] { run(list, list.items().size()); });
  }
  void enqueue(std::function<void()> work) {
    collect();
    queue_.add(std::move(work));
  }
  void finish() {
    collect();
    queue_.wait();
  }

  // Zeros that become memory where they are written.
  static std::byte* address_space(int64_t bytes) {
    void* memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
  }
  void run(const LaunchList& list, size_t count) {
    bind();
    for (const LaunchList::Item& item : std::span(list.items()).first(count)) {
      const OpScope scope(item.op);
      if (item.is_product) {
        run(item.product);
      } else {
        item.kernel.run(item.kernel, list.params(item.kernel));
      }
    }
  }
  void run(const Product& p) {
    if (counts_) ++counts_->products;
    for (int64_t t = 0; t < p.rows; ++t) {
      for (int64_t n = 0; n < p.num; ++n) {
        float sum = p.bias ? value_at(p.bias, p.type, n) : 0.0f;
        for (int64_t c = 0; c < p.cols; ++c)
          sum +=
              value_at(p.x, p.type, t * p.x_stride + c) * value_at(p.weight, p.type, n * p.weight_stride + c);
        const int64_t at = t * p.out_stride + n;
        if (p.out_type == DType::kF32) {
          static_cast<float*>(p.out)[at] = sum;
        } else {
          static_cast<uint16_t*>(p.out)[at] = p.out_type == DType::kBF16 ? f32_to_bf16(sum) : f32_to_f16(sum);
        }
      }
    }
  }

  emulator::DeviceQueue queue_;
  mutable LaunchList launches_;
  DeviceLimits limits_;
  mutable std::mutex mutex_;
  int64_t left_;
  const bool has_library_, refuses_graphs_, refuses_launches_;
  DeviceCounts* const counts_;
  std::map<std::byte*, int64_t> sizes_;
  std::set<std::byte*> fresh_;
  std::map<std::byte*, int64_t> page_locked_;
  std::vector<Copy> in_flight_;
};

}  // namespace
}  // namespace restkv::cuda

namespace restkv {

std::unique_ptr<Backend> make_emulated_backend(const EmulatedOptions& options) {
  return cuda::make_backend(std::make_unique<cuda::EmulatedRuntime>(options),
                            {.type = options.type,
                             .page_slots = options.page_slots,
                             .workspace_bytes = options.workspace_bytes,
                             .staging_bytes = options.staging_bytes,
                             .is_deterministic = options.is_deterministic,
                             .use_graphs = options.use_graphs});
}

}  // namespace restkv

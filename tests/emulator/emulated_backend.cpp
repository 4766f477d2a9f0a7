// Device memory is the host's, filled with NaN until something is written to it; copies are memcpy.
#include "emulator/emulated_backend.h"

#include <cstdlib>
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/ops.h"

namespace restkv {
namespace {

std::byte* allocate_filled(int64_t bytes, int value) {
  const auto size = static_cast<size_t>((bytes + 255) / 256 * 256);
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(256, size));
  if (memory) std::memset(memory, value, size);
  return memory;
}

class HostRuntime final : public cuda::Runtime {
 public:
  const cuda::DeviceLimits& limits() const override { return limits_; }
  cuda::Stream stream() const override { return nullptr; }
  int64_t free_bytes() override { return limits_.memory_bytes; }
  std::byte* allocate(int64_t bytes) override { return allocate_filled(bytes, 0xFF); }
  void release(std::byte* memory) override { std::free(memory); }
  std::byte* allocate_host(int64_t bytes) override { return allocate_filled(bytes, 0xFF); }
  void release_host(std::byte* memory) override { std::free(memory); }
  void copy_to_device(void* to, const void* from, int64_t bytes) override { copy(to, from, bytes); }
  void copy_to_host(void* to, const void* from, int64_t bytes) override { copy(to, from, bytes); }
  void fill_zero(void* to, int64_t bytes) override { std::memset(to, 0, static_cast<size_t>(bytes)); }
  void synchronize() override {}

 private:
  static void copy(void* to, const void* from, int64_t bytes) {
    if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
  }
  // What sm_80 has; few multiprocessors, so that small tests are split as large steps are on a card.
  const cuda::DeviceLimits limits_ = {.name = "emulator",
                                      .num_multiprocessors = 4,
                                      .max_shared_bytes = 163 << 10,
                                      .memory_bytes = int64_t{4} << 30};
};

class HostBuffer final : public DeviceBuffer {
 public:
  HostBuffer(std::byte* memory, int64_t bytes) : DeviceBuffer(memory, bytes) {}
  ~HostBuffer() override { std::free(data_); }
};

class EmulatedBackend final : public Backend {
 public:
  explicit EmulatedBackend(const EmulatedOptions& options)
      : options_(options), context_(runtime_, options.workspace_bytes), cpu_(make_cpu_backend(1)) {}

  std::string_view name() const override { return "emulated"; }
  int32_t page_slots() const override { return options_.page_slots; }
  bool has_cache_type(DType dtype) const override {
    return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
  }
  std::unique_ptr<DeviceBuffer> allocate(int64_t bytes) override {
    return std::make_unique<HostBuffer>(allocate_filled(bytes, 0), bytes);
  }
  void zero(const Tensor& tensor) override { cpu_->zero(tensor); }
  void synchronize() override {}

 private:
  void do_gather(const GatherArgs& args) override { cpu_->gather(args); }
  void do_rmsnorm(const RmsNormArgs& args) override { cpu_->rmsnorm(args); }
  void do_add(const AddArgs& args) override { cpu_->add(args); }
  void do_matmul(const MatmulArgs& args) override { cpu_->matmul(args); }
  void do_rope_table(const RopeTableArgs& args) override { cpu_->rope_table(args); }
  void do_rope_and_store(const RopeAndStoreArgs& args) override { cpu_->rope_and_store(args); }
  void do_glu(const GluArgs& args) override { cpu_->glu(args); }
  void do_softcap(const SoftcapArgs& args) override { cpu_->softcap(args); }
  void do_store_pages(const StorePagesArgs& args) override { cpu_->store_pages(args); }
  void do_sample(const SampleArgs& args) override { cpu_->sample(args); }
  void do_prefill_attention(const PrefillAttentionArgs& args) override { run(cuda::prefill_attention, args); }
  void do_decode_attention(const DecodeAttentionArgs& args) override { run(cuda::decode_attention, args); }
  void do_store_queries(const StoreQueriesArgs& args) override { run(cuda::store_queries, args); }
  void do_observe(const ObserveArgs& args) override { run(cuda::observe, args); }
  void do_score(const ScoreArgs& args) override { run(cuda::score, args); }
  void do_smooth(const SmoothArgs& args) override { run(cuda::smooth, args); }
  void do_select(const SelectArgs& args) override { run(cuda::select, args); }
  void do_compact(const CompactArgs& args) override { run(cuda::compact, args); }

  template <class Args>
  void run(void (*op)(cuda::Context&, const Args&), const Args& args) {
    context_.begin_op();
    op(context_, args);
  }

  EmulatedOptions options_;
  HostRuntime runtime_;
  cuda::Context context_;
  std::unique_ptr<Backend> cpu_;
};

}  // namespace

std::unique_ptr<Backend> make_emulated_backend(const EmulatedOptions& options) {
  return std::make_unique<EmulatedBackend>(options);
}

}  // namespace restkv

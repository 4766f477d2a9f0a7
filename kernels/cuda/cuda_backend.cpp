// Ops to launchers, memory to the runtime. Weights are copied in the backend's type: matrices dequantised, norms and biases as
// the file has them.
#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/base/dequant.h"
#include "kernels/base/float16.h"
#include "kernels/cuda/ops.h"

namespace restkv::cuda {
namespace {

constexpr int64_t kCopyBytes = int64_t{8} << 20;  // of weights at a time

class RuntimeBuffer final : public DeviceBuffer {
 public:
  RuntimeBuffer(Runtime& runtime, std::byte* data, int64_t bytes)
      : DeviceBuffer(data, bytes), runtime_(runtime) {}
  ~RuntimeBuffer() override { runtime_.release(data_); }

 private:
  Runtime& runtime_;
};

// [cols] values of any weight type in a plain one.
void convert_row(const ConstTensor& from, int64_t row, DType type, float* floats, void* to) {
  dequantize_row(from.dtype, from.row(row), floats, from.cols);
  if (type == DType::kF32) {
    std::copy(floats, floats + from.cols, static_cast<float*>(to));
    return;
  }
  auto* halves = static_cast<uint16_t*>(to);
  for (int64_t i = 0; i < from.cols; ++i)
    halves[i] = type == DType::kBF16 ? f32_to_bf16(floats[i]) : f32_to_f16(floats[i]);
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(std::unique_ptr<Runtime> runtime, const BackendOptions& options)
      : runtime_(std::move(runtime)), options_(options), context_(*runtime_, options.workspace_bytes) {
    context_.set_deterministic(options.is_deterministic);
  }

  std::string_view name() const override { return "cuda"; }
  int32_t page_slots() const override { return options_.page_slots; }
  DType activation_type() const override { return options_.type; }
  bool has_cache_type(DType dtype) const override {
    return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
  }
  bool is_host_memory() const override { return false; }
  std::optional<int64_t> free_bytes() override { return runtime_->free_bytes(); }

  Status check_attention_shape(const AttentionShape& shape) const override {
    const auto unsupported = [](const std::string& what) {
      return unimplemented("the CUDA kernels have no " + what);
    };
    if (shape.head_dim % 8 != 0 || shape.head_dim < 8 || shape.head_dim > kMaxHeadDim) {
      return unsupported("head dim " + std::to_string(shape.head_dim) +
                         "; there are the multiples of 8 up to " + std::to_string(kMaxHeadDim));
    }
    if (options_.page_slots % 16 != 0 || options_.page_slots < 16 || options_.page_slots > 256) {
      return unsupported("pages of " + std::to_string(options_.page_slots) +
                         " slots; there are the multiples of 16 up to 256");
    }
    return {};
  }

  std::unique_ptr<DeviceBuffer> allocate(int64_t bytes) override {
    std::byte* memory = runtime_->allocate(bytes);
    if (memory == nullptr) return nullptr;
    auto buffer = std::make_unique<RuntimeBuffer>(*runtime_, memory, bytes);
    runtime_->fill_zero(memory, bytes);
    return buffer;
  }

  ConstTensor place_weight(const ConstTensor& file, bool is_matrix, Arena& arena) override {
    const DType type = is_matrix ? options_.type : file.dtype;
    const Tensor placed = arena.tensor(type, file.rows, file.cols);
    if (!placed) return {nullptr, type, file.rows, file.cols, file.cols};
    const int64_t row_bytes = bytes_of(type, file.cols);
    const int64_t rows_at_once = std::clamp<int64_t>(kCopyBytes / row_bytes, 1, file.rows);
    std::vector<std::byte> rows(static_cast<size_t>(rows_at_once * row_bytes));
    std::vector<float> floats(static_cast<size_t>(file.cols));
    for (int64_t begin = 0; begin < file.rows; begin += rows_at_once) {
      const int64_t count = std::min(rows_at_once, file.rows - begin);
      const void* from = rows.data();
      if (type == file.dtype && file.stride == file.cols) {
        from = file.row(begin);
      } else {
        for (int64_t r = 0; r < count; ++r)
          convert_row(file, begin + r, type, floats.data(), rows.data() + r * row_bytes);
      }
      runtime_->copy_to_device(placed.row(begin), from, count * row_bytes);
      runtime_->synchronize();
    }
    return placed;
  }

  void zero(const Tensor& tensor) override {
    const OpScope scope("zero", tensor.rows, tensor.cols);
    context_.begin_op();
    cuda::zero(context_, tensor);
  }
  void synchronize() override {
    const OpScope scope("synchronize", 0, 0);
    runtime_->synchronize();
  }
  void read_back(const ConstTensor& tensor, void* host) override {
    const OpScope scope("read_back", tensor.rows, tensor.cols);
    const int64_t bytes = bytes_of(tensor.dtype, tensor.cols);
    const bool is_dense = tensor.stride == tensor.cols;
    for (int64_t r = 0; r < (is_dense ? std::min<int64_t>(1, tensor.rows) : tensor.rows); ++r) {
      runtime_->copy_to_host(static_cast<std::byte*>(host) + r * bytes, tensor.row(r),
                             is_dense ? bytes * tensor.rows : bytes);
    }
    runtime_->synchronize();
  }
  void write(const Tensor& tensor, const void* host) override {
    const OpScope scope("write", tensor.rows, tensor.cols);
    const int64_t bytes = bytes_of(tensor.dtype, tensor.cols);
    for (int64_t r = 0; r < tensor.rows; ++r)
      runtime_->copy_to_device(tensor.row(r), static_cast<const std::byte*>(host) + r * bytes, bytes);
    runtime_->synchronize();
  }

 private:
  // One op: its name and first tensor for messages, a fresh workspace.
  template <class Op, class Args>
  void run(const char* name, const ConstTensor& first, Op op, const Args& args) {
    const OpScope scope(name, first.rows, first.cols);
    context_.begin_op();
    op(context_, args);
  }
  template <class Op, class Args>
  void run_items(const char* name, Op op, const Args& args) {
    const OpScope scope(name, static_cast<long long>(args.items.size()), 0);
    context_.begin_op();
    op(context_, args);
  }

  void do_gather(const GatherArgs& args) override { run("gather", args.out, cuda::gather, args); }
  void do_rmsnorm(const RmsNormArgs& args) override { run("rmsnorm", args.x, cuda::rmsnorm, args); }
  void do_add(const AddArgs& args) override { run("add", args.x, cuda::add, args); }
  void do_matmul(const MatmulArgs& args) override { run("matmul", args.x, cuda::matmul, args); }
  void do_rope_table(const RopeTableArgs& args) override {
    run("rope_table", args.out, cuda::rope_table, args);
  }
  void do_rope_and_store(const RopeAndStoreArgs& args) override {
    run("rope_and_store", args.q, cuda::rope_and_store, args);
  }
  void do_prefill_attention(const PrefillAttentionArgs& args) override {
    run("prefill_attention", args.q, cuda::prefill_attention, args);
  }
  void do_decode_attention(const DecodeAttentionArgs& args) override {
    run("decode_attention", args.q, cuda::decode_attention, args);
  }
  void do_glu(const GluArgs& args) override { run("glu", args.gate, cuda::glu, args); }
  void do_softcap(const SoftcapArgs& args) override { run("softcap", args.x, cuda::softcap, args); }
  void do_store_pages(const StorePagesArgs& args) override {
    run("store_pages", args.k, cuda::store_pages, args);
  }
  void do_sample(const SampleArgs& args) override { run("sample", args.logits, cuda::sample, args); }
  void do_store_queries(const StoreQueriesArgs& args) override {
    run("store_queries", args.q, cuda::store_queries, args);
  }
  void do_observe(const ObserveArgs& args) override { run_items("observe", cuda::observe, args); }
  void do_score(const ScoreArgs& args) override { run_items("score", cuda::score, args); }
  void do_smooth(const SmoothArgs& args) override { run_items("smooth", cuda::smooth, args); }
  void do_select(const SelectArgs& args) override { run_items("select", cuda::select, args); }
  void do_compact(const CompactArgs& args) override { run_items("compact", cuda::compact, args); }

  std::unique_ptr<Runtime> runtime_;
  BackendOptions options_;
  Context context_;
};

}  // namespace

std::unique_ptr<Backend> make_backend(std::unique_ptr<Runtime> runtime, const BackendOptions& options) {
  return std::make_unique<CudaBackend>(std::move(runtime), options);
}

}  // namespace restkv::cuda

// Ops to launchers, memory to the runtime. Weights are copied in the backend's type: matrices dequantised, norms and biases as
// the file has them.
#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <bit>
#include <string>
#include <vector>

#include "kernels/base/dequant.h"
#include "kernels/base/float16.h"
#include "kernels/cuda/device_check.h"
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
      : runtime_(std::move(runtime)),
        options_(options),
        context_(*runtime_, options.workspace_bytes, options.staging_bytes) {
    context_.set_deterministic(options.is_deterministic);
  }

  std::string_view name() const override { return "cuda"; }
  int32_t page_slots() const override { return options_.page_slots; }
  int64_t max_op_bytes() const override { return context_.max_op_bytes(); }
  DType activation_type() const override { return options_.type; }
  bool has_cache_type(DType dtype) const override {
    return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
  }
  bool is_host_memory() const override { return false; }
  bool is_own_address(const void* data) const override { return runtime_->is_own_address(data); }
  std::optional<int64_t> free_bytes() override { return runtime_->free_bytes(); }

  Status check_attention_shape(const AttentionShape& shape) const override {
    const auto unsupported = [](const std::string& what) {
      return unimplemented("the CUDA kernels have no " + what);
    };
    if (shape.head_dim % 8 != 0 || shape.head_dim < 8 || shape.head_dim > kMaxHeadDim) {
      return unsupported("head dim " + std::to_string(shape.head_dim) +
                         "; there are the multiples of 8 up to " + std::to_string(kMaxHeadDim));
    }
    const auto fits = [&](int32_t head_dim) {
      return attention_shared_bytes(options_.type, head_dim, runtime_->limits()) <=
             runtime_->limits().max_shared_bytes;
    };
    if (!fits(shape.head_dim)) {
      int32_t largest = 0;
      for (int32_t dim = 8; dim <= kMaxHeadDim; dim += 8)
        if (fits(dim)) largest = dim;
      const std::string type(dtype_info(options_.type).name);
      return unsupported(
          "head dim " + std::to_string(shape.head_dim) + " of " + type + " on " + runtime_->limits().name +
          ": its blocks take " +
          std::to_string(attention_shared_bytes(options_.type, shape.head_dim, runtime_->limits()) >> 10) +
          " KiB of shared memory, the card has " + std::to_string(runtime_->limits().max_shared_bytes >> 10) +
          " KiB; there are the multiples of 8 up to " + std::to_string(largest));
    }
    if (options_.page_slots < 16 || options_.page_slots > 256 ||
        !std::has_single_bit(static_cast<uint32_t>(options_.page_slots))) {
      return unsupported("pages of " + std::to_string(options_.page_slots) +
                         " slots; there are the powers of 2 from 16 to 256");
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
    const OpScope scope(op("zero", tensor));
    context_.begin_op();
    cuda::zero(context_, tensor);
  }
  void synchronize() override {
    const OpScope scope({.name = "synchronize", .layer = layer()});
    context_.synchronize();
  }
  void wait_step() override {
    const OpScope scope({.name = "wait_step", .layer = layer()});
    context_.wait_step();
  }
  bool is_asynchronous() const override { return true; }
  void begin_step() override {
    const OpScope scope({.name = "step", .layer = layer()});
    context_.begin_step(options_.use_graphs);
  }
  void end_step() override {
    const OpScope scope({.name = "step", .layer = layer()});
    context_.end_step();
  }
  void drop_step() override { context_.drop_step(); }
  int64_t step_rows(int64_t rows) const override { return options_.use_graphs ? bucket_rows(rows) : rows; }
  void read_back(const ConstTensor& tensor, void* host) override {
    const OpScope scope(op("read_back", tensor));
    context_.flush();
    const int64_t bytes = bytes_of(tensor.dtype, tensor.cols);
    const bool is_dense = tensor.stride == tensor.cols;
    for (int64_t r = 0; r < (is_dense ? std::min<int64_t>(1, tensor.rows) : tensor.rows); ++r) {
      runtime_->copy_to_host(static_cast<std::byte*>(host) + r * bytes, tensor.row(r),
                             is_dense ? bytes * tensor.rows : bytes);
    }
    context_.synchronize();  // what is awaited is taken, too
  }
  void write(const Tensor& tensor, const void* host) override {
    const OpScope scope(op("write", tensor));
    context_.flush();
    const int64_t bytes = bytes_of(tensor.dtype, tensor.cols);
    for (int64_t r = 0; r < tensor.rows; ++r)
      runtime_->copy_to_device(tensor.row(r), static_cast<const std::byte*>(host) + r * bytes, bytes);
    runtime_->synchronize();
  }

 private:
  RunningOp op(const char* name, const ConstTensor& in, const ConstTensor& out = {}) const {
    return {.name = name, .in = {in.rows, in.cols}, .out = {out.rows, out.cols}, .layer = layer()};
  }
  // One op: what messages say of it, a fresh workspace.
  template <class Op, class Args>
  void run(const RunningOp& running, Op launcher, const Args& args) {
    const OpScope scope(running);
    context_.begin_op();
    launcher(context_, args);
  }
  // Of eviction: as many items as stand there, of the first one's rows.
  template <class Op, class Args>
  void run_items(const char* name, int32_t num_kv_heads, Op launcher, const Args& args) {
    long long rows = 0;
    for (const auto& item : args.items) {
      for (int32_t h = 0; h < num_kv_heads; ++h) rows = std::max<long long>(rows, item.rows.num_rows(h));
    }
    run({.name = name, .in = {static_cast<long long>(args.items.size()), rows}, .layer = layer()}, launcher,
        args);
  }

  void do_gather(const GatherArgs& args) override {
    run(op("gather", args.table, args.out), cuda::gather, args);
  }
  void do_rmsnorm(const RmsNormArgs& args) override {
    run(op("rmsnorm", args.x, args.out), cuda::rmsnorm, args);
  }
  void do_add(const AddArgs& args) override { run(op("add", args.x), cuda::add, args); }
  void do_matmul(const MatmulArgs& args) override {
    ConstTensor out = args.outputs[0].out;
    for (const MatmulOutput& output : args.outputs.subspan(1)) out.cols += output.out.cols;
    run(op("matmul", args.x, out), cuda::matmul, args);
  }
  void do_rope_table(const RopeTableArgs& args) override {
    run(op("rope_table", args.out), cuda::rope_table, args);
  }
  void do_rope_and_store(const RopeAndStoreArgs& args) override {
    run(op("rope_and_store", args.q, args.k), cuda::rope_and_store, args);
  }
  void do_prefill_attention(const PrefillAttentionArgs& args) override {
    run(op("prefill_attention", args.q, args.out), cuda::prefill_attention, args);
  }
  void do_decode_attention(const DecodeAttentionArgs& args) override {
    run(op("decode_attention", args.q, args.out), cuda::decode_attention, args);
  }
  void do_glu(const GluArgs& args) override { run(op("glu", args.gate, args.out), cuda::glu, args); }
  void do_softcap(const SoftcapArgs& args) override { run(op("softcap", args.x), cuda::softcap, args); }
  void do_store_pages(const StorePagesArgs& args) override {
    run(op("store_pages", args.k), cuda::store_pages, args);
  }
  void do_sample(const SampleArgs& args) override { run(op("sample", args.logits), cuda::sample, args); }
  void do_store_queries(const StoreQueriesArgs& args) override {
    run(op("store_queries", args.q), cuda::store_queries, args);
  }
  void do_factor_projection(const FactorProjectionArgs& args) override {
    run(op("factor_projection", args.weight, args.out), cuda::factor_projection, args);
  }
  void do_observe(const ObserveArgs& args) override {
    run_items("observe", args.shape.num_kv_heads, cuda::observe, args);
  }
  void do_score(const ScoreArgs& args) override {
    run_items("score", args.shape.num_kv_heads, cuda::score, args);
  }
  void do_smooth(const SmoothArgs& args) override {
    run_items("smooth", args.shape.num_kv_heads, cuda::smooth, args);
  }
  void do_select(const SelectArgs& args) override {
    run_items("select", args.num_kv_heads, cuda::select, args);
  }
  void do_compact(const CompactArgs& args) override {
    run_items("compact", args.shape.num_kv_heads, cuda::compact, args);
  }

  std::unique_ptr<Runtime> runtime_;
  BackendOptions options_;
  Context context_;
};

}  // namespace

std::unique_ptr<Backend> make_backend(std::unique_ptr<Runtime> runtime, const BackendOptions& options) {
  return std::make_unique<CudaBackend>(std::move(runtime), options);
}

}  // namespace restkv::cuda

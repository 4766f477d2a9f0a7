// CudaRuntime: cudaMalloc, one stream, copies, graphs, and cuBLASLt where it is installed. A wait asks again and again and gives
// up when the card has finished nothing for ten seconds: a kernel that hangs must end the process, not the patience of its
// clients. Beats, events between the copies of long work, tell a card that hangs from one that has much to do.
//
// Kernels overlap where the card can (start_kernel): the attribute lets a kernel's blocks come into place when all blocks of the
// one before have begun and asked for it, and each waits for the whole of that one (wait_for_previous) before it touches what a
// kernel writes. What else stands in the stream keeps its full order: the attribute concerns the kernel before, if there is one and
// if it asks, and an edge of a graph is programmatic between two kernels only.
//   copies, fills, marks    behind a kernel wait for its end, and so for all before it; a kernel behind one of them starts after it.
//                           Staged arrays, page tables and what the host writes are there before a kernel of their step begins
//   cuBLASLt's kernels      come without the attribute, or wait as ours do; ours behind one wait for its end
//   graphs                  a capture makes full edges where one end is no such kernel; the first kernel of a graph has none before
//                           it, and launches of graphs are in order
// Before a wait nothing is read but weights, which are copied at load and waited for (CudaBackend::place_weight), and those arrays
// that only copies write, by decode_attention.
#include "kernels/cuda/card.h"

#include <cuda_runtime.h>

#include <chrono>
#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "kernels/base/device_error.h"
#include "kernels/cuda/blas.h"
#include "kernels/cuda/device_check.h"
#include "kernels/cuda/device_types.h"
#include "kernels/cuda/patience.h"

namespace restkv::cuda {
namespace {

constexpr std::chrono::seconds kWatchdog{10};
// Copies of staged arrays from one beat to the next: a layer of a prompt has some six, a decode step fewer than so many.
constexpr int kCopiesOfABeat = 8;
// Polls go on without a sleep for so long, longer than a step or a turn's units should take: with sleeps of 20 us in between, units
// of a prompt took some 2 ms longer than their kernels on a virtual machine with an H100, where timers are coarse. It costs the
// engine's thread a core while the card works, which it yields to whoever waits for one.
constexpr std::chrono::milliseconds kSpin{200};
constexpr int kMinimumMajor = 8;
// The code that waits (wait_for_previous) is that for sm_90a; other cards, later ones too, run code made for sm_80, which does not.
constexpr int kOverlapMajor = 9;
constexpr int64_t kBlasBytes = int64_t{32} << 20;  // what cuBLASLt's kernels want on sm_90

class CudaGraph final : public LaunchGraph {
 public:
  // Takes what a capture gave. `is_lost`: of the card, which outlives the graph.
  CudaGraph(cudaGraph_t graph, const bool& is_lost) : is_lost_(is_lost) {
    const cudaError_t code = cudaGraphInstantiate(&exec_, graph, 0);
    cudaGraphDestroy(graph);
    CUDA_CHECK(code);
  }
  ~CudaGraph() override {
    if (!is_lost_) cudaGraphExecDestroy(exec_);
  }
  cudaGraphExec_t exec() const { return exec_; }

 private:
  const bool& is_lost_;
  cudaGraphExec_t exec_ = nullptr;
};

class CudaRuntime final : public Runtime {
 public:
  // Products: of 16-bit types, by the vendor's library where it is found.
  CudaRuntime(int index, bool has_products) {
    CUDA_CHECK(cudaSetDevice(index));
    cudaDeviceProp properties{};
    CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
    limits_.name = properties.name;
    overlaps_launches_ = kOverlapsLaunches && properties.major == kOverlapMajor;
    limits_.num_multiprocessors = properties.multiProcessorCount;
    limits_.max_shared_bytes = static_cast<int32_t>(properties.sharedMemPerBlockOptin);
    limits_.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
    limits_.has_wgmma = properties.major == 9 && properties.minor == 0;
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming));
    for (cudaEvent_t& mark : marks_) CUDA_CHECK(cudaEventCreateWithFlags(&mark, cudaEventDisableTiming));
    index_ = index;
    // Reserved now, so that free_bytes() is what the rest may have; the library is opened for the first product.
    if (has_products) blas_memory_ = allocate(kBlasBytes);
  }
  ~CudaRuntime() override {
    if (is_lost_) {  // its calls would fail or never return; the process is ending
      static_cast<void>(blas_.release());
      return;
    }
    blas_.reset();
    cudaFree(blas_memory_);
    cudaEventDestroy(done_);
    for (const cudaEvent_t mark : marks_) cudaEventDestroy(mark);
    for (const cudaEvent_t beat : beats_) cudaEventDestroy(beat);
    for (const cudaEvent_t beat : spare_beats_) cudaEventDestroy(beat);
    cudaStreamDestroy(stream_);
  }

  const DeviceLimits& limits() const override { return limits_; }
  Stream stream() const override {
    Stream stream(stream_);
    stream.overlaps = overlaps_launches_;
    return stream;
  }
  // The current card is a matter of the thread: the engine's is not the one that opened it.
  void bind() override {
    thread_local int bound = -1;
    if (bound == index_) return;
    CUDA_CHECK(cudaSetDevice(index_));
    bound = index_;
  }
  int64_t free_bytes() override {
    bind();
    size_t free = 0, total = 0;
    CUDA_CHECK(cudaMemGetInfo(&free, &total));
    return static_cast<int64_t>(free);
  }

  std::byte* allocate(int64_t bytes) override {
    bind();
    void* memory = nullptr;
    const cudaError_t code = cudaMalloc(&memory, static_cast<size_t>(bytes));
    if (code == cudaErrorMemoryAllocation) {
      static_cast<void>(cudaGetLastError());  // it is not an error of later calls
      return nullptr;
    }
    CUDA_CHECK(code);
    return static_cast<std::byte*>(memory);
  }
  void release(std::byte* memory) override {
    if (!is_lost_) cudaFree(memory);
  }
  std::byte* allocate_host(int64_t bytes) override {
    bind();
    void* memory = nullptr;
    CUDA_CHECK(cudaMallocHost(&memory, static_cast<size_t>(bytes)));
    return static_cast<std::byte*>(memory);
  }
  void release_host(std::byte* memory) override {
    if (!is_lost_) cudaFreeHost(memory);
  }

  void copy_to_device(void* to, const void* from, int64_t bytes) override {
    bind();
    CUDA_CHECK(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_));
    if (++copies_since_beat_ == kCopiesOfABeat) add_beat();
  }
  void copy_to_host(void* to, const void* from, int64_t bytes) override {
    bind();
    CUDA_CHECK(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_));
  }
  void fill_zero(void* to, int64_t bytes) override {
    bind();
    CUDA_CHECK(cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), stream_));
  }

  bool multiply(const Product& product, Stream stream) override {
    bind();
    if (!open_blas() || !blas_->can_multiply(product)) return false;
    if (stream.list != nullptr) {
      stream.list->add(product);
    } else {
      blas_->multiply(product, stream_);
    }
    return true;
  }
  void launch_all(const LaunchList& list) override {
    bind();
    for (const LaunchList::Item& item : list.items()) {
      const OpScope scope(item.op);
      if (item.is_product) {
        blas_->multiply(item.product, stream_);
        continue;
      }
      start_kernel(item.kernel, list.params(item.kernel), stream());
    }
  }
  std::unique_ptr<LaunchGraph> make_graph(const LaunchList& list) override {
    bind();
    cudaGraph_t graph = nullptr;
    CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    try {
      launch_all(list);
    } catch (...) {
      if (cudaStreamEndCapture(stream_, &graph) == cudaSuccess) cudaGraphDestroy(graph);
      throw;
    }
    CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
    return std::make_unique<CudaGraph>(graph, is_lost_);
  }
  void launch_graph(LaunchGraph& graph) override {
    bind();
    CUDA_CHECK(cudaGraphLaunch(static_cast<CudaGraph&>(graph).exec(), stream_));
  }

  void synchronize() override {
    bind();
    if (!is_lost_) CUDA_CHECK(cudaEventRecord(done_, stream_));
    wait(done_);
  }
  void mark(int slot) override {
    bind();
    CUDA_CHECK(cudaEventRecord(marks_[slot], stream_));
  }
  void wait_for(int slot) override {
    bind();
    wait(marks_[slot]);
  }

 private:
  bool open_blas() {
    if (!is_blas_asked_ && blas_memory_ != nullptr) blas_ = Blas::open(blas_memory_, kBlasBytes);
    is_blas_asked_ = true;
    return blas_ != nullptr;
  }
  // Behind a copy, where no kernel overlaps with the one before it anyway.
  void add_beat() {
    cudaEvent_t beat = nullptr;
    if (spare_beats_.empty()) {
      CUDA_CHECK(cudaEventCreateWithFlags(&beat, cudaEventDisableTiming));
    } else {
      beat = spare_beats_.back();
      spare_beats_.pop_back();
    }
    beats_.push_back(beat);
    copies_since_beat_ = 0;
    CUDA_CHECK(cudaEventRecord(beat, stream_));
  }
  // How many beats the card has come past since the start.
  int64_t num_beats_done() {
    while (!beats_.empty() && cudaEventQuery(beats_.front()) == cudaSuccess) {
      spare_beats_.push_back(beats_.front());
      beats_.pop_front();
      ++num_beats_done_;
    }
    return num_beats_done_;
  }
  void wait(cudaEvent_t event) {
    if (is_lost_) throw DeviceError("the card was lost", /*is_sticky=*/true);
    const auto begin = std::chrono::steady_clock::now();
    Patience patience(begin, num_beats_done_, kWatchdog);
    for (;;) {
      const cudaError_t code = cudaEventQuery(event);
      if (code == cudaSuccess) {
        num_beats_done();
        copies_since_beat_ = 0;
        return;
      }
      // Something that was enqueued has failed, and no call works any more.
      if (code != cudaErrorNotReady) {
        is_lost_ = true;
        try {
          CUDA_CHECK(code);
        } catch (const DeviceError& error) {
          throw DeviceError(error.what(), /*is_sticky=*/true);
        }
      }
      const auto now = std::chrono::steady_clock::now();
      if (patience.is_over(now, num_beats_done())) {
        is_lost_ = true;
        throw DeviceError("the card has finished nothing of its work for 10 s", /*is_sticky=*/true);
      }
      if (now - begin < kSpin) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      }
    }
  }

  DeviceLimits limits_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t done_ = nullptr, marks_[kNumMarks] = {};
  int index_ = 0;
  bool overlaps_launches_ = false;
  std::byte* blas_memory_ = nullptr;
  std::unique_ptr<Blas> blas_;
  bool is_blas_asked_ = false;
  std::deque<cudaEvent_t> beats_;  // in the stream, the oldest in front
  std::vector<cudaEvent_t> spare_beats_;
  int copies_since_beat_ = 0;
  int64_t num_beats_done_ = 0;
  bool is_lost_ = false;
};

}  // namespace

void start_kernel(const KernelLaunch& launch, const void* params, const Stream& stream) {
  void* arguments[] = {const_cast<void*>(params)};
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(launch.grid.x, launch.grid.y, launch.grid.z);
  config.blockDim = dim3(launch.block);
  config.dynamicSmemBytes = launch.smem;
  config.stream = static_cast<cudaStream_t>(stream.handle);
  config.attrs = &overlap;
  config.numAttrs = stream.overlaps ? 1 : 0;
  CUDA_CHECK(cudaLaunchKernelExC(&config, launch.kernel, arguments));
}

Result<int> count_cards() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaErrorInsufficientDriver || code == cudaErrorStubLibrary)
    return Status(StatusCode::kUnavailable,
                  "there is no NVIDIA driver, or it is older than CUDA 13 needs (580)");
  if (code == cudaErrorNoDevice || (code == cudaSuccess && count == 0))
    return Status(StatusCode::kUnavailable, "the NVIDIA driver sees no card");
  if (code != cudaSuccess)
    return Status(StatusCode::kUnavailable,
                  std::string("the NVIDIA driver fails: ") + cudaGetErrorString(code));
  return count;
}

Result<std::unique_ptr<Backend>> open_card(int index, const BackendOptions& options) {
  const Result<int> count = count_cards();
  if (!count.ok()) return count.status();
  if (index < 0 || index >= *count) {
    return invalid_argument("there is no card " + std::to_string(index) +
                            "; there are cuda:0 to cuda:" + std::to_string(*count - 1));
  }
  try {
    int major = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
    if (major < kMinimumMajor) {
      return unimplemented("card " + std::to_string(index) + " has compute capability " +
                           std::to_string(major) + ".x; 8.0 is the least that is supported");
    }
    const bool has_products = options.type != DType::kF32 && !options.is_deterministic;
    return make_backend(std::make_unique<CudaRuntime>(index, has_products), options);
  } catch (const DeviceError& error) {
    return Status(StatusCode::kUnavailable, error.what());
  }
}

}  // namespace restkv::cuda

// One device as the backend sees it: memory, copies, a stream. CudaRuntime (card.cpp) is the card,
// tests/emulator/emulated_backend.cpp the host standing in for it. Every call goes through CUDA_CHECK inside: a failure is
// a DeviceError.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "kernels/cuda/launch_list.h"

namespace restkv::cuda {

struct DeviceLimits {
  std::string name;  // "NVIDIA H200"
  int32_t num_multiprocessors = 1;
  int32_t max_shared_bytes = 0;  // dynamic shared memory of one block, opted in
  int64_t memory_bytes = 0;      // of the device
  bool has_wgmma = false;        // code for sm_90a runs: compute capability 9.0
};

// A list of launches as the device keeps it.
class LaunchGraph {
 public:
  virtual ~LaunchGraph() = default;
};

class Runtime {
 public:
  virtual ~Runtime() = default;
  virtual const DeviceLimits& limits() const = 0;
  virtual Stream stream() const = 0;  // all work of the process
  virtual void bind() {}              // launches of this thread go to this device from now on
  virtual int64_t free_bytes() = 0;   // of the device, now

  virtual std::byte* allocate(int64_t bytes) = 0;  // null: there is no such piece left
  virtual void release(std::byte* memory) = 0;
  // Whether allocate() gave a piece with this address; what cannot say cheaply says yes.
  virtual bool is_own_address(const void*) const { return true; }
  virtual std::byte* allocate_host(int64_t bytes) = 0;  // page-locked
  virtual void release_host(std::byte* memory) = 0;

  // In stream order. `from` and `to` on the host are page-locked for the copy to run beside other work.
  virtual void copy_to_device(void* to, const void* from, int64_t bytes) = 0;
  virtual void copy_to_host(void* to, const void* from, int64_t bytes) = 0;
  virtual void fill_zero(void* to, int64_t bytes) = 0;
  virtual void synchronize() = 0;  // waits for all that was enqueued
  // Mark `slot` stands behind all that was enqueued so far; wait_for waits until the device has come past it.
  static constexpr int kNumMarks = 2;
  virtual void mark(int slot) = 0;
  virtual void wait_for(int slot) = 0;

  // The vendor's library computes this product; false: there is no library, or not for this shape. A list takes the product
  // where it can be computed.
  virtual bool multiply(const Product&, Stream) { return false; }
  // Lists in stream order: each launch by itself, or as a graph, whose launch does what the list said when it was made.
  virtual void launch_all(const LaunchList& list) = 0;
  virtual std::unique_ptr<LaunchGraph> make_graph(const LaunchList& list) = 0;
  virtual void launch_graph(LaunchGraph& graph) = 0;
};

}  // namespace restkv::cuda

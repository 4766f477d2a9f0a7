// One pool of threads for the parallel regions of a step. Threads claim small chunks from a shared counter, so one that
// the operating system takes off its core delays a region by its current chunk at most. Between regions the workers
// spin briefly (a step's regions follow each other within microseconds), then sleep on a futex. A region allocates
// nothing.
//
// A region's number and next chunk are one 64-bit word, `claim_`: a chunk is taken by compare-exchange, so a worker that
// wakes late can never take a chunk of a region that it has not read.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

namespace restkv::cpu {

class ThreadPool {
 public:
  explicit ThreadPool(
      int num_threads);  // >= 1, the caller of parallel_for counts; throws DeviceError: no more threads
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls fn(chunk, thread) for every chunk in [0, num_chunks), thread in [0, num_threads()); returns when all are done.
  // One caller at a time; chunks start in rising order.
  template <class F>
  void parallel_for(int64_t num_chunks, const F& fn) {
    run(
        num_chunks,
        [](const void* f, int64_t chunk, int thread) { (*static_cast<const F*>(f))(chunk, thread); }, &fn);
  }

 private:
  using Function = void (*)(const void* context, int64_t chunk, int thread);

  void run(int64_t num_chunks, Function function, const void* context);
  void work(int thread);
  void claim_chunks(uint32_t region, int thread);
  void stop();

  std::atomic<uint64_t> claim_{0};  // region number << 32 | next chunk
  std::atomic<uint32_t> num_chunks_{0};
  std::atomic<uint32_t> num_done_{0};
  std::atomic<Function> function_{nullptr};
  std::atomic<const void*> context_{nullptr};
  alignas(64) std::atomic<uint32_t> region_{0};  // what sleeping workers wait on
  std::atomic<bool> is_stopping_{false};
  std::vector<std::thread> workers_;
};

// Physical cores this process may use: affinity mask and the quotas of its control groups considered; at least 1. `root`: where
// those are looked for in tests, instead of "/".
int usable_cores(const std::string& root = "/");

}  // namespace restkv::cpu

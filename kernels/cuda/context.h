// What the launcher of an op gets beside its args. An op is `void name(Context&, const NameArgs&)` in name.cu, declared in
// ops.h; CudaBackend::do_name calls it and nothing else. Tensors of the args lie on the device; spans, page tables,
// lengths and other plain pointers of the args lie on the host and travel by stage() or upload():
//   const int32_t* ids = context.upload(args.ids);
//   launch(gather_kernel<T>, {.x = rows}, 256, 0, context.ready(), params);
// Results the args want on the host come back by read_back(), which waits; or come by await(), later.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/cuda/graph_cache.h"

namespace restkv::cuda {

// One array in both places: written on the host, read by the kernels launched on ready().
template <class T>
struct Staged {
  std::span<T> host;
  const T* device = nullptr;
};

// What the device writes to memory of the host, and who takes it from there when it has.
struct Awaited {
  void (*take)(const Awaited& awaited) = nullptr;
  void* to = nullptr;          // where the args want it
  int64_t count = 0;           // of what `to` is an array of
  const void* from = nullptr;  // host_results()
  const void* more = nullptr;
  int64_t more_stride = 0;
};

class Context {
 public:
  // `workspace_bytes` of device memory for the ops' own use (split-KV partials, histograms); `staging_bytes` of it, and twice
  // as much page-locked memory, for what travels with the ops, of which one op may take half.
  Context(Runtime& runtime, int64_t workspace_bytes, int64_t staging_bytes);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  Runtime& runtime() { return runtime_; }
  const DeviceLimits& limits() const { return runtime_.limits(); }

  // One algorithm for every number of rows.
  bool is_deterministic() const { return is_deterministic_; }
  void set_deterministic(bool value) { is_deterministic_ = value; }

  // The backend calls this before each op: workspace and staged arrays of the one before are no longer its own.
  void begin_op();

  // From begin_step to end_step launches gather in a list (where `has_list`), and so do staged arrays, at the same places in
  // each step of the same ops; they reach the device together, as a graph where the list is known (graph_cache.h). flush()
  // sends what is there. The host may prepare a step while the device works on the one before it, not on two.
  void begin_step(bool has_list);
  void end_step();
  void drop_step();  // an op failed: what was not sent is forgotten, and what was awaited
  void flush();
  void synchronize();  // sends, and waits for all
  const GraphCache::Counters& graph_counters() const { return graphs_.counters(); }
  bool is_listing() const { return is_in_step_ && has_list_; }
  // Places for `count` items of an op over `rows` rows. In a list there are as many as rows, so that launches and places of staged
  // arrays are those of every step with as many rows; a kernel passes over a place that no item has.
  size_t num_places(size_t count, int64_t rows) const {
    return is_listing() ? std::max(count, static_cast<size_t>(rows)) : count;
  }

  // Room for `count` values that go to the device with the next ready(). Valid for this op.
  template <class T>
  Staged<T> stage(size_t count) {
    const int64_t at = take_staging(static_cast<int64_t>(count * sizeof(T)));
    return {{reinterpret_cast<T*>(half_begin() + at), count},
            reinterpret_cast<const T*>(staging_device_ + at)};
  }
  template <class T>
  const T* upload(std::span<const T> values) {
    const Staged<T> staged = stage<T>(values.size());
    if (!values.empty()) std::memcpy(staged.host.data(), values.data(), values.size_bytes());
    return staged.device;
  }
  template <class T>
  const T* upload(const T* values, int64_t count) {
    return upload(std::span<const T>(values, static_cast<size_t>(count)));
  }
  // Page ids [num_heads, stride] of a HeadTables, QueryRing or EntrySums: where they lie, or a copy for this op.
  template <class Tables>
  const int32_t* page_table(const Tables& tables, int64_t num_heads) {
    return tables.resident != nullptr ? tables.resident : upload(tables.pages, num_heads * tables.stride);
  }
  // Staged arrays are on their way; the stream to launch on.
  Stream ready();

  // Device memory of this op, 256-byte aligned, contents undefined; CHECK if there is none left.
  template <class T>
  T* workspace(int64_t count) {
    return reinterpret_cast<T*>(take_workspace(count * static_cast<int64_t>(sizeof(T))));
  }
  int64_t workspace_left() const { return workspace_bytes_ - workspace_used_; }
  // [kNumCounters] on the device, all 0 when a kernel starts, and when it ends: blocks of one launch count each other with them.
  static constexpr int64_t kNumCounters = 16384;
  uint32_t* counters() const { return counters_; }

  // Copies device memory to the host and waits for it.
  void read_back(void* host, const void* device, int64_t bytes);
  // The same to page-locked memory of this op.
  template <class T>
  std::span<T> read_back(const T* device, size_t count) {
    const std::span<T> host = stage<T>(count).host;
    read_back(host.data(), device, static_cast<int64_t>(host.size_bytes()));
    return host;
  }

  // Room for `count` values that kernels of this op write to memory of the host, for await(). Once between two calls of await(), and
  // before anything is staged: it may have to wait for room, and then takes all that is awaited.
  template <class T>
  std::span<T> host_results(size_t count) {
    return {reinterpret_cast<T*>(take_results(static_cast<int64_t>(count * sizeof(T)))), count};
  }
  int64_t result_bytes() const { return result_bytes_; }
  // The launches of this op fill it; it is taken in the wait that comes past them.
  void await(const Awaited& awaited) { awaited_.push_back({half_, step_, awaited}); }
  // Takes what is awaited of the oldest step.
  void wait_step();

  int64_t staging_bytes() const { return staging_bytes_; }
  // What one op may stage and have as results, together.
  int64_t max_op_bytes() const { return std::min(staging_bytes_ / 2, result_bytes_); }

 private:
  explicit Context(Runtime& runtime) : runtime_(runtime), graphs_(runtime) {}
  int64_t take_staging(int64_t bytes);
  std::byte* take_workspace(int64_t bytes);
  void send_staging();
  std::byte* take_results(int64_t bytes);
  std::byte* half_begin() const { return staging_host_ + half_ * (staging_bytes_ + result_bytes_); }
  // The host's other half from its beginning on, when the device has come past what it last held.
  void turn_half();
  void wait_for_half(int half);
  void take_awaited(int half);  // the device has come past them
  void note_idle();             // past all

  enum class HalfState : uint8_t { kFree, kSent, kMarked };  // sent: the device may still read or write it
  struct AwaitedOfStep {
    int half;
    int64_t step;
    Awaited what;
  };

  Runtime& runtime_;
  std::byte* staging_host_ = nullptr;  // two halves of staging and results
  std::byte* staging_device_ = nullptr;
  std::byte* workspace_ = nullptr;
  uint32_t* counters_ = nullptr;
  int64_t workspace_bytes_ = 0;
  int64_t workspace_used_ = 0;
  bool is_deterministic_ = false;
  int64_t staging_bytes_ = 0;
  int64_t staging_used_ = 0;  // next free byte of the half
  int64_t staging_sent_ = 0;  // bytes before it are on their way
  int64_t op_staging_ = 0;    // of this op
  int64_t result_bytes_ = 0;
  int64_t results_used_ = 0;
  int half_ = 0;  // the host's half in use
  HalfState states_[Runtime::kNumMarks] = {};
  int64_t step_ = 0;                    // how many began
  std::vector<AwaitedOfStep> awaited_;  // the oldest in front
  bool is_in_step_ = false, has_list_ = false;
  LaunchList list_;
  GraphCache graphs_;
};

}  // namespace restkv::cuda

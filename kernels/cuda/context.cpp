// Staging is page-locked memory with a mirror on the device: one copy for all arrays of a launch. The stream keeps the mirror in
// order; the host has two halves of it and fills one while the device may still read the other, whose mark it waits for before
// it turns back. A step starts at the beginning of a half, so that the launches of equal steps have equal params. Behind each
// half lies room for results that kernels write to the host themselves.
#include "kernels/cuda/context.h"

#include "kernels/base/device_error.h"

namespace restkv::cuda {
namespace {

constexpr int64_t kAlign = 256;
constexpr int64_t kStagingAlign = 16;
int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

}  // namespace

// Delegates, so that what was allocated is released when a later call of the device fails.
Context::Context(Runtime& runtime, int64_t workspace_bytes, int64_t staging_bytes) : Context(runtime) {
  staging_bytes_ = staging_bytes;
  result_bytes_ = aligned(staging_bytes / 8);
  staging_host_ = runtime.allocate_host(Runtime::kNumMarks * (staging_bytes_ + result_bytes_));
  staging_device_ = runtime.allocate(staging_bytes);
  workspace_ = runtime.allocate(workspace_bytes);
  workspace_bytes_ = workspace_bytes;
  counters_ = reinterpret_cast<uint32_t*>(runtime.allocate(kNumCounters * 4));
  if (staging_host_ == nullptr || staging_device_ == nullptr || workspace_ == nullptr || counters_ == nullptr)
    throw DeviceError("no memory on the device for " +
                          std::to_string((workspace_bytes + staging_bytes) >> 20) + " MiB of workspace",
                      false);
  runtime.fill_zero(counters_, kNumCounters * 4);
}

Context::~Context() {
  runtime_.release(reinterpret_cast<std::byte*>(counters_));
  runtime_.release(workspace_);
  runtime_.release(staging_device_);
  runtime_.release_host(staging_host_);
}

void Context::begin_op() {
  runtime_.bind();
  // An op may take half of what there is, in one piece: its arrays are filled between stage() and ready(), so none of them may
  // be sent early.
  if (staging_used_ > staging_bytes_ / 2) {
    flush();
    turn_half();
  }
  workspace_used_ = 0;
  op_staging_ = 0;
}

void Context::begin_step(bool has_list) {
  runtime_.bind();
  list_.clear();
  turn_half();
  ++step_;
  is_in_step_ = true;
  has_list_ = has_list;
}

void Context::end_step() {
  flush();
  is_in_step_ = false;
  if (states_[half_] == HalfState::kSent) {
    runtime_.mark(half_);
    states_[half_] = HalfState::kMarked;
  }
}

void Context::drop_step() {
  list_.clear();
  awaited_.clear();
  is_in_step_ = false;
}

void Context::flush() {
  if (!is_listing()) return;
  send_staging();
  graphs_.launch(list_);
  list_.clear();
}

void Context::synchronize() {
  flush();
  runtime_.synchronize();
  note_idle();
}

void Context::turn_half() {
  if (states_[half_] == HalfState::kSent) {
    runtime_.mark(half_);
    states_[half_] = HalfState::kMarked;
  }
  half_ = 1 - half_;
  wait_for_half(half_);
  staging_used_ = staging_sent_ = results_used_ = 0;
}

void Context::wait_for_half(int half) {
  if (states_[half] == HalfState::kSent) runtime_.mark(half);
  if (states_[half] != HalfState::kFree) runtime_.wait_for(half);
  states_[half] = HalfState::kFree;
  take_awaited(half);
}

void Context::wait_step() {
  if (awaited_.empty()) return;
  flush();
  const int64_t step = awaited_.front().step;
  while (!awaited_.empty() && awaited_.front().step == step) wait_for_half(awaited_.front().half);
}

void Context::take_awaited(int half) {
  for (const AwaitedOfStep& awaited : awaited_)
    if (awaited.half == half) awaited.what.take(awaited.what);
  std::erase_if(awaited_, [half](const AwaitedOfStep& awaited) { return awaited.half == half; });
}

void Context::note_idle() {
  for (int half = 0; half < Runtime::kNumMarks; ++half) {
    states_[half] = HalfState::kFree;
    take_awaited(half);
  }
}

std::byte* Context::take_results(int64_t bytes) {
  const int64_t size = (bytes + kStagingAlign - 1) / kStagingAlign * kStagingAlign;
  CHECK(size <= result_bytes_) << "an op has " << bytes << " bytes of results";
  if (results_used_ + size > result_bytes_) {
    flush();
    wait_for_half(half_);
    results_used_ = 0;
  }
  std::byte* place = half_begin() + staging_bytes_ + results_used_;
  results_used_ += size;
  return place;
}

int64_t Context::take_staging(int64_t bytes) {
  const int64_t size = (bytes + kStagingAlign - 1) / kStagingAlign * kStagingAlign;
  op_staging_ += size;
  CHECK(op_staging_ <= staging_bytes_ / 2) << "an op stages " << op_staging_ << " bytes";
  const int64_t at = staging_used_;
  staging_used_ += size;
  return at;
}

Stream Context::ready() {
  if (is_listing()) return {nullptr, &list_};
  send_staging();
  return runtime_.stream();
}

void Context::send_staging() {
  if (staging_used_ > staging_sent_) {
    runtime_.copy_to_device(staging_device_ + staging_sent_, half_begin() + staging_sent_,
                            staging_used_ - staging_sent_);
    staging_sent_ = staging_used_;
    states_[half_] = HalfState::kSent;
  }
}

std::byte* Context::take_workspace(int64_t bytes) {
  std::byte* place = workspace_ + workspace_used_;
  workspace_used_ += aligned(bytes);
  CHECK(workspace_used_ <= workspace_bytes_) << workspace_used_ << " of " << workspace_bytes_ << " bytes";
  return place;
}

void Context::read_back(void* host, const void* device, int64_t bytes) {
  flush();
  runtime_.copy_to_host(host, device, bytes);
  runtime_.synchronize();
  note_idle();
}

}  // namespace restkv::cuda

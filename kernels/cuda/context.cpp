// Staging is a ring in page-locked memory with a mirror on the device: one copy for all arrays of a launch. The stream keeps
// the mirror in order; only a full turn of the ring waits, for the copies that read the host's side. A step starts at its
// beginning, so that the launches of equal steps have equal params.
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
  staging_host_ = runtime.allocate_host(staging_bytes);
  staging_device_ = runtime.allocate(staging_bytes);
  workspace_ = runtime.allocate(workspace_bytes);
  workspace_bytes_ = workspace_bytes;
  if (staging_host_ == nullptr || staging_device_ == nullptr || workspace_ == nullptr)
    throw DeviceError("no memory on the device for " +
                          std::to_string((workspace_bytes + staging_bytes) >> 20) + " MiB of workspace",
                      false);
}

Context::~Context() {
  runtime_.release(workspace_);
  runtime_.release(staging_device_);
  runtime_.release_host(staging_host_);
}

void Context::begin_op() {
  runtime_.bind();
  // An op may take half of the ring, in one piece: its arrays are filled between stage() and ready(), so none of them may be
  // sent early. Starting the ring anew waits for the copies that still read it.
  if (staging_used_ > staging_bytes_ / 2) {
    synchronize();
    staging_used_ = staging_sent_ = 0;
  }
  workspace_used_ = 0;
  op_staging_ = 0;
}

void Context::begin_step() {
  drop_step();
  if (!is_idle_) synchronize();
  staging_used_ = staging_sent_ = 0;
  is_in_step_ = true;
}

void Context::end_step() {
  flush();
  is_in_step_ = false;
}

void Context::drop_step() {
  list_.clear();
  is_in_step_ = false;
}

void Context::flush() {
  if (!is_in_step_) return;
  send_staging();
  graphs_.launch(list_);
  list_.clear();
}

void Context::synchronize() {
  flush();
  runtime_.synchronize();
  is_idle_ = true;
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
  if (is_in_step_) return {runtime_.stream().handle, &list_};
  send_staging();
  return runtime_.stream();
}

void Context::send_staging() {
  if (staging_used_ > staging_sent_) {
    runtime_.copy_to_device(staging_device_ + staging_sent_, staging_host_ + staging_sent_,
                            staging_used_ - staging_sent_);
    staging_sent_ = staging_used_;
    is_idle_ = false;
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
  is_idle_ = true;
}

}  // namespace restkv::cuda

// Callback readers over four connections.
#include "tests/bench/grpc_reader.h"

#include <grpcpp/grpcpp.h>
#include <restkv/v1/inference.grpc.pb.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

namespace restkv {
namespace {

struct Totals {
  std::mutex mutex;
  std::condition_variable is_done;
  GrpcReading reading;
  int num_open = 0;
};

class Reader final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  Reader(v1::Inference::Stub& stub, const v1::GenerateRequest& request, Totals& totals)
      : request_(request), totals_(totals) {
    stub.async()->Generate(&context_, &request_, this);
    StartRead(&message_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    ++messages_;
    if (message_.has_usage()) tokens_ = message_.usage().completion_tokens();
    StartRead(&message_);
  }
  void OnDone(const grpc::Status& status) override {
    const std::lock_guard lock(totals_.mutex);
    totals_.reading.messages += messages_;
    totals_.reading.failures += !status.ok() || tokens_ != request_.max_tokens();
    if (--totals_.num_open == 0) totals_.is_done.notify_one();
  }

 private:
  grpc::ClientContext context_;
  v1::GenerateRequest request_;
  v1::GenerateResponse message_;
  Totals& totals_;
  int64_t messages_ = 0, tokens_ = 0;
};

}  // namespace

GrpcReading read_grpc(uint16_t port, int num_streams, int num_tokens) {
  constexpr int kConnections = 4;
  std::vector<std::unique_ptr<v1::Inference::Stub>> stubs;
  for (int i = 0; i < kConnections; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stubs.push_back(v1::Inference::NewStub(grpc::CreateCustomChannel(
        "127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials(), arguments)));
  }
  v1::GenerateRequest request;
  request.set_prompt("a");
  request.set_ignore_eos(true);
  request.set_max_tokens(num_tokens);
  Totals totals;
  totals.num_open = num_streams;
  std::vector<std::unique_ptr<Reader>> readers;
  for (int i = 0; i < num_streams; ++i)
    readers.push_back(
        std::make_unique<Reader>(*stubs[static_cast<size_t>(i % kConnections)], request, totals));
  std::unique_lock lock(totals.mutex);
  totals.is_done.wait(lock, [&] { return totals.num_open == 0; });
  return totals.reading;
}

}  // namespace restkv

// One reactor for all of them.
#include "server/grpc/unary_call.h"

#include "server/grpc/grpc_error.h"

namespace restkv {
namespace {

class UnaryCall final : public grpc::ServerUnaryReactor {
 public:
  UnaryCall(GrpcShared& shared, grpc::CallbackServerContext& context, const char* method)
      : shared_(shared),
        context_(context),
        method_(method),
        id_(request_id_of(context, *shared.serving)),
        arrival_(Clock::now()) {
    context.AddInitialMetadata("x-request-id", id_);
  }

  void run(std::function<Status(const Caller&)> work) {
    Serving& serving = *shared_.serving;
    const Result<Caller> caller = caller_of(context_, serving);
    if (!caller.ok()) return end(caller.status());
    caller_ = caller->name();
    const Status busy = serving.is_draining ? serving.check_room() : serving.check_workers();
    if (!busy.ok()) return end(busy);
    serving.post([this, caller = *caller, work = std::move(work)] {
      const Status status = work(caller);
      end(status);
    });
  }

  void OnDone() override { delete this; }

 private:
  void end(const Status& status) {
    const grpc::Status result = grpc_error(status);
    log_call(*shared_.serving, {.method = method_,
                                .id = id_,
                                .caller = caller_,
                                .status = result,
                                .arrival = arrival_,
                                .trace = trace_of(context_)});
    Finish(result);
  }

  GrpcShared& shared_;
  grpc::CallbackServerContext& context_;
  const char* method_;
  const std::string id_;
  std::string caller_;
  const Clock::time_point arrival_;
};

}  // namespace

grpc::ServerUnaryReactor* run_unary(GrpcShared& shared, grpc::CallbackServerContext& context,
                                    const char* method, std::function<Status(const Caller&)> work) {
  auto* call = new UnaryCall(shared, context, method);  // deletes itself when done
  call->run(std::move(work));
  return call;
}

}  // namespace restkv

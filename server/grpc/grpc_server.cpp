// Building, draining, ending.
#include "server/grpc/grpc_server.h"

#include <grpc/support/log.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/service_type.h>
#include <grpcpp/resource_quota.h>

#include <vector>

#include "server/config/logging.h"
#include "server/grpc/call_context.h"
#include "server/grpc/inference_service.h"
#include "server/grpc/open_inference_service.h"
#include "server/grpc/reflection_service.h"

namespace restkv {
namespace {

const char* const kInference = "restkv.v1.Inference";
const char* const kOpenInference = "inference.GRPCInferenceService";

std::string address_text(const std::string& host, int port) {
  const bool is_v6 = host.find(':') != std::string::npos;
  return (is_v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

// gRPC's own log lines join ours; what of them a user must know is in a Status already.
void log_line(gpr_log_func_args* line) { log_event(LogLevel::kDebug, "gRPC", {{"message", line->message}}); }

class CallbackServer final : public GrpcServer {
 public:
  explicit CallbackServer(std::shared_ptr<Serving> serving) { shared_.serving = std::move(serving); }
  ~CallbackServer() override { stop(); }

  Status listen(uint16_t port);
  uint16_t port() const override { return port_; }
  void drain() override;
  bool is_idle() const override { return shared_.ready->num_calls() <= shared_.num_waiting; }
  void stop() override;

 private:
  void set_limits(grpc::ServerBuilder& builder) const;

  GrpcShared shared_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<grpc::Server> server_;  // before what it serves goes
  uint16_t port_ = 0;
};

void CallbackServer::set_limits(grpc::ServerBuilder& builder) const {
  const GrpcSettings& settings = shared_.serving->settings.grpc;
  grpc::ResourceQuota quota("restkv");
  quota.Resize(static_cast<size_t>(settings.max_memory));
  builder.SetResourceQuota(quota);
  builder.SetMaxReceiveMessageSize(static_cast<int>(settings.max_message_size));
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, static_cast<int>(settings.max_metadata_size));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, settings.max_streams);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 64 << 10);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 2);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);  // finds clients that vanished
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  // A second server on the same port must fail, not share it.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
}

Status CallbackServer::listen(uint16_t port) {
  const GrpcSettings& settings = shared_.serving->settings.grpc;
  gpr_set_log_function(log_line);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  set_limits(builder);
  const std::string place = address_text(settings.host, port);
  int bound = 0;
  builder.AddListeningPort(place, grpc::InsecureServerCredentials(), &bound);
  services_.push_back(make_inference_service(shared_));
  services_.push_back(make_open_inference_service(shared_));
  services_.push_back(make_reflection_service(shared_, {kInference, kOpenInference, "grpc.health.v1.Health",
                                                        "grpc.reflection.v1alpha.ServerReflection"}));
  for (const auto& service : services_) builder.RegisterService(service.get());
  server_ = builder.BuildAndStart();
  if (!server_ || bound == 0) {
    return {StatusCode::kFailedPrecondition,
            "cannot listen for gRPC on " + place +
                ": the port is in use or not allowed; choose another with --grpc-port, or --no-grpc"};
  }
  port_ = static_cast<uint16_t>(bound);
  for (const char* name : {kInference, kOpenInference})
    server_->GetHealthCheckService()->SetServingStatus(name, true);
  return {};
}

void CallbackServer::drain() {
  shared_.serving->drain();
  if (server_) server_->GetHealthCheckService()->SetServingStatus(false);
}

void CallbackServer::stop() {
  if (!server_) return;
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
  server_.reset();  // all reactors are done
  shared_.ready->stop();
}

}  // namespace

Result<std::unique_ptr<GrpcServer>> GrpcServer::start(std::shared_ptr<Serving> serving, uint16_t port) {
  auto server = std::make_unique<CallbackServer>(std::move(serving));
  if (Status status = server->listen(port); !status.ok()) return status;
  return std::unique_ptr<GrpcServer>(std::move(server));
}

}  // namespace restkv

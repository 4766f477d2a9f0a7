// One request, one answer, in turns, until the client has closed its side.
#include "server/grpc/reflection_service.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <grpc/health/v1/health.pb.h>
#include <grpc/reflection/v1alpha/reflection.grpc.pb.h>

#include <set>

#include "server/grpc/grpc_error.h"

namespace restkv {
namespace {

namespace v1alpha = grpc::reflection::v1alpha;
using google::protobuf::DescriptorPool;
using google::protobuf::FileDescriptor;

// A file and all it imports, each once.
void add_files(const FileDescriptor& file, std::set<std::string>& seen,
               v1alpha::FileDescriptorResponse& out) {
  if (!seen.insert(file.name()).second) return;
  google::protobuf::FileDescriptorProto proto;
  file.CopyTo(&proto);
  out.add_file_descriptor_proto(proto.SerializeAsString());
  for (int i = 0; i < file.dependency_count(); ++i) add_files(*file.dependency(i), seen, out);
}

class ReflectionCall final
    : public grpc::ServerBidiReactor<v1alpha::ServerReflectionRequest, v1alpha::ServerReflectionResponse> {
 public:
  ReflectionCall(const std::vector<std::string>& services, const Status& refusal) : services_(services) {
    refusal.ok() ? StartRead(&request_) : Finish(grpc_error(refusal));
  }

  void OnReadDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::OK);
    response_.Clear();
    answer();
    StartWrite(&response_);
  }
  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::CANCELLED);
    request_.Clear();
    StartRead(&request_);
  }
  void OnDone() override { delete this; }

 private:
  void answer() {
    response_.set_valid_host(request_.host());
    *response_.mutable_original_request() = request_;
    const DescriptorPool& pool = *DescriptorPool::generated_pool();
    switch (request_.message_request_case()) {
      case v1alpha::ServerReflectionRequest::kListServices:
        for (const std::string& name : services_)
          response_.mutable_list_services_response()->add_service()->set_name(name);
        return;
      case v1alpha::ServerReflectionRequest::kFileByFilename:
        return answer_file(pool.FindFileByName(request_.file_by_filename()), "no such file");
      case v1alpha::ServerReflectionRequest::kFileContainingSymbol:
        return answer_file(pool.FindFileContainingSymbol(request_.file_containing_symbol()),
                           "no such symbol");
      case v1alpha::ServerReflectionRequest::kFileContainingExtension:
      case v1alpha::ServerReflectionRequest::kAllExtensionNumbersOfType:
        return answer_error(grpc::StatusCode::NOT_FOUND, "proto3 messages have no extensions");
      case v1alpha::ServerReflectionRequest::MESSAGE_REQUEST_NOT_SET: break;
    }
    answer_error(grpc::StatusCode::INVALID_ARGUMENT, "the request asks for nothing");
  }
  void answer_file(const FileDescriptor* file, const char* missing) {
    if (!file) return answer_error(grpc::StatusCode::NOT_FOUND, missing);
    std::set<std::string> seen;
    add_files(*file, seen, *response_.mutable_file_descriptor_response());
  }
  void answer_error(grpc::StatusCode code, const char* message) {
    response_.mutable_error_response()->set_error_code(code);
    response_.mutable_error_response()->set_error_message(message);
  }

  const std::vector<std::string>& services_;
  v1alpha::ServerReflectionRequest request_;
  v1alpha::ServerReflectionResponse response_;
};

class ReflectionService final : public v1alpha::ServerReflection::CallbackService {
 public:
  ReflectionService(GrpcShared& shared, std::vector<std::string> services)
      : shared_(shared), services_(std::move(services)) {
    // gRPC's own health service has no descriptors: this file's come from here, and must be linked.
    grpc::health::v1::HealthCheckRequest::descriptor();
  }
  grpc::ServerBidiReactor<v1alpha::ServerReflectionRequest, v1alpha::ServerReflectionResponse>*
  ServerReflectionInfo(grpc::CallbackServerContext* context) override {
    const Result<Caller> caller = caller_of(*context, *shared_.serving);
    return new ReflectionCall(services_, caller.status());  // deletes itself when done
  }

 private:
  GrpcShared& shared_;
  const std::vector<std::string> services_;
};

}  // namespace

std::unique_ptr<grpc::Service> make_reflection_service(GrpcShared& shared,
                                                       std::vector<std::string> services) {
  return std::make_unique<ReflectionService>(shared, std::move(services));
}

}  // namespace restkv

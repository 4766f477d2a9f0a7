// Status to grpc::Status.
#include "server/grpc/grpc_error.h"

#include <google/rpc/error_details.pb.h>

#include <string>

#include "server/openai/json_text.h"

namespace restkv {
namespace {

// Message and details travel as trailing metadata. A cut may leave half a code point, also one made where a name was shortened,
// and the readers of a proto's strings refuse such bytes.
std::string shown(const std::string& text) {
  constexpr size_t kMaxBytes = 1024;
  return valid_utf8(std::string_view(text).substr(0, kMaxBytes));
}

grpc::StatusCode code_of(StatusCode code) {
  switch (code) {
    case StatusCode::kOk: return grpc::StatusCode::OK;
    case StatusCode::kCancelled: return grpc::StatusCode::CANCELLED;
    case StatusCode::kInvalidArgument: return grpc::StatusCode::INVALID_ARGUMENT;
    case StatusCode::kDeadlineExceeded: return grpc::StatusCode::DEADLINE_EXCEEDED;
    case StatusCode::kNotFound: return grpc::StatusCode::NOT_FOUND;
    case StatusCode::kPermissionDenied: return grpc::StatusCode::PERMISSION_DENIED;
    case StatusCode::kUnauthenticated: return grpc::StatusCode::UNAUTHENTICATED;
    case StatusCode::kResourceExhausted: return grpc::StatusCode::RESOURCE_EXHAUSTED;
    case StatusCode::kFailedPrecondition: return grpc::StatusCode::FAILED_PRECONDITION;
    case StatusCode::kUnimplemented: return grpc::StatusCode::UNIMPLEMENTED;
    case StatusCode::kUnavailable: return grpc::StatusCode::UNAVAILABLE;
    case StatusCode::kInternal: return grpc::StatusCode::INTERNAL;
  }
  return grpc::StatusCode::INTERNAL;
}

}  // namespace

grpc::Status grpc_error(const Status& status, int64_t retry_after_s) {
  if (status.ok()) return grpc::Status::OK;
  const grpc::StatusCode code = code_of(status.code());
  const std::string message = shown(status.message());
  google::rpc::Status details;
  details.set_code(code);
  details.set_message(message);
  if (!status.reason().empty()) {
    google::rpc::ErrorInfo info;
    info.set_reason(status.reason());
    info.set_domain("restkv");
    details.add_details()->PackFrom(info);
  }
  if (!status.param().empty()) {
    google::rpc::BadRequest bad;
    auto* violation = bad.add_field_violations();
    violation->set_field(shown(status.param()));
    violation->set_description(message);
    details.add_details()->PackFrom(bad);
  }
  if (code == grpc::StatusCode::RESOURCE_EXHAUSTED || code == grpc::StatusCode::UNAVAILABLE) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(retry_after_s);
    details.add_details()->PackFrom(retry);
  }
  return {code, message, details.details_size() > 0 ? details.SerializeAsString() : std::string()};
}

}  // namespace restkv

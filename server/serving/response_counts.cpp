#include "server/serving/response_counts.h"

namespace restkv {
namespace {

constexpr std::string_view kGrpcCodes[] = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

}  // namespace

ResponseCounts::ResponseCounts() {
  for (const std::string_view path : {"/v1/completions", "/v1/chat/completions"}) {
    for (const int code : {200, 429, 500, 503}) counts_[{Protocol::kHttp, path, code}] = 0;
  }
}

void ResponseCounts::count(Protocol protocol, std::string_view path, int code) {
  const std::lock_guard lock(mutex_);
  ++counts_[{protocol, path, code}];
}

std::vector<ResponseCounts::Row> ResponseCounts::rows() const {
  std::vector<Row> rows;
  const std::lock_guard lock(mutex_);
  for (const auto& [key, count] : counts_) {
    const auto code = static_cast<size_t>(key.code);
    const bool is_grpc = key.protocol == Protocol::kGrpc;
    rows.push_back({.protocol = is_grpc ? "grpc" : "http",
                    .path = key.path,
                    .code = is_grpc && code < std::size(kGrpcCodes) ? std::string(kGrpcCodes[code])
                                                                    : std::to_string(key.code),
                    .count = count});
  }
  return rows;
}

}  // namespace restkv

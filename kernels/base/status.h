// Status and Result: how request and file errors travel. A Status says what went wrong in words a user can
// act on, which request field or file place it is about, and a stable reason string. Bugs are CHECKs
// (check.h), never a Status.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "kernels/base/check.h"

namespace restkv {

// gRPC's names, so that one table (server/) maps a code to gRPC and to HTTP.
enum class StatusCode {
  kOk,
  kCancelled,
  kInvalidArgument,
  kDeadlineExceeded,
  kNotFound,
  kPermissionDenied,
  kUnauthenticated,
  kResourceExhausted,  // only ever "later"
  kFailedPrecondition,
  kUnimplemented,
  kUnavailable,
  kInternal,
};

class [[nodiscard]] Status {
 public:
  Status() = default;  // ok
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }
  const std::string& param() const {
    return param_;
  }  // path of the field, e.g. "messages[2].content"; may be empty
  const std::string& reason() const { return reason_; }  // e.g. "context_length_exceeded"; may be empty

  Status&& with_param(std::string param) && {
    param_ = std::move(param);
    return std::move(*this);
  }
  Status&& with_reason(std::string reason) && {
    reason_ = std::move(reason);
    return std::move(*this);
  }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
  std::string param_;
  std::string reason_;
};

inline Status invalid_argument(std::string message) {
  return {StatusCode::kInvalidArgument, std::move(message)};
}
inline Status not_found(std::string message) { return {StatusCode::kNotFound, std::move(message)}; }
inline Status unimplemented(std::string message) { return {StatusCode::kUnimplemented, std::move(message)}; }

// A value or the Status that says why there is none.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT: implicit on purpose
  Result(Status status) : status_(std::move(status)) {
    CHECK(!status_.ok()) << "a Result needs a value or an error";
  }

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() & {
    CHECK(ok()) << status_.message();
    return *value_;
  }
  const T& value() const& {
    CHECK(ok()) << status_.message();
    return *value_;
  }
  T&& value() && {
    CHECK(ok()) << status_.message();
    return std::move(*value_);
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace restkv

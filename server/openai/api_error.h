// The one table from Status to what a client sees: HTTP status, OpenAI's error type and code.
//   {"error": {"message": ..., "type": ..., "param": ... | null, "code": ... | null}}
#pragma once

#include <string>

#include "kernels/base/status.h"

namespace restkv {

struct ApiError {
  int http_status = 500;
  std::string message;
  std::string type;   // "invalid_request_error"
  std::string param;  // empty: null
  std::string code;   // empty: null
};

ApiError api_error(const Status& status);
// For errors of HTTP itself (404, 405, 413, ...): the type follows from the status.
ApiError http_error(int http_status, std::string message, std::string code = {});
std::string error_body(const ApiError& error);

}  // namespace restkv

// GET /openapi.json: the HTTP API in OpenAPI 3.1, made of the tables that read requests, so that it cannot say something else.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "server/openai/field_table.h"

namespace restkv {

struct ApiOperation {
  std::string_view method;  // "POST"
  std::string_view path;    // "/v1/models/{id}"
  std::string_view summary;
  std::vector<FieldSpec> (*fields)() = nullptr;  // of the body; null: none
  std::string_view required = {};                // a field that must be there; empty: none
  std::string_view content_type = "application/json";
  bool is_public = false;
  std::string_view schema = {};  // JSON Schema members of the body that no field alone says
  std::vector<std::string_view> (*refused)() = nullptr;  // fields of other servers that are a 400 here
};

// What of the served model bounds a request.
struct ApiModel {
  std::string name;
  int64_t vocab_size = 0;
};

std::span<const ApiOperation> api_operations();
std::string openapi_document(std::string_view version, const ApiModel& model);

}  // namespace restkv

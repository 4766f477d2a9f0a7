// GET /v1/models and /v1/models/{id}.
#pragma once

#include <cstdint>
#include <string>

namespace restkv {

struct ModelCard {
  std::string id;
  int64_t created = 0;  // Unix seconds
  int64_t max_model_len = 0;
};

std::string model_body(const ModelCard& card);
std::string model_list_body(const ModelCard& card);

}  // namespace restkv

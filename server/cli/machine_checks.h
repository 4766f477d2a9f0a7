// What `restkv doctor` looks at, one function a finding. Each tells what was found and, unless all is well, what to do.
#pragma once

#include <string>
#include <vector>

#include "server/config/settings_loader.h"

namespace restkv {

inline constexpr int kSpareFiles = 64;  // that the server opens beside one for each connection

enum class FindingLevel : uint8_t { kOk, kWarning, kFailure };

struct Finding {
  std::string name;  // "memory"
  FindingLevel level = FindingLevel::kOk;
  std::string found;
  std::string todo = {};  // empty: nothing
};

Finding check_processor();
Finding check_memory();
std::vector<Finding> check_gpu();  // device, driver, CUDA
Finding check_port(const ServerSettings& settings);
Finding check_file_limit(const ServerSettings& settings);
Finding check_hub_cache(const ModelSettings& settings);
Finding check_certificates();
// Of MODEL, without downloading or loading it; no MODEL: what is on this machine.
Finding check_model(const ModelSettings& settings);
Finding check_config(const LoadedSettings& loaded);

}  // namespace restkv

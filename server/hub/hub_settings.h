// Where models come from and where they are kept, by the variables that Hugging Face's own tools read, so that both share
// one cache: HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT; beside
// them SSL_CERT_FILE, XDG_CACHE_HOME, HOME.
#pragma once

#include <chrono>
#include <filesystem>
#include <string>

#include "kernels/base/status.h"
#include "server/config/settings_loader.h"

namespace restkv {

struct HubSettings {
  std::string endpoint = "https://huggingface.co";  // without a slash at the end
  std::filesystem::path cache;                      // holds the folders models--ORG--REPO
  std::string token;                                // empty: nobody is logged in
  std::string certificates;                         // file of trusted certificates; empty: the system's
  bool offline = false;                             // nothing is asked of the hub
  std::chrono::seconds stall_timeout{30};           // a connection that brings nothing for so long is cut
  bool uses_proxy = true;                           // http_proxy and its kin are honoured
  int max_workers = 4;                              // files at the same time
};

// `cache_folder` wins over the environment; empty: the environment decides. Error: which variable and what is allowed.
Result<HubSettings> read_hub_settings(const Environment& environment, const std::string& cache_folder = {});

}  // namespace restkv

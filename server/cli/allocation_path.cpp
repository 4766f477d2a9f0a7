#include "server/cli/allocation_path.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <system_error>
#include <vector>

#include "engine/eviction/allocation_file.h"
#include "server/config/logging.h"
#include "server/config/options.h"

namespace restkv {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxBytes = 64 << 20;

std::vector<fs::path> places(const fs::path& model) {
  std::error_code error;
  const fs::path whole = model.lexically_normal();
  const fs::path name = (whole.has_filename() ? whole.filename() : whole.parent_path().filename());
  const fs::path file = name.string() + ".restkv.json";
  std::vector<fs::path> out = {allocation_path_beside(model.string()),
                               fs::path("configs/allocations") / file};
  // build/<preset>/bin/restkv of a source tree.
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (!error) {
    const fs::path root = program.parent_path().parent_path().parent_path().parent_path();
    out.push_back(root / "configs/allocations" / file);
  }
  return out;
}

}  // namespace

std::string allocation_path_beside(const std::string& model_path) {
  std::error_code error;
  if (fs::is_directory(model_path, error)) return (fs::path(model_path) / "restkv.json").string();
  return model_path + ".restkv.json";
}

Status apply_allocation(const Model& model, Settings& settings) {
  std::error_code error;
  fs::path path = settings.cache.allocation_file;
  if (path.empty()) {
    for (const fs::path& place : places(model.path)) {
      if (fs::is_regular_file(place, error)) {
        path = place;
        break;
      }
    }
  }
  if (!path.empty()) {
    const auto size = fs::file_size(path, error);
    std::ifstream file(path, std::ios::binary);
    if (error || !file) return not_found("cannot read the allocation file " + escape_text(path.string()));
    if (size > kMaxBytes) return invalid_argument("the allocation file has more than 64 MiB");
    const std::string text(std::istreambuf_iterator<char>(file), {});
    Result<AllocationTables> tables = parse_allocation(text, model.config);
    if (!tables.ok()) return invalid_argument(escape_text(path.string()) + ": " + tables.status().message());
    settings.engine.allocation = std::make_shared<const AllocationTables>(*std::move(tables));
    settings.cache.has_calibration = true;
    settings.cache.allocation_in_use = path.string();
  } else {
    settings.cache.has_calibration = false;
  }
  return resolve_cache_options(settings);
}

}  // namespace restkv

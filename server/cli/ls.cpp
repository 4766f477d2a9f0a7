// restkv ls: the snapshots of the hub's cache and the demo model.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "server/cli/model_path.h"
#include "server/cli/verbs.h"
#include "server/config/logging.h"
#include "server/config/quantity.h"
#include "server/hub/file_choice.h"
#include "server/hub/hub_cache.h"
#include "server/hub/hub_settings.h"

namespace restkv {
namespace {

using nlohmann::json;

// Something that a MODEL argument can name.
struct Row {
  std::string model = {}, kind = {}, revision = {}, path = {};
  json details = {};
  int64_t size = 0;
};

std::string joined(const std::vector<std::string>& words, std::string_view between) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : std::string(between)) + word;
  return text;
}

Row row_of(const CachedSnapshot& snapshot) {
  std::vector<std::string> quants;
  for (const std::string& file : snapshot.files) {
    if (!file.ends_with(".gguf")) continue;
    const std::string quant = quant_of_file(file).empty() ? file : quant_of_file(file);
    // the parts of one model follow each other
    if (quants.empty() || quants.back() != quant) quants.push_back(quant);
  }
  const bool has_weights =
      std::any_of(snapshot.files.begin(), snapshot.files.end(),
                  [](const std::string& file) { return file.ends_with(".safetensors"); });
  Row row{.model = snapshot.name.full(), .path = snapshot.path.string(), .size = snapshot.size};
  row.kind = has_weights ? "safetensors" : quants.empty() ? "no weights" : joined(quants, ",");
  row.revision =
      snapshot.commit.substr(0, 8) + (snapshot.refs.empty() ? "" : " (" + joined(snapshot.refs, ", ") + ")");
  row.details = {{"repo", row.model},     {"commit", snapshot.commit}, {"refs", snapshot.refs},
                 {"size", snapshot.size}, {"quants", quants},          {"files", snapshot.files},
                 {"path", row.path}};
  return row;
}

}  // namespace

int run_ls(const Invocation& invocation) {
  const Result<HubSettings> hub =
      read_hub_settings(process_environment(), invocation.settings().model.download_dir);
  if (!hub.ok()) return fail(hub.status());
  std::vector<Row> rows;
  std::error_code error;
  if (const std::string demo = demo_model_path(); std::filesystem::is_regular_file(demo, error)) {
    const auto size = static_cast<int64_t>(std::filesystem::file_size(demo, error));
    rows.push_back(
        {"demo", quant_of_file(demo), "-", demo, {{"repo", "demo"}, {"size", size}, {"path", demo}}, size});
  }
  for (const CachedSnapshot& snapshot : HubCache(hub->cache).list()) rows.push_back(row_of(snapshot));

  if (invocation.settings().output.json) {
    json models = json::array();
    for (Row& row : rows) models.push_back(std::move(row.details));
    const json all = {{"cache", hub->cache.string()}, {"models", std::move(models)}};
    std::printf("%s\n", all.dump(2, ' ', false, json::error_handler_t::replace).c_str());
    return kExitOk;
  }
  if (rows.empty()) {
    std::fprintf(stderr, "no models in %s; restkv pull ORG/REPO gets one\n",
                 escape_text(hub->cache.string()).c_str());
    return kExitOk;
  }
  size_t model_width = 5, kind_width = 4;
  for (const Row& row : rows) {
    model_width = std::max(model_width, row.model.size());
    kind_width = std::max(kind_width, std::min<size_t>(row.kind.size(), 40));
  }
  std::printf("%-*s  %-*s  %10s  %s\n", static_cast<int>(model_width), "MODEL", static_cast<int>(kind_width),
              "TYPE", "SIZE", "REVISION");
  for (const Row& row : rows) {
    std::printf("%-*s  %-*s  %10s  %s\n", static_cast<int>(model_width), row.model.c_str(),
                static_cast<int>(kind_width), escape_text(row.kind).c_str(),
                rounded_size_text(row.size).c_str(), escape_text(row.revision).c_str());
  }
  return kExitOk;
}

}  // namespace restkv

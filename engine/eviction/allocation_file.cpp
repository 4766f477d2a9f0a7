#include "engine/eviction/allocation_file.h"

#include <algorithm>
#include <cmath>

#include "engine/model/json_reader.h"

namespace restkv {
namespace {

using nlohmann::json;

constexpr size_t kMaxBudgets = 64;
constexpr double kMaxRows = 1 << 24;  // no head ever gets more

struct FingerprintField {
  const char* name;
  int64_t ModelConfig::*field;
};
constexpr FingerprintField kFingerprint[] = {
    {"L", &ModelConfig::num_layers}, {"K", &ModelConfig::num_kv_heads}, {"H", &ModelConfig::num_heads},
    {"D", &ModelConfig::head_dim},   {"M", &ModelConfig::hidden_size},  {"V", &ModelConfig::vocab_size}};

Status bad_file(const std::string& what) { return invalid_argument("allocation file: " + what); }

// A member of an object, or null.
const json* find(const json& object, const char* key) {
  const auto it = object.is_object() ? object.find(key) : object.end();
  return object.is_object() && it != object.end() ? &*it : nullptr;
}

Status check_fingerprint(const json& file, const ModelConfig& config) {
  const json* fingerprint = find(file, "fingerprint");
  if (!fingerprint) return bad_file("has no fingerprint");
  const json* arch = find(*fingerprint, "arch");
  if (!arch || !arch->is_string()) return bad_file("fingerprint.arch is missing");
  if (arch->get_ref<const std::string&>() != config.architecture)
    return bad_file("was made for another architecture; the model's is " + config.architecture);
  for (const FingerprintField& field : kFingerprint) {
    const json* value = find(*fingerprint, field.name);
    if (!value || !value->is_number_integer())
      return bad_file(std::string("fingerprint.") + field.name + " must be a whole number");
    if (!(*value == json(config.*field.field))) {
      return bad_file("was made for another model: " + std::string(field.name) + " is " + value->dump() +
                      ", the model's is " + std::to_string(config.*field.field));
    }
  }
  return {};
}

Result<AllocationTable> read_table(const json& object, const std::string& path, const ModelConfig& config) {
  AllocationTable table;
  const json* budgets = find(object, "budgets");
  const json* rows = find(object, "rows");
  if (!budgets || !budgets->is_array() || budgets->empty() || budgets->size() > kMaxBudgets)
    return bad_file(path + "budgets must be a list of 1 to " + std::to_string(kMaxBudgets) + " numbers");
  for (const json& budget : *budgets) {
    const int64_t least = table.budgets.empty() ? 1 : table.budgets.back() + 1;
    if (!budget.is_number_integer() || budget < least || budget > 1 << 20)
      return bad_file(path + "budgets must be whole numbers from 1 to 1048576, each above the one before");
    table.budgets.push_back(budget.get<int32_t>());
  }
  if (!rows || !rows->is_array() || rows->size() != table.budgets.size())
    return bad_file(path + "rows must have one entry for each budget");
  for (const json& layers : *rows) {
    if (!layers.is_array() || static_cast<int64_t>(layers.size()) != config.num_layers)
      return bad_file(path + "rows must have one list for each of " + std::to_string(config.num_layers) +
                      " layers");
    std::vector<double>& out = table.rows.emplace_back();
    for (const json& heads : layers) {
      if (!heads.is_array() || static_cast<int64_t>(heads.size()) != config.num_kv_heads)
        return bad_file(path + "rows must have " + std::to_string(config.num_kv_heads) +
                        " numbers for each layer");
      for (const json& value : heads) {
        if (!value.is_number() || !(value.get<double>() >= 0 && value.get<double>() <= kMaxRows))
          return bad_file(path + "rows must be numbers between 0 and 16777216");
        out.push_back(value.get<double>());
      }
    }
  }
  return table;
}

json rows_json(const AllocationTable& table, int64_t num_kv_heads) {
  json out = json::array();
  for (const std::vector<double>& rows : table.rows) {
    json layers = json::array();
    for (size_t i = 0; i < rows.size(); i += static_cast<size_t>(num_kv_heads)) {
      json heads = json::array();
      for (size_t h = i; h < i + static_cast<size_t>(num_kv_heads); ++h)
        heads.push_back(static_cast<int64_t>(std::llround(rows[h])));
      layers.push_back(std::move(heads));
    }
    out.push_back(std::move(layers));
  }
  return out;
}

}  // namespace

Result<AllocationTables> parse_allocation(std::string_view text, const ModelConfig& config) {
  JsonLimits limits;
  limits.max_depth = 8;
  const Result<json> file = parse_json(text, limits);
  if (!file.ok()) return bad_file(file.status().message());
  const json* version = find(*file, "version");
  if (!version || *version != 1) return bad_file("version must be 1");
  if (Status status = check_fingerprint(*file, config); !status.ok()) return status;
  const json* decode = find(*file, "decode");
  if (!decode || (*decode != "evict" && *decode != "grow")) return bad_file("decode must be evict or grow");
  Result<AllocationTable> table = read_table(*file, "", config);
  if (!table.ok()) return table.status();
  AllocationTables tables;
  tables.evict = tables.grow = *std::move(table);
  const char* other = *decode == "evict" ? "grow" : "evict";
  if (const json* object = find(*file, other)) {
    table = read_table(*object, std::string(other) + ".", config);
    if (!table.ok()) return table.status();
    (*decode == "evict" ? tables.grow : tables.evict) = *std::move(table);
  }
  tables.evict.decode = DecodeMode::kEvict;
  tables.grow.decode = DecodeMode::kGrow;
  return tables;
}

std::string allocation_json(const AllocationTables& tables, const ModelConfig& config,
                            const CalibrationNotes& notes) {
  nlohmann::ordered_json fingerprint = {{"arch", config.architecture}};
  for (const FingerprintField& field : kFingerprint) fingerprint[field.name] = config.*field.field;
  const nlohmann::ordered_json file = {
      {"version", 1},
      {"fingerprint", fingerprint},
      {"decode", "evict"},
      {"budgets", tables.evict.budgets},
      {"rows", rows_json(tables.evict, config.num_kv_heads)},
      {"grow", {{"budgets", tables.grow.budgets}, {"rows", rows_json(tables.grow, config.num_kv_heads)}}},
      {"texts", {{"count", notes.num_texts}, {"length", notes.text_len}}},
      {"settings",
       {{"policy", policy_name(notes.settings.policy)},
        {"window", notes.settings.window},
        {"sinks", notes.settings.sinks}}}};
  return file.dump() + "\n";
}

}  // namespace restkv

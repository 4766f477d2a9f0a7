// The files agree where they are right; tokenizer_config.json decides about BOS, the others add end tokens.
#include "engine/text/tokenizer_settings.h"

#include <algorithm>

#include "engine/model/json_reader.h"
#include "engine/text/json_steps.h"

namespace restkv {
namespace {

using nlohmann::json;

int32_t find_text(const Vocabulary& vocabulary, std::string_view text) {
  for (int32_t id = vocabulary.size() - 1; id >= 0; --id) {
    if (vocabulary.text(id) == text) return id;
  }
  return -1;
}

void set_around(std::vector<int32_t>* ids, int32_t id, bool wanted) {
  const bool there = std::find(ids->begin(), ids->end(), id) != ids->end();
  if (wanted && !there) ids->insert(ids->begin(), id);
  if (!wanted) std::erase(*ids, id);
}

// "eos_token_id": a number or a list of numbers. Those beyond the vocabulary are left out, as the engine does (hf_config.cpp):
// files of models whose vocabulary was cut have them.
Status add_end_ids(const json& config, const char* name, TokenizerParts* parts) {
  const auto found = config.find("eos_token_id");
  if (found == config.end() || found->is_null()) return {};
  const json list = found->is_array() ? *found : json::array({*found});
  for (const json& entry : list) {
    if (!entry.is_number_unsigned() || entry.get<uint64_t>() >= uint64_t{1} << 31)
      return invalid_argument(std::string(name) + ": eos_token_id is not a token id or a list of them");
    if (parts->vocabulary->contains(entry.get<int64_t>())) parts->eos_ids.push_back(entry.get<int32_t>());
  }
  return {};
}

}  // namespace

Result<json> parse_settings(const std::string& text, const char* name) {
  if (text.empty()) return json::object();
  constexpr JsonLimits kLimits{.max_depth = 64, .max_keys = 1'000'000, .allow_nul = true};
  Result<json> parsed = parse_json(text, kLimits);
  if (!parsed.ok()) return invalid_argument(std::string(name) + ": " + parsed.status().message());
  if (!parsed->is_object()) return invalid_argument(std::string(name) + " is not an object");
  return parsed;
}

std::optional<std::string> token_name(const json& value) {
  const json& text = value.is_object() ? json_member(value, "content") : value;
  return text.is_string() ? std::optional(text.get<std::string>()) : std::nullopt;
}

Status apply_settings(const TokenizerSettings& settings, TokenizerParts* parts) {
  const Result<json> config = parse_settings(settings.tokenizer_config, "tokenizer_config.json");
  if (!config.ok()) return config.status();
  const auto flag = [&](const char* key) -> std::optional<bool> {
    const auto found = config->find(key);
    if (found == config->end() || !found->is_boolean()) return std::nullopt;
    return found->get<bool>();
  };
  if (const auto name = token_name(json_member(*config, "bos_token"))) {
    const int32_t id = find_text(*parts->vocabulary, *name);
    if (id < 0) return invalid_argument("tokenizer_config.json: bos_token is not in the vocabulary");
    std::replace(parts->prefix_ids.begin(), parts->prefix_ids.end(), parts->bos_id, id);
    parts->bos_id = id;
  }
  int32_t eos_id = parts->eos_ids.empty() ? -1 : parts->eos_ids.front();
  if (const auto name = token_name(json_member(*config, "eos_token"))) {
    eos_id = find_text(*parts->vocabulary, *name);
    if (eos_id < 0) return invalid_argument("tokenizer_config.json: eos_token is not in the vocabulary");
    parts->eos_ids.push_back(eos_id);
  }
  if (const auto wanted = flag("add_bos_token"); wanted && parts->bos_id >= 0) {
    set_around(&parts->prefix_ids, parts->bos_id, *wanted);
  }
  if (const auto wanted = flag("add_eos_token"); wanted && eos_id >= 0) {
    set_around(&parts->suffix_ids, eos_id, *wanted);
  }
  const Result<json> generation = parse_settings(settings.generation_config, "generation_config.json");
  if (!generation.ok()) return generation.status();
  if (Status status = add_end_ids(*generation, "generation_config.json", parts); !status.ok()) return status;
  const Result<json> model = parse_settings(settings.model_config, "config.json");
  if (!model.ok()) return model.status();
  return add_end_ids(*model, "config.json", parts);
}

}  // namespace restkv

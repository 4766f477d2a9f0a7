// Settings as documents made from the option table: the YAML of `config show` and the JSON schema of `config
// schema`.
#include <algorithm>
#include <array>

#include <nlohmann/json.hpp>

#include "server/config/settings_loader.h"

namespace restkv {
namespace {

using Json = nlohmann::ordered_json;

// As a YAML scalar: numbers, sizes, durations and plain words as they are, all else in single quotes, or in double ones
// where there is a byte that only an escape can carry.
std::string yaml_scalar(const Option& option, const std::string& text) {
  return option.type == OptionType::kString || option.type == OptionType::kPath ? yaml_text(text) : text;
}

Json schema_of(const Option& option) {
  Json schema;
  const bool is_whole = option.type == OptionType::kInt || option.type == OptionType::kSize;
  const auto bound = [&](double value) { return is_whole ? Json(static_cast<int64_t>(value)) : Json(value); };
  // Strings beside numbers: human numbers (32k) and ${VARIABLE}.
  switch (option.type) {
    case OptionType::kBool: schema["type"] = {"boolean", "string"}; break;
    case OptionType::kInt:
    case OptionType::kSize: schema["type"] = {"integer", "string"}; break;
    case OptionType::kFloat: schema["type"] = {"number", "string"}; break;
    case OptionType::kDuration: schema["type"] = {"number", "string"}; break;
    case OptionType::kEnum: schema["enum"] = option.choices; break;
    case OptionType::kString:
    case OptionType::kPath: schema["type"] = "string"; break;
    case OptionType::kIntList: schema["type"] = "string"; break;
  }
  if (is_whole || option.type == OptionType::kFloat) {
    schema["minimum"] = bound(option.min);
    schema["maximum"] = bound(option.max);
  } else if (option.type == OptionType::kDuration) {  // bare numbers are seconds
    schema["minimum"] = option.min / 1000;
    schema["maximum"] = option.max / 1000;
  }
  Settings defaults;
  const std::string text = default_text(option);
  const bool is_optional = std::holds_alternative<std::optional<std::string>* (*)(Settings&)>(option.field) ||
                           std::holds_alternative<std::optional<int64_t>* (*)(Settings&)>(option.field) ||
                           std::holds_alternative<std::optional<double>* (*)(Settings&)>(option.field);
  if (is_optional) {
    // Nothing unless given: there is no default to write down.
  } else if (option.type == OptionType::kBool) {
    schema["default"] = text == "true";
  } else if (const auto* field = std::get_if<double* (*)(Settings&)>(&option.field)) {
    schema["default"] = *(*field)(defaults);
  } else if (option.type == OptionType::kInt) {
    schema["default"] = std::stoll(text);
  } else {
    schema["default"] = text;
  }
  schema["description"] = std::string(option.help) + ". Flag --" + std::string(option.flag) +
                          ", environment " + environment_name(option) + ".";
  return schema;
}

// What cache.profiles may hold.
Json profiles_schema() {
  Json names = {{"type", "array"}, {"items", {{"type", "string"}}}, {"minItems", 1}};
  Json tokens = {{"type", {"integer", "string"}}, {"minimum", 0}};
  Json properties;
  for (const Option& option : option_table())
    if (is_cache_field(option)) properties[std::string(option.key)] = schema_of(option);
  properties["api_keys"] = names;
  properties["api_keys"]["description"] = "Names of the API keys that get this profile.";
  properties["models"] = names;
  properties["models"]["description"] = "Served models that get this profile.";
  properties["min_prompt"] = tokens;
  properties["min_prompt"]["description"] = "Shortest prompt that gets this profile, in tokens.";
  properties["max_prompt"] = tokens;
  properties["max_prompt"]["description"] = "Longest prompt that gets this profile, in tokens.";
  return {
      {"type", {"object", "null"}},
      {"description",
       "Named settings. A request names one (cache.profile), or gets the first whose conditions all hold."},
      {"additionalProperties",
       {{"type", "object"}, {"additionalProperties", false}, {"properties", properties}}}};
}

}  // namespace

std::string yaml_text(const std::string& text) {
  const auto is_control = [](char byte) { return static_cast<unsigned char>(byte) < 0x20 || byte == 0x7f; };
  const bool is_escaped = std::any_of(text.begin(), text.end(), is_control);
  const char quote = is_escaped ? '"' : '\'';
  std::string out(1, quote);
  for (size_t i = 0; i < text.size(); ++i) {
    const char byte = text[i];
    if (byte == quote || (is_escaped && byte == '\\')) out += is_escaped ? '\\' : '\'';
    if (text.compare(i, 2, "${") == 0) out += '$';  // stays the characters
    if (is_control(byte)) {
      out += "\\x";
      out += "0123456789abcdef"[byte >> 4];
      out += "0123456789abcdef"[byte & 15];
    } else {
      out += byte;
    }
  }
  return out + quote;
}

std::string settings_yaml(const LoadedSettings& loaded) {
  static constexpr std::array<std::string_view, 4> kSources = {"default", "file", "environment", "flag"};
  std::string out = "version: 1\n";
  for (const std::string_view section : yaml_sections()) {
    out += "\n" + std::string(section) + ":\n";
    for (size_t row = 0; row < option_table().size(); ++row) {
      const Option& option = option_table()[row];
      if (option.section != section) continue;
      const std::string text = option_text(option, loaded.settings);
      // Text options have no spelling for "not set", so they are shown as a comment then.
      std::string line = text.empty() ? "  # " + std::string(option.key) + ":"
                                      : "  " + std::string(option.key) + ": " + yaml_scalar(option, text);
      line.resize(std::max<size_t>(line.size() + 2, 40), ' ');
      out += line + "# " + std::string(kSources[static_cast<size_t>(loaded.sources[row])]) + "\n";
    }
    if (section != "cache" || loaded.settings.cache.profiles.empty()) continue;
    out += "  profiles:\n";
    for (const CacheProfile& profile : loaded.settings.cache.profiles) {
      out += "    " + yaml_text(profile.name) + ":" + (profile.given.empty() ? " {}" : "") + "\n";
      for (const auto& [key, text] : profile.given) out += "      " + key + ": " + text + "\n";
    }
  }
  return out;
}

std::string settings_schema() {
  Json schema;
  schema["$schema"] = "https://json-schema.org/draft/2020-12/schema";
  schema["title"] = "RestKV settings";
  schema["type"] = "object";
  schema["additionalProperties"] = false;
  schema["required"] = {"version"};
  schema["properties"]["version"] = {{"const", 1}, {"description", "Version of this file's form."}};
  for (const std::string_view section : yaml_sections()) {
    Json properties;
    for (const Option& option : option_table()) {
      if (option.section == section) properties[std::string(option.key)] = schema_of(option);
    }
    if (section == "cache") properties["profiles"] = profiles_schema();
    schema["properties"][std::string(section)] = {
        {"type", {"object", "null"}}, {"additionalProperties", false}, {"properties", properties}};
  }
  return schema.dump(2) + "\n";
}

}  // namespace restkv

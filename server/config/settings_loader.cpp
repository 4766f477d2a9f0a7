// Flags over environment over YAML over defaults.
#include "server/config/settings_loader.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <tuple>

#include "server/config/logging.h"
#include "server/config/nearest_name.h"
#include "server/config/yaml_tree.h"

namespace restkv {
namespace {

constexpr std::string_view kVersion = "1";

size_t row_of(const Option& option) { return static_cast<size_t>(&option - option_table().data()); }

// Turns one document into settings. Errors are collected in `errors`.
class YamlReader {
 public:
  YamlReader(const Environment& environment, LoadedSettings& loaded, std::vector<YamlError>& errors)
      : environment_(environment), loaded_(loaded), errors_(errors), is_whole_(errors.empty()) {}

  void read_document(const YamlNode& root) {
    if (!is_whole_ && root.kind == YamlNode::Kind::kNull) return;
    if (root.kind != YamlNode::Kind::kMap) {
      report(root.place, "expected sections (" + section_list() + ")");
      return;
    }
    bool has_version = false;
    for (size_t i = 0; i < root.items.size(); ++i) {
      const auto& [key, place] = root.keys[i];
      if (key == "version") {
        has_version = true;
        check_version(root.items[i]);
      } else {
        read_section(key, place, root.items[i]);
      }
    }
    if (!has_version && is_whole_)
      report(root.place, "the key 'version' is missing (add a first line 'version: 1')");
  }

 private:
  void report(YamlPlace place, std::string message) { errors_.push_back({place, std::move(message)}); }

  static std::string section_list() {
    std::string list;
    for (const std::string_view section : yaml_sections()) {
      list += (list.empty() ? "" : ", ") + std::string(section);
    }
    return list;
  }

  void check_version(const YamlNode& value) {
    if (value.kind == YamlNode::Kind::kScalar && value.text == kVersion) return;
    report(value.place, "version: " + quote_text(value.text) + " is not known, this program reads version 1");
  }

  void read_section(const std::string& section, YamlPlace place, const YamlNode& value) {
    std::vector<std::string_view> sections = yaml_sections();
    if (std::find(sections.begin(), sections.end(), section) == sections.end()) {
      sections.push_back("version");
      report(place, "unknown section " + quote_text(section) + home_of(section, {}, sections));
      return;
    }
    if (value.kind == YamlNode::Kind::kNull) return;  // "server:" with everything commented out
    if (value.kind != YamlNode::Kind::kMap) {
      report(value.place, section + ": expected keys and values");
      return;
    }
    std::vector<const Option*> seen;
    for (size_t i = 0; i < value.items.size(); ++i) {
      const auto& [key, key_place] = value.keys[i];
      const Option* option = find_key(section, key);
      if (section == "cache" && key == "profiles") {
        read_profiles(value.items[i]);
      } else if (option == nullptr) {
        report_unknown(section, key, key_place);
      } else if (std::find(seen.begin(), seen.end(), option) !=
                 seen.end()) {  // max-headers beside max_headers
        report(key_place, "duplicate key " + quote_text(key) + " in " + section);
      } else {
        seen.push_back(option);
        read_value(*option, key_place, value.items[i]);
      }
    }
  }

  void read_profiles(const YamlNode& profiles) {
    if (profiles.kind == YamlNode::Kind::kNull) return;
    if (profiles.kind != YamlNode::Kind::kMap) {
      report(profiles.place, "cache.profiles: expected names, each with settings");
      return;
    }
    for (size_t i = 0; i < profiles.items.size(); ++i) {
      const auto& [name, place] = profiles.keys[i];
      const bool is_name =
          !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](char c) {
            return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
                   c == '-' || c == '.';
          });
      if (!is_name) {
        report(place, "cache.profiles: a name has 1 to 64 letters, digits, '_', '-' and '.'");
      } else if (profiles.items[i].kind != YamlNode::Kind::kMap) {
        report(profiles.items[i].place, "cache.profiles." + name + ": expected keys and values");
      } else {
        read_profile(name, profiles.items[i]);
      }
    }
  }

  void read_profile(const std::string& name, const YamlNode& node) {
    CacheProfile profile;
    profile.name = name;
    Settings given;  // its cache fields alone are used
    for (size_t i = 0; i < node.items.size(); ++i) {
      const auto& [key, place] = node.keys[i];
      const YamlNode& value = node.items[i];
      const std::string path = "cache.profiles." + name + "." + key + ": ";
      if (key == "api_keys" || key == "models") {
        std::vector<std::string>& names = key == "models" ? profile.models : profile.api_keys;
        const bool is_list = value.kind == YamlNode::Kind::kList && !value.items.empty();
        if (!is_list) report(value.place, path + "expected a list of names");
        std::string shown;
        for (const YamlNode& item : value.items) {
          if (item.kind != YamlNode::Kind::kScalar) report(item.place, path + "expected a name");
          names.push_back(item.text);
          shown += (shown.empty() ? "" : ", ") + yaml_text(item.text);
        }
        profile.given.emplace_back(key, "[" + shown + "]");
        continue;
      }
      if (value.kind != YamlNode::Kind::kScalar) {
        report(value.place, path + "expected one value");
        continue;
      }
      const Result<std::string> text = expand_variables(value.text, environment_);
      if (!text.ok()) {
        report(value.place, path + text.status().message());
        continue;
      }
      if (key == "min_prompt" || key == "max_prompt") {
        int64_t tokens = 0;
        const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), tokens);
        if (error != std::errc() || end != text->data() + text->size() || tokens < 0) {
          report(value.place, path + quote_text(*text) + " is not a number of tokens");
        }
        (key == "min_prompt" ? profile.min_prompt : profile.max_prompt) = tokens;
        profile.given.emplace_back(key, *text);
        continue;
      }
      const Option* option = find_key("cache", key);
      if (option == nullptr || !is_cache_field(*option)) {
        std::vector<std::string_view> keys = {"api_keys", "models", "min_prompt", "max_prompt"};
        for (const Option& row : option_table())
          if (is_cache_field(row)) keys.push_back(row.key);
        report(place,
               "unknown key " + quote_text(key) + " in cache.profiles." + name + suggestion(key, keys));
        continue;
      }
      if (Status status = set_option(*option, *text, given); !status.ok()) {
        report(value.place, path + status.message());
        continue;
      }
      profile.given.emplace_back(key, option->type == OptionType::kString ? yaml_text(*text) : *text);
    }
    profile.cache = given.cache.defaults;
    if (!given.cache.probe.empty()) profile.cache.probe = probe_named(given.cache.probe);
    loaded_.settings.cache.profiles.push_back(std::move(profile));
  }

  void report_unknown(const std::string& section, const std::string& key, YamlPlace place) {
    std::vector<std::string_view> keys;
    for (const Option& option : option_table()) {
      if (option.section == section) keys.push_back(option.key);
    }
    report(place, "unknown key " + quote_text(key) + " in " + section + home_of(key, section, keys));
  }

  // Where a key that is not at home here may belong: the nearest name here, the same key in another section,
  // or the option one of whose flags has that name.
  static std::string home_of(std::string_view key, std::string_view section,
                             const std::vector<std::string_view>& names) {
    if (std::string near = suggestion(key, names); !near.empty()) return near;
    for (const Option& option : option_table()) {
      if (!option.section.empty() && option.key == key)
        return " (it belongs to " + std::string(option.section) + ")";
    }
    const Option* option = find_flag(key);
    if (option == nullptr || option->section.empty()) return {};
    if (option->section == section) return " (did you mean '" + std::string(option->key) + "'?)";
    return " (did you mean '" + std::string(option->key) + "' in " + std::string(option->section) + "?)";
  }

  void read_value(const Option& option, YamlPlace key_place, const YamlNode& value) {
    const std::string path = std::string(option.section) + "." + std::string(option.key) + ": ";
    std::string text = value.text;
    switch (value.kind) {
      case YamlNode::Kind::kNull:
        report(key_place, path + "has no value; leave the key out for the default");
        return;
      case YamlNode::Kind::kMap: report(value.place, path + "expected one value, found keys"); return;
      case YamlNode::Kind::kList: report(value.place, path + "expected one value, found a list"); return;
      case YamlNode::Kind::kScalar: break;
    }
    Result<std::string> expanded = expand_variables(text, environment_);
    if (!expanded.ok()) {
      report(value.place, path + expanded.status().message());
      return;
    }
    if (Status status = set_option(option, *expanded, loaded_.settings); !status.ok()) {
      report(value.place, path + status.message());
      return;
    }
    loaded_.sources[row_of(option)] = SettingSource::kYaml;
  }

  const Environment& environment_;
  LoadedSettings& loaded_;
  std::vector<YamlError>& errors_;
  bool is_whole_;  // no error of syntax cut the tree
};

}  // namespace

Environment process_environment() {
  return [](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    if (value == nullptr || *value == '\0') return std::nullopt;
    return value;
  };
}

Result<std::string> expand_variables(std::string_view text, const Environment& environment) {
  std::string out;
  while (!text.empty()) {
    if (text.starts_with("$${")) {
      out += "${";
      text.remove_prefix(3);
    } else if (text.starts_with("${")) {
      const size_t end = text.find('}');
      if (end == std::string_view::npos)
        return invalid_argument("'${' without a '}' (write '$${' for the characters)");
      const std::string_view inside = text.substr(2, end - 2);
      const size_t colon = inside.find(":-");
      const std::string name(inside.substr(0, colon));
      text.remove_prefix(end + 1);
      if (const std::optional<std::string> value = environment(name)) {
        out += *value;
      } else if (colon != std::string_view::npos) {
        out += inside.substr(colon + 2);
      } else {
        return invalid_argument("the environment variable " + quote_text(name) + " is not set (write ${" +
                                escape_text(name.substr(0, 64)) + ":-default} to allow that)");
      }
    } else {
      out += text.front();
      text.remove_prefix(1);
    }
  }
  return out;
}

void apply_yaml(std::string_view text, const std::string& name, const Environment& environment,
                LoadedSettings& loaded) {
  loaded.sources.resize(option_table().size(), SettingSource::kDefault);
  std::vector<YamlError> errors;
  const YamlNode root = parse_yaml(text, errors);
  YamlReader(environment, loaded, errors).read_document(root);
  std::stable_sort(errors.begin(), errors.end(), [](const YamlError& a, const YamlError& b) {
    return std::tie(a.place.line, a.place.column) < std::tie(b.place.line, b.place.column);
  });
  for (const YamlError& error : errors) {
    loaded.errors.push_back(name + ":" + std::to_string(error.place.line) + ":" +
                            std::to_string(error.place.column) + ": " + error.message);
  }
}

void apply_yaml_file(const std::string& path, const Environment& environment, LoadedSettings& loaded) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    loaded.errors.push_back(path + ": cannot open this configuration file");
    return;
  }
  std::string text(kMaxYamlBytes + 1, '\0');  // one byte more than allowed: a longer file is seen as such
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad()) {
    loaded.errors.push_back(path + ": cannot read this configuration file");
    return;
  }
  text.resize(static_cast<size_t>(file.gcount()));
  apply_yaml(text, path, environment, loaded);
}

namespace {

// RESTKV_API_KEY is the one variable that may hold a key itself, as containers are given it: then it is the source by name.
std::string key_source(const std::string& value, const std::string& name) {
  const bool is_source = value.starts_with("env:") || std::ifstream(value).is_open();
  return is_source ? value : "env:" + name;
}

// What Kubernetes puts into every pod beside a Service called restkv: RESTKV_PORT=tcp://10.96.0.7:8000. No setting of anybody's.
bool is_service_link(const Option& option, const std::string& value) {
  return option.flag == "port" && value.starts_with("tcp://");
}

}  // namespace

LoadedSettings load_settings(Verb verb, const std::vector<FlagValue>& flags, const Environment& environment) {
  LoadedSettings loaded;
  loaded.sources.resize(option_table().size(), SettingSource::kDefault);
  const auto set = [&](const Option& option, const std::string& place, const std::string& text,
                       SettingSource source) {
    if (Status status = set_option(option, text, loaded.settings); !status.ok()) {
      loaded.errors.push_back(place + ": " + status.message());
      return;
    }
    loaded.sources[row_of(option)] = source;
  };

  const Option& config = *find_flag("config");
  if (config.verbs & verb) {
    std::optional<std::string> path = environment(environment_name(config));
    for (const FlagValue& flag : flags) {
      if (flag.option == &config) path = flag.text;
    }
    if (path) apply_yaml_file(*path, environment, loaded);
  }
  for (const Option& option : option_table()) {
    const bool is_taken = (option.verbs & verb) != 0 || (verb == kConfig && !option.section.empty());
    const std::string name = environment_name(option);
    if (!is_taken) continue;
    if (const auto value = environment(name); value && !is_service_link(option, *value)) {
      set(option, name, option.flag == "api-key" ? key_source(*value, name) : *value,
          SettingSource::kEnvironment);
    }
  }
  for (const FlagValue& flag : flags) set(*flag.option, flag.spelling, flag.text, SettingSource::kFlag);
  return loaded;
}

}  // namespace restkv

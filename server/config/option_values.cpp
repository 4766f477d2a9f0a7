// Looking rows of the option table up, and text to value and back by the row's type.
#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <charconv>

#include "server/config/logging.h"
#include "server/config/nearest_name.h"
#include "server/config/options.h"
#include "server/config/quantity.h"

namespace restkv {
namespace {

std::string with_replaced(std::string_view text, char from, char to) {
  std::string result(text);
  std::replace(result.begin(), result.end(), from, to);
  return result;
}

std::string bound_text(const Option& option, double bound) {
  switch (option.type) {
    case OptionType::kSize: return size_text(static_cast<int64_t>(bound));
    case OptionType::kDuration: return duration_text(milliseconds(static_cast<int64_t>(bound)));
    case OptionType::kFloat: return shortest_text(bound);
    default: return std::to_string(static_cast<int64_t>(bound));
  }
}

Status check_bounds(const Option& option, double value, std::string_view text) {
  if (value >= option.min && value <= option.max) return {};
  return invalid_argument(escape_text(text.substr(0, 64)) + " is out of bounds (" +
                          bound_text(option, option.min) + " to " + bound_text(option, option.max) + ")");
}

Result<bool> parse_bool(std::string_view text) {
  for (const std::string_view yes : {"true", "yes", "on", "1"}) {
    if (text == yes) return true;
  }
  for (const std::string_view no : {"false", "no", "off", "0"}) {
    if (text == no) return false;
  }
  return invalid_argument(quote_text(text) + " is neither true nor false");
}

// Visitors over OptionField: one overload a C++ type. `set_option` has looked at the row's type already where
// one C++ type stands for two (int64_t: count or size).
struct SetValue {
  const Option& option;
  std::string_view text;
  Settings& settings;

  Status operator()(bool* (*field)(Settings&)) const {
    const Result<bool> value = parse_bool(text);
    if (!value.ok()) return value.status();
    *field(settings) = *value;
    return {};
  }
  Status operator()(int32_t* (*field)(Settings&)) const { return set_integer(field); }
  Status operator()(int64_t* (*field)(Settings&)) const { return set_integer(field); }
  Status operator()(double* (*field)(Settings&)) const {
    const Result<double> value = parse_number(text);
    if (!value.ok()) return value.status();
    if (Status status = check_bounds(option, *value, text); !status.ok()) return status;
    *field(settings) = *value;
    return {};
  }
  Status operator()(milliseconds* (*field)(Settings&)) const {
    const Result<milliseconds> value = parse_duration(text);
    if (!value.ok()) return value.status();
    if (Status status = check_bounds(option, static_cast<double>(value->count()), text); !status.ok())
      return status;
    *field(settings) = *value;
    return {};
  }
  Status operator()(std::string* (*field)(Settings&)) const {
    if (text.empty()) return invalid_argument("needs a value");
    if (text.find('\0') != std::string_view::npos) return invalid_argument("has a NUL byte");
    *field(settings) = text;
    return {};
  }
  Status operator()(std::vector<int32_t>* (*field)(Settings&)) const {
    std::vector<int32_t> values;
    for (std::string_view rest = text; !rest.empty();) {
      std::string_view item = rest.substr(0, rest.find(','));
      rest.remove_prefix(std::min(rest.size(), item.size() + 1));
      while (!item.empty() && item.front() == ' ') item.remove_prefix(1);
      while (!item.empty() && item.back() == ' ') item.remove_suffix(1);
      int64_t value = 0;
      const auto [end, error] = std::from_chars(item.data(), item.data() + item.size(), value);
      if (item.empty() || error != std::errc{} || end != item.data() + item.size()) {
        return invalid_argument(quote_text(item) + " is not a whole number (example of a list: 1,2,3)");
      }
      if (Status status = check_bounds(option, static_cast<double>(value), item); !status.ok()) return status;
      values.push_back(static_cast<int32_t>(value));
    }
    if (values.empty()) return invalid_argument("needs at least one number (example: 1,2,3)");
    *field(settings) = std::move(values);
    return {};
  }
  Status operator()(const EnumField& field) const {
    const auto found = std::find(option.choices.begin(), option.choices.end(), text);
    if (found != option.choices.end()) {
      field.set(settings, static_cast<size_t>(found - option.choices.begin()));
      return {};
    }
    return not_a_choice();
  }

  Status operator()(std::optional<std::string>* (*field)(Settings&)) const {
    const auto found = std::find(option.choices.begin(), option.choices.end(), text);
    if (found == option.choices.end()) return not_a_choice();
    *field(settings) = std::string(text);
    return {};
  }
  Status operator()(std::optional<int64_t>* (*field)(Settings&)) const { return set_integer(field); }
  Status operator()(std::optional<double>* (*field)(Settings&)) const {
    const Result<double> value = parse_number(text);
    if (!value.ok()) return value.status();
    if (Status status = check_bounds(option, *value, text); !status.ok()) return status;
    *field(settings) = *value;
    return {};
  }

  Status not_a_choice() const {
    std::string list;
    for (const std::string_view choice : option.choices) {
      list += (list.empty() ? "" : ", ") + std::string(choice);
    }
    return invalid_argument(quote_text(text) + " is not one of " + list + suggestion(text, option.choices));
  }
  template <class T>
  Status set_integer(T* (*field)(Settings&)) const {
    const Result<int64_t> value = option.type == OptionType::kSize ? parse_size(text) : parse_count(text);
    if (!value.ok()) return value.status();
    if (Status status = check_bounds(option, static_cast<double>(*value), text); !status.ok()) return status;
    *field(settings) = T(*value);
    return {};
  }
};

struct ValueText {
  const Option& option;
  Settings& settings;

  std::string operator()(bool* (*field)(Settings&)) const { return *field(settings) ? "true" : "false"; }
  std::string operator()(int32_t* (*field)(Settings&)) const { return integer_text(*field(settings)); }
  std::string operator()(int64_t* (*field)(Settings&)) const { return integer_text(*field(settings)); }
  std::string operator()(double* (*field)(Settings&)) const { return shortest_text(*field(settings)); }
  std::string operator()(milliseconds* (*field)(Settings&)) const { return duration_text(*field(settings)); }
  std::string operator()(std::string* (*field)(Settings&)) const { return *field(settings); }
  std::string operator()(std::vector<int32_t>* (*field)(Settings&)) const {
    std::string list;
    for (const int32_t value : *field(settings)) list += (list.empty() ? "" : ",") + std::to_string(value);
    return list;
  }
  std::string operator()(const EnumField& field) const {
    return std::string(option.choices[field.get(settings)]);
  }

  std::string operator()(std::optional<std::string>* (*field)(Settings&)) const {
    return field(settings)->value_or("");
  }
  std::string operator()(std::optional<int64_t>* (*field)(Settings&)) const {
    const std::optional<int64_t>& value = *field(settings);
    return value ? integer_text(*value) : "";
  }
  std::string operator()(std::optional<double>* (*field)(Settings&)) const {
    const std::optional<double>& value = *field(settings);
    return value ? shortest_text(*value) : "";
  }

  std::string integer_text(int64_t value) const {
    return option.type == OptionType::kSize ? size_text(value) : std::to_string(value);
  }
};

}  // namespace

const Option* find_flag(std::string_view flag) {
  const std::string name = with_replaced(flag, '_', '-');
  for (const Option& option : option_table()) {
    if (option.flag == name) return &option;
    if (std::find(option.aliases.begin(), option.aliases.end(), name) != option.aliases.end()) return &option;
  }
  return nullptr;
}

const Option* find_key(std::string_view section, std::string_view key) {
  const std::string name = with_replaced(key, '-', '_');
  for (const Option& option : option_table()) {
    if (!option.section.empty() && option.section == section && option.key == name) return &option;
  }
  return nullptr;
}

std::string environment_name(const Option& option) {
  std::string name = "RESTKV_" + with_replaced(option.flag, '-', '_');
  for (char& c : name) {
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  }
  return name;
}

std::vector<std::string_view> yaml_sections() {
  std::vector<std::string_view> sections;
  for (const Option& option : option_table()) {
    if (option.section.empty()) continue;
    if (std::find(sections.begin(), sections.end(), option.section) == sections.end()) {
      sections.push_back(option.section);
    }
  }
  return sections;
}

Status set_option(const Option& option, std::string_view text, Settings& settings) {
  return std::visit(SetValue{option, text, settings}, option.field);
}

std::string option_text(const Option& option, const Settings& settings) {
  Settings copy = settings;  // the accessors give mutable places
  return std::visit(ValueText{option, copy}, option.field);
}

std::string default_text(const Option& option) { return option_text(option, Settings{}); }

bool is_cache_field(const Option& option) {
  return option.section == "cache" &&
         (option.key == "probe" ||
          std::holds_alternative<std::optional<std::string>* (*)(Settings&)>(option.field) ||
          std::holds_alternative<std::optional<int64_t>* (*)(Settings&)>(option.field) ||
          std::holds_alternative<std::optional<double>* (*)(Settings&)>(option.field));
}

Status resolve_cache_options(Settings& settings) {
  if (!settings.cache.probe.empty()) settings.cache.defaults.probe = probe_named(settings.cache.probe);
  Result<CacheSettings> cache = resolve_cache_settings(settings.cache.defaults, settings.cache.limits());
  if (cache.ok()) {
    settings.engine.cache = *cache;
    CacheLimits limits = settings.cache.limits();
    if (!settings.cache.has_calibration) limits.has_calibration = true;  // not known before the model is
    return check_profiles(settings.cache.profiles, settings.cache.defaults, limits);
  }
  const std::string& param = cache.status().param();
  const Option* option = find_key("cache", std::string_view(param).substr(param.find('.') + 1));
  const std::string flag = option ? "--" + std::string(option->flag) + ", " : "";
  return invalid_argument(flag + cache.status().message()).with_param(param);
}

namespace {

// Prometheus's grammar of names.
Status check_metrics_prefix(const std::string& prefix) {
  const auto is_allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == ':';
  };
  if (prefix.size() > 64 || !std::all_of(prefix.begin(), prefix.end(), is_allowed) ||
      (prefix[0] >= '0' && prefix[0] <= '9')) {
    return invalid_argument("metrics.prefix: " + quote_text(prefix) +
                            " must be at most 64 letters, digits, '_' and ':' and not begin with a digit");
  }
  return {};
}

Status check_host(const std::string& key, const std::string& host, bool is_open) {
  in_addr v4{};
  in6_addr v6{};
  const bool is_v4 = inet_pton(AF_INET, host.c_str(), &v4) == 1;
  if (!is_v4 && inet_pton(AF_INET6, host.c_str(), &v6) != 1) {
    return invalid_argument("server." + key + ": " + quote_text(host) +
                            " is not an IP address (127.0.0.1 is this machine alone)");
  }
  const bool is_loopback = is_v4 ? (ntohl(v4.s_addr) >> 24) == 127 : IN6_IS_ADDR_LOOPBACK(&v6) != 0;
  if (!is_loopback && !is_open) {
    return invalid_argument(
        "server." + key + ": " + quote_text(host) +
        " can be reached from other machines and there is no API key; use 127.0.0.1, name keys with "
        "--api-key (in a container: RESTKV_API_KEY), or allow it with --insecure (RESTKV_INSECURE=1, "
        "insecure: true in "
        "section server)");
  }
  return {};
}

}  // namespace

Status check_settings(const Settings& settings) {
  if (Status status = check_metrics_prefix(settings.metrics.prefix); !status.ok()) return status;
  const bool is_open = settings.server.insecure || !settings.server.api_key.empty();
  if (Status status = check_host("host", settings.server.host, is_open); !status.ok()) return status;
  return settings.grpc.enabled ? check_host("grpc_host", settings.grpc.host, is_open) : Status();
}

}  // namespace restkv

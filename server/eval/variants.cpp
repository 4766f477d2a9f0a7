// The text becomes the JSON object that a client would send, and the table of that object reads it.
#include "server/eval/variants.h"

#include <algorithm>

#include <nlohmann/json.hpp>

#include "server/openai/completion_request.h"

namespace restkv {
namespace {

constexpr size_t kMaxVariants = 64;

// A number, true, false or null as JSON has them; else a string.
RequestJson value_of(std::string_view text) {
  RequestJson value = RequestJson::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_number() || value.is_boolean() || value.is_null()) return value;
  return std::string(text);
}

Status bad_variant(std::string_view variant, const std::string& what) {
  return invalid_argument("policy '" + std::string(variant.substr(0, 80)) + "': " + what);
}

Result<PolicyVariant> parse_variant(std::string_view text) {
  PolicyVariant variant;
  variant.name = std::string(text);
  std::string_view head = text, fields;
  if (const size_t open = text.find('['); open != std::string_view::npos) {
    if (text.back() != ']') return bad_variant(text, "the closing bracket is missing");
    head = text.substr(0, open);
    fields = text.substr(open + 1, text.size() - open - 2);
  }
  RequestJson object = RequestJson::object();
  const size_t colon = head.find(':');
  object["policy"] = std::string(head.substr(0, colon));
  if (colon != std::string_view::npos) object["preset"] = std::string(head.substr(colon + 1));
  while (!fields.empty()) {
    const std::string_view field = fields.substr(0, fields.find(','));
    fields.remove_prefix(std::min(fields.size(), field.size() + 1));
    const size_t equals = field.find('=');
    if (equals == 0 || equals == std::string_view::npos)
      return bad_variant(text, "expected field=value in the brackets");
    const std::string key(field.substr(0, equals));
    if (object.contains(key)) return bad_variant(text, "'" + key + "' is given twice");
    if (key == "budget" || key == "fraction")
      return bad_variant(text, "budgets are given by --budgets, for all policies");
    object[key] = value_of(field.substr(equals + 1));
  }
  const FieldOptions options{.strict = true, .prefix = "cache."};
  if (Status status = read_fields(object, cache_fields(), options, variant.request); !status.ok())
    return bad_variant(text, status.message());
  // Names and bounds too, so that a typo does not come to light after an hour.
  CacheLimits limits;
  limits.has_calibration = true;
  if (const auto settings = resolve_cache_settings(variant.request, limits); !settings.ok())
    return bad_variant(text, settings.status().message());
  return variant;
}

}  // namespace

Result<std::vector<PolicyVariant>> parse_variants(std::string_view list) {
  std::vector<PolicyVariant> variants;
  while (!list.empty()) {
    size_t end = 0;
    for (int depth = 0; end < list.size() && (depth > 0 || list[end] != ','); ++end)
      depth += list[end] == '[' ? 1 : list[end] == ']' ? -1 : 0;
    Result<PolicyVariant> variant = parse_variant(list.substr(0, end));
    if (!variant.ok()) return variant.status();
    const auto is_it = [&](const PolicyVariant& other) { return other.name == variant->name; };
    if (std::any_of(variants.begin(), variants.end(), is_it))
      return bad_variant(variant->name, "is in the list twice");
    variants.push_back(*std::move(variant));
    list.remove_prefix(std::min(list.size(), end + 1));
  }
  if (variants.empty() || variants.size() > kMaxVariants) {
    return invalid_argument("between 1 and " + std::to_string(kMaxVariants) +
                            " policies are needed, separated by commas; " + std::to_string(variants.size()) +
                            " are given");
  }
  return variants;
}

}  // namespace restkv

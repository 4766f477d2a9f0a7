// Types and bounds of request fields, and the words of their errors.
#include "server/openai/field_table.h"

#include <cmath>
#include <cstdio>

namespace restkv {
namespace {

using json = RequestJson;

std::string_view type_name(const json& value) {
  switch (value.type()) {
    case json::value_t::null: return "null";
    case json::value_t::object: return "an object";
    case json::value_t::array: return "a list";
    case json::value_t::string: return "a string";
    case json::value_t::boolean: return "a boolean";
    case json::value_t::number_integer:
    case json::value_t::number_unsigned: return "an integer";
    case json::value_t::number_float: return "a number";
    default: return "something else";
  }
}

std::string number_text(double value) {
  char buffer[40];
  if (value == std::floor(value) && std::fabs(value) < 1e15) {
    std::snprintf(buffer, sizeof buffer, "%.0f", value);
  } else {
    std::snprintf(buffer, sizeof buffer, "%g", value);
  }
  return buffer;
}

std::string bounds_text(const FieldSpec& spec) {
  if (spec.max == kUnbounded) return {};
  if (spec.excludes_min)
    return " greater than " + number_text(spec.min) + " and at most " + number_text(spec.max);
  return " between " + number_text(spec.min) + " and " + number_text(spec.max);
}

std::string in_quotes(std::string_view name) { return "'" + std::string(name) + "'"; }

Status wrong(const FieldSpec& spec, std::string_view found) {
  return invalid_argument(in_quotes(spec.name) + " must be " + allowed_text(spec) + ", not " +
                          std::string(found))
      .with_param(std::string(spec.name))
      .with_reason("invalid_value");
}

Status check_number(const FieldSpec& spec, const json& value) {
  if (!value.is_number()) return wrong(spec, type_name(value));
  const double number = value.get<double>();
  int64_t integer = 0;
  const bool is_in_bounds = std::isfinite(number) && number <= spec.max &&
                            (spec.excludes_min ? number > spec.min : number >= spec.min);
  if (!is_in_bounds) return wrong(spec, number_text(number));
  if (spec.type == FieldType::kInteger && !value.is_number_unsigned() && !read_integer(value, integer)) {
    return wrong(spec, number_text(number));
  }
  return {};
}

Status check_size(const FieldSpec& spec, bool is_type, size_t size, const json& value,
                  std::string_view unit) {
  if (!is_type) return wrong(spec, type_name(value));
  if (static_cast<double>(size) > spec.max) return wrong(spec, std::to_string(size) + std::string(unit));
  return {};
}

}  // namespace

std::string allowed_text(const FieldSpec& spec) {
  switch (spec.type) {
    case FieldType::kBool: return "true or false";
    case FieldType::kInteger: return "an integer" + bounds_text(spec);
    case FieldType::kNumber: return "a number" + bounds_text(spec);
    case FieldType::kString: return "a string of at most " + number_text(spec.max) + " bytes";
    case FieldType::kObject: return "an object of at most " + number_text(spec.max) + " members";
    case FieldType::kList: return "a list of at most " + number_text(spec.max) + " items";
    case FieldType::kAny: return "as documented";
  }
  return {};
}

Status check_field(const FieldSpec& spec, const json& value) {
  switch (spec.type) {
    case FieldType::kBool: return value.is_boolean() ? Status() : wrong(spec, type_name(value));
    case FieldType::kInteger:
    case FieldType::kNumber: return check_number(spec, value);
    case FieldType::kString: {
      const size_t size = value.is_string() ? value.get_ref<const std::string&>().size() : 0;
      return check_size(spec, value.is_string(), size, value, " bytes");
    }
    case FieldType::kObject: return check_size(spec, value.is_object(), value.size(), value, " members");
    case FieldType::kList: return check_size(spec, value.is_array(), value.size(), value, " items");
    case FieldType::kAny: return {};
  }
  return {};
}

bool is_neutral(const json& value) {
  if (value.is_boolean()) return !value.get<bool>();
  return value.is_null() || (!value.is_number() && value.empty()) ||
         (value.is_string() && value.get_ref<const std::string&>().empty());
}

Status unsupported_field(std::string_view name) {
  return invalid_argument(in_quotes(name) + " is not supported by this server yet")
      .with_param(std::string(name))
      .with_reason("unsupported_parameter");
}

Status unknown_field(std::string_view name) {
  const std::string shown(name.substr(0, 64));
  return invalid_argument("unknown field " + in_quotes(shown) + " (strict_params is on)")
      .with_param(shown)
      .with_reason("unknown_parameter");
}

bool read_integer(const json& value, int64_t& out) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(INT64_MAX)) return false;
    out = static_cast<int64_t>(number);
    return true;
  }
  if (value.is_number_integer()) {
    out = value.get<int64_t>();
    return true;
  }
  if (!value.is_number_float()) return false;
  const double number = value.get<double>();
  constexpr double kExact = 9007199254740992.0;  // 2^53: above, a double is not one integer
  if (!(std::fabs(number) <= kExact) || number != std::floor(number)) return false;
  out = static_cast<int64_t>(number);
  return true;
}

Status read_token_ids(const json& list, const std::string& path, int32_t vocab_size,
                      std::vector<int32_t>& out) {
  out.clear();
  out.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    int64_t id = 0;
    if (!read_integer(list[i], id) || id < 0 || id >= vocab_size) {
      const std::string item = path + "[" + std::to_string(i) + "]";
      return invalid_argument(in_quotes(item) + " must be a token id between 0 and " +
                              std::to_string(vocab_size - 1))
          .with_param(item)
          .with_reason("invalid_value");
    }
    out.push_back(static_cast<int32_t>(id));
  }
  return {};
}

}  // namespace restkv

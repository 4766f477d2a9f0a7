// Readers of single JSON fields, and their messages.
#include "engine/model/config_fields.h"

#include <cstdio>

namespace restkv {

using nlohmann::json;

namespace {

// A value as people would look for it in the file, cut to a line.
std::string value_text(const json& value) {
  constexpr size_t kMaxLen = 60;
  if (value.is_structured()) {
    return value.is_array() ? "a list of " + std::to_string(value.size()) : "an object";
  }
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > kMaxLen) text = text.substr(0, kMaxLen) + "...";
  return text;
}

std::string range_text(double min, double max) {
  return "allowed is " + number_text(min) + " to " + number_text(max);
}

}  // namespace

Status bad_field(std::string_view key, const std::string& value, const std::string& allowed) {
  return invalid_argument(std::string(key) + " is " + value + "; " + allowed).with_param(std::string(key));
}

std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.10g", value);
  return text;
}

const json* JsonFields::find(std::string_view key) const {
  const auto found = object_->find(key);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

bool JsonFields::is_null(std::string_view key) const {
  const auto found = object_->find(key);
  return found != object_->end() && found->is_null();
}

void JsonFields::wrong(std::string_view key, const json& found, const std::string& allowed) const {
  fail(bad_field(path(key), value_text(found), allowed));
}

int64_t JsonFields::integer(std::string_view key, std::optional<int64_t> fallback, int64_t min, int64_t max) {
  const json* found = find(key);
  if (found == nullptr) {
    if (!fallback) fail(invalid_argument(path(key) + " is missing").with_param(path(key)));
    return fallback.value_or(min);
  }
  const std::string allowed =
      "an integer from " + std::to_string(min) + " to " + std::to_string(max) + " is allowed";
  const bool is_too_large =
      found->is_number_unsigned() && found->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  if (!found->is_number_integer() || is_too_large || found->get<int64_t>() < min ||
      found->get<int64_t>() > max) {
    wrong(key, *found, allowed);
    return fallback.value_or(min);
  }
  return found->get<int64_t>();
}

std::optional<double> JsonFields::optional_number(std::string_view key, double min, double max) {
  const json* found = find(key);
  if (found == nullptr) return std::nullopt;
  if (!found->is_number() || !(found->get<double>() >= min && found->get<double>() <= max)) {
    wrong(key, *found, "a number is expected, " + range_text(min, max));
    return std::nullopt;
  }
  return found->get<double>();
}

double JsonFields::number(std::string_view key, std::optional<double> fallback, double min, double max) {
  if (!has(key) && !fallback) fail(invalid_argument(path(key) + " is missing").with_param(path(key)));
  return optional_number(key, min, max).value_or(fallback.value_or(min));
}

bool JsonFields::boolean(std::string_view key, bool fallback) {
  const json* found = find(key);
  if (found == nullptr) return fallback;
  if (!found->is_boolean()) {
    wrong(key, *found, "true or false is allowed");
    return fallback;
  }
  return found->get<bool>();
}

std::string JsonFields::text(std::string_view key, std::string_view fallback) {
  const json* found = find(key);
  if (found == nullptr) return std::string(fallback);
  if (!found->is_string()) {
    wrong(key, *found, "a string is expected");
    return std::string(fallback);
  }
  return found->get<std::string>();
}

std::vector<int64_t> JsonFields::integer_list(std::string_view key, int64_t min, int64_t max) {
  const json* found = find(key);
  if (found == nullptr) return {};
  if (!found->is_array()) return {integer(key, std::nullopt, min, max)};
  std::vector<int64_t> numbers;
  for (size_t i = 0; i < found->size(); ++i) {
    const json entry = {{"value", (*found)[i]}};
    Status status;
    numbers.push_back(JsonFields(entry, "", &status).integer("value", std::nullopt, min, max));
    if (!status.ok()) {
      wrong(std::string(key) + "[" + std::to_string(i) + "]", (*found)[i],
            "an integer from " + std::to_string(min) + " to " + std::to_string(max) + " is allowed");
      return {};
    }
  }
  return numbers;
}

std::optional<JsonFields> JsonFields::object(std::string_view key) {
  const json* found = find(key);
  if (found == nullptr) return std::nullopt;
  if (!found->is_object()) {
    wrong(key, *found, "an object is expected");
    return std::nullopt;
  }
  return JsonFields(*found, path(key) + ".", status_);
}

}  // namespace restkv

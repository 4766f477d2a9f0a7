// Rows of the tables that fill a CompletionRequest, for plain members: one line each where the bounds say everything.
#pragma once

#include <limits>
#include <string>
#include <string_view>
#include <utility>

#include "server/openai/completion_request.h"

namespace restkv {

using CompletionField = RequestField<CompletionRequest>;

inline constexpr double kMaxInt32Field = std::numeric_limits<int32_t>::max();

inline Status invalid_field(std::string message, std::string param) {
  return invalid_argument(std::move(message)).with_param(std::move(param)).with_reason("invalid_value");
}

template <auto Member>
Status set_bool_field(RequestJson& value, CompletionRequest& r) {
  r.*Member = value.get<bool>();
  return {};
}
template <auto Member>
Status set_int_field(RequestJson& value, CompletionRequest& r) {
  int64_t number = 0;
  CHECK(read_integer(value, number)) << "checked by the table";
  r.*Member = static_cast<int32_t>(number);
  return {};
}
template <auto Member>
Status set_text_field(RequestJson& value, CompletionRequest& r) {
  r.*Member = std::move(value.get_ref<std::string&>());
  return {};
}
template <auto Member>
Status set_sampling_field(RequestJson& value, CompletionRequest& r) {
  r.sampling.*Member = value.get<float>();
  return {};
}
inline Status take_field(RequestJson&, CompletionRequest&) { return {}; }

template <auto Member>
CompletionField bool_row(std::string_view name, std::string_view default_json, std::string_view help) {
  return {{.name = name, .type = FieldType::kBool, .default_json = default_json, .help = help},
          set_bool_field<Member>};
}
// A number within bounds. `default_json` "null": the field's absence means something of its own.
inline CompletionField number_row(FieldType type, std::string_view name, double min, double max,
                                  std::string_view default_json, std::string_view help,
                                  decltype(CompletionField::set) set) {
  return {{.name = name, .type = type, .min = min, .max = max, .default_json = default_json, .help = help},
          set};
}
template <auto Member>
CompletionField int_row(std::string_view name, double min, double max, std::string_view default_json,
                        std::string_view help) {
  return number_row(FieldType::kInteger, name, min, max, default_json, help, set_int_field<Member>);
}
template <auto Member>
CompletionField sampling_row(std::string_view name, double min, double max, std::string_view default_json,
                             std::string_view help) {
  return number_row(FieldType::kNumber, name, min, max, default_json, help, set_sampling_field<Member>);
}
template <auto Member>
CompletionField text_row(std::string_view name, double max_bytes, std::string_view help) {
  return {{.name = name, .type = FieldType::kString, .max = max_bytes, .help = help}, set_text_field<Member>};
}
// Other servers' fields that change nothing here, whatever they say.
inline CompletionField taken_row(std::string_view name, FieldType type, double max = 0, double min = 0) {
  return {{.name = name, .type = type, .min = min, .max = max, .help = "taken and not used"}, take_field};
}
// Known, and not served yet: a 400 that says so. kObject: {} asks for something, too.
inline CompletionField refused_row(std::string_view name, FieldType type = FieldType::kAny) {
  return {{.name = name, .type = type}};
}

}  // namespace restkv

// Request bodies are read by table: a row names a field, its type, bounds and default and sets it. Parsing, the texts of
// the errors and the API description all come from the rows. null means the default, whatever the field.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace restkv {

// Of request bodies: objects keep the client's order, which chat templates print (tools).
using RequestJson = nlohmann::ordered_json;

enum class FieldType : uint8_t {
  kBool,
  kInteger,  // min, max: bounds, kUnbounded: the setter checks them; 5.0 is an integer
  kNumber,   // the same
  kString,   // max: bytes
  kObject,   // max: members
  kList,     // max: items
  kAny,      // the setter checks
};

inline constexpr double kUnbounded = std::numeric_limits<double>::infinity();

// The part of a row that does not depend on what is being filled.
struct FieldSpec {
  std::string_view name;
  FieldType type = FieldType::kAny;
  double min = 0, max = 0;
  bool excludes_min = false;  // (min, max] instead of [min, max]
  std::string_view default_json = "null";
  std::string_view help = {};
  // JSON Schema members that the type alone does not say, "\"items\":{...}"; of a kAny field: all of them. For /openapi.json.
  std::string_view schema = {};
};

template <class T>
struct RequestField {
  FieldSpec spec;
  // Null: the field is known, but this server does not do what it asks for; any value but a neutral one is refused.
  Status (*set)(RequestJson& value, T& target) = nullptr;
};

// The rows that do something.
template <class T>
std::vector<FieldSpec> specs_of(std::span<const RequestField<T>> fields) {
  std::vector<FieldSpec> specs;
  for (const RequestField<T>& field : fields) {
    if (field.set) specs.push_back(field.spec);
  }
  return specs;
}

// Those that are known and refused.
template <class T>
std::vector<std::string_view> refused_of(std::span<const RequestField<T>> fields) {
  std::vector<std::string_view> names;
  for (const RequestField<T>& field : fields) {
    if (!field.set) names.push_back(field.spec.name);
  }
  return names;
}

struct FieldOptions {
  bool strict = false;                          // unknown fields are errors
  std::vector<std::string>* unknown = nullptr;  // else their names go here
  std::string_view prefix = {};                 // of the names in the table, for objects in objects: "cache."
};

// Type and bounds. The error names the field, what is allowed and what was found; never a text of the client.
Status check_field(const FieldSpec& spec, const RequestJson& value);
// What `spec` allows, in words: "an integer between 1 and 16".
std::string allowed_text(const FieldSpec& spec);
// null, false, "", [] and {}: fields of other servers that ask for nothing.
bool is_neutral(const RequestJson& value);
Status unsupported_field(std::string_view name);
Status unknown_field(std::string_view name);

// Integers of a value already checked or of a list's item; nothing if it is not an integer of 64 bits.
bool read_integer(const RequestJson& value, int64_t& out);
// A list of token ids, each in [0, vocab_size).
Status read_token_ids(const RequestJson& list, const std::string& path, int32_t vocab_size,
                      std::vector<int32_t>& out);

template <class T>
Status read_fields(RequestJson& body, std::span<const RequestField<T>> fields, const FieldOptions& options,
                   T& target) {
  if (!body.is_object()) return invalid_argument("the body must be a JSON object");
  for (auto& [key, value] : body.items()) {
    const std::string name = std::string(options.prefix) + key;
    const RequestField<T>* field = nullptr;
    for (const RequestField<T>& candidate : fields) {
      if (candidate.spec.name == name) field = &candidate;
    }
    if (!field) {
      if (options.strict) return unknown_field(name);
      if (options.unknown) options.unknown->push_back(name);
      continue;
    }
    if (value.is_null()) continue;
    if (!field->set) {
      if (is_neutral(value) && !(field->spec.type == FieldType::kObject && value.is_object())) continue;
      return unsupported_field(name);
    }
    if (Status status = check_field(field->spec, value); !status.ok()) return status;
    if (Status status = field->set(value, target); !status.ok()) return status;
  }
  return {};
}

}  // namespace restkv

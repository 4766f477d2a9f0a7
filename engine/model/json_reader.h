// Strict JSON for text from outside (config.json, safetensors headers, request bodies): nlohmann's parser
// behind limits it does not have. Refused: nesting past the limit (also in fields nobody reads), too many
// keys, the same key twice in an object, NUL (raw or \u0000), bytes after the value, lone surrogates, invalid
// UTF-8, numbers out of range.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>

#include "kernels/base/status.h"

namespace restkv {

struct JsonLimits {
  int max_depth = 64;
  int64_t max_keys = 10000;  // of all objects together
  bool allow_nul = false;    // \u0000 in strings and keys: vocabularies have it
};

// The value, or an error with line and column; the error never quotes the text (a request body is private).
Result<nlohmann::json> parse_json(std::string_view text, const JsonLimits& limits = {});
// The same with objects in the order of the text: chat templates print tools as the client wrote them.
Result<nlohmann::ordered_json> parse_ordered_json(std::string_view text, const JsonLimits& limits = {});

}  // namespace restkv

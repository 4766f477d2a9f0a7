// tokenizer_config.json, generation_config.json and config.json, as far as they change a tokenizer.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "engine/text/text_tokenizer.h"
#include "engine/text/vocabulary_files.h"

namespace restkv {

// The object in a file; empty where the file is absent. Errors begin with `name`.
Result<nlohmann::json> parse_settings(const std::string& text, const char* name);
// A token's text, given as "text" or {"content": "text"}.
std::optional<std::string> token_name(const nlohmann::json& value);
// BOS and EOS by name, add_bos_token, add_eos_token and the lists of end tokens.
Status apply_settings(const TokenizerSettings& settings, TokenizerParts* parts);

}  // namespace restkv

// The normalizer, pre_tokenizer and decoder of a tokenizer.json: what they say as steps of ours. A type that is not
// known is refused by its name.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/text/normalizer.h"
#include "engine/text/pre_tokenizer.h"
#include "engine/text/tokenizer.h"
#include "kernels/base/status.h"

namespace restkv {

// A member of an object; null where there is no such member (or no object).
const nlohmann::json& json_member(const nlohmann::json& object, const char* key);
std::string json_text(const nlohmann::json& object, const char* key);  // "" if absent or no string
bool json_flag(const nlohmann::json& object, const char* key, bool otherwise);
// The error of a tokenizer.json that is not as its format asks.
Status malformed_tokenizer(const std::string& what);

Status add_normalizer(const nlohmann::json& spec, Normalizer* normalizer);
// *byte_level: whether words end up in GPT-2's byte alphabet.
Status add_pre_tokenizer(const nlohmann::json& spec, PreTokenizer* pre_tokenizer, bool* byte_level);

// How a token's text becomes bytes.
struct DecoderSteps {
  bool byte_level = false;
  bool byte_fallback = false;
  LeadingSpaces leading_spaces = LeadingSpaces::kStay;
  bool puts_spaces_between = false;  // a file without a decoder: tokens are words
  std::vector<std::pair<std::string, std::string>> replacements;  // from, to
  double growth = 1;  // how many bytes at most the replacements make of one

  std::string bytes_of(std::string_view text) const;
  std::string replaced(std::string_view text) const;  // the replacements alone
};
Status add_decoder(const nlohmann::json& spec, DecoderSteps* decoder);

}  // namespace restkv

// The added tokens of a folder with a tokenizer.model and no tokenizer.json, as transformers' slow tokenizers read them:
// added_tokens_decoder of tokenizer_config.json says everything; where it is not there, added_tokens.json gives ids, and special
// are the tokens that tokenizer_config.json or special_tokens_map.json name as bos_token, additional_special_tokens and the like.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <vector>

#include "engine/text/added_tokens.h"
#include "engine/text/vocabulary_files.h"

namespace restkv {

// By id. pieces: [vocab], texts; a token may be one of them, under the same id, the others follow them without a hole.
// config: tokenizer_config.json. Errors name file and token.
Result<std::vector<AddedToken>> read_added_tokens(std::span<const std::string_view> pieces,
                                                  const nlohmann::json& config,
                                                  const TokenizerSettings& settings);

}  // namespace restkv

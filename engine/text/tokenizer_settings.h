// tokenizer_config.json, generation_config.json and config.json, as far as they change a tokenizer.
#pragma once

#include "engine/text/text_tokenizer.h"
#include "engine/text/vocabulary_files.h"

namespace restkv {

// BOS and EOS by name, add_bos_token, add_eos_token and the lists of end tokens.
Status apply_settings(const TokenizerSettings& settings, TokenizerParts* parts);

}  // namespace restkv

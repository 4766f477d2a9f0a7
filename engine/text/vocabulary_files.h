// The vocabulary formats beside GGUF, one loader each; load_tokenizer (tokenizer.h) picks.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "engine/text/tokenizer.h"

namespace restkv {

// The texts of the small files beside a vocabulary that say more about it; empty where a file is absent.
struct TokenizerSettings {
  std::string tokenizer_config;    // tokenizer_config.json
  std::string generation_config;   // generation_config.json
  std::string model_config;        // config.json
  std::string added_tokens;        // added_tokens.json; this and the next for tokenizer.model alone
  std::string special_tokens_map;  // special_tokens_map.json
};

// tokenizer.model: SentencePiece's ModelProto, BPE and unigram, and the added tokens beside it (added_token_files.h).
Result<std::shared_ptr<const Tokenizer>> load_sentencepiece_tokenizer(std::string_view bytes,
                                                                      const TokenizerSettings& settings);
// tiktoken's rank files ("base64 rank" a line): Llama 3 and Qwen, told apart by their number of ranks.
Result<std::shared_ptr<const Tokenizer>> load_tiktoken_tokenizer(std::string_view bytes,
                                                                 const TokenizerSettings& settings);
// Mistral's tekken.json.
Result<std::shared_ptr<const Tokenizer>> load_tekken_tokenizer(std::string_view bytes,
                                                               const TokenizerSettings& settings);
// Hugging Face's tokenizer.json.
Result<std::shared_ptr<const Tokenizer>> load_json_tokenizer(std::string_view bytes,
                                                             const TokenizerSettings& settings);

}  // namespace restkv

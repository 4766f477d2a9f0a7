// POST /tokenize and /detokenize in vLLM's shape (prompt -> count, max_model_len, tokens, token_strs) and llama.cpp's
// (content -> tokens, or pieces); which one was meant shows in the field, the answer has the keys of both.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/text/tokenizer.h"
#include "server/openai/field_table.h"

namespace restkv {

// The body of the answer, or an error that names the field. `served_name`: any other "model" is not found.
Result<std::string> tokenize_body(nlohmann::json request, const Tokenizer& tokenizer, int64_t max_model_len,
                                  const std::string& served_name, const FieldOptions& options);
Result<std::string> detokenize_body(nlohmann::json request, const Tokenizer& tokenizer,
                                    const std::string& served_name, const FieldOptions& options);

// 404 model_not_found if `name` is given and not `served_name`.
Status check_model_name(const std::string& name, const std::string& served_name);

}  // namespace restkv

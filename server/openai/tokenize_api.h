// POST /tokenize and /detokenize in vLLM's shape (prompt or messages -> count, max_model_len, tokens, token_strs) and
// llama.cpp's (content -> tokens, or pieces); which one was meant shows in the field, the answer has the keys of both.
// POST /apply-template: messages -> the prompt a chat completion would have.
#pragma once

#include <cstdint>
#include <string>

#include "engine/text/tokenizer.h"
#include "server/openai/chat_prompt.h"
#include "server/openai/field_table.h"

namespace restkv {

struct TokenizeContext {
  const Tokenizer* tokenizer = nullptr;
  std::string served_name = {};  // any other "model" is not found
  int64_t max_model_len = 0;
  const ChatFormat* chat_format = nullptr;
  FieldOptions fields = {};
};

// The body of the answer, or an error that names the field.
Result<std::string> tokenize_body(RequestJson request, const TokenizeContext& context);
Result<std::string> detokenize_body(RequestJson request, const TokenizeContext& context);
Result<std::string> apply_template_body(RequestJson request, const TokenizeContext& context);

// Their fields, for /openapi.json.
std::vector<FieldSpec> tokenize_specs();
std::vector<FieldSpec> detokenize_specs();
std::vector<FieldSpec> apply_template_specs();

// 404 model_not_found if `name` is given and not `served_name`.
Status check_model_name(const std::string& name, const std::string& served_name);

// GET /tokenizer_info, vLLM's: what clients that count tokens themselves ask first.
std::string tokenizer_info_body(const TokenizeContext& context);

}  // namespace restkv

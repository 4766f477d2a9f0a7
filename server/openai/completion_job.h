// A body of POST /v1/completions, parsed, checked and tokenised: one engine request a prompt. Runs on a worker thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/request.h"
#include "engine/text/tokenizer.h"
#include "server/openai/output_assembler.h"

namespace restkv {

struct CompletionContext {
  const Tokenizer* tokenizer = nullptr;
  std::string served_name;
  int64_t max_model_len = 0;
  size_t max_token_bytes = 0;  // of the vocabulary's longest token: bounds the tokens of a text from below
  bool strict_params = false;
  CacheRequest cache = {};  // the server's defaults, under the request's fields
  CacheLimits cache_limits = {};
};

struct CompletionJob {
  bool stream = false, include_usage = false;
  bool has_seed = false;  // else the caller gives each request its own
  OutputOptions output;
  std::vector<Request> requests;            // one a prompt, without id, arrival and timeout
  std::vector<std::string> prompt_texts;    // [requests], with echo: what is shown of the prompt
  std::vector<std::string> unknown_fields;  // that were ignored
};

Result<CompletionJob> read_completion_job(std::string_view body, const CompletionContext& context);

}  // namespace restkv

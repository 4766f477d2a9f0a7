// A body of POST /v1/completions or /v1/chat/completions, parsed, checked and tokenised: one engine request a prompt. Runs
// on a worker thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/model_config.h"
#include "engine/request.h"
#include "engine/text/tokenizer.h"
#include "server/config/cache_profiles.h"
#include "server/openai/completion_request.h"
#include "server/openai/output_assembler.h"

namespace restkv {

struct CompletionContext {
  const Tokenizer* tokenizer = nullptr;
  std::string served_name;
  int64_t max_model_len = 0;
  size_t max_token_bytes = 0;  // of the vocabulary's longest token: bounds the tokens of a text from below
  int32_t default_max_tokens =
      4096;  // of a chat request that says nothing, at most what the context has left
  bool strict_params = false;
  SamplingParams sampling = {};  // what requests leave open
  std::span<const int32_t> end_tokens =
      {};  // that the tokenizer's files name; those of the model's the engine knows
  const ChatFormat* chat_format = nullptr;
  CacheRequest cache = {};  // the server's defaults, under the request's fields
  CacheLimits cache_limits = {};
  std::shared_ptr<const CacheProfiles> cache_profiles = nullptr;  // null: none
  std::string owner = {};                                         // name of the API key
  std::shared_ptr<const CacheProfile> key_profile = nullptr;      // that its key has; null: none
};

struct CompletionJob {
  CompletionApi api = CompletionApi::kText;
  bool stream = false, include_usage = false, continuous_usage = false;
  std::string request_id;  // the client's; empty: none
  bool has_seed = false;   // else the caller gives each request its own
  OutputOptions output;
  std::vector<Request> requests;  // one a prompt, without id, arrival and timeout
  std::vector<std::string>
      prompt_texts;  // [requests], with echo or return_prompt_text: what is shown of the prompt
  std::string limit_field = "max_tokens";   // what the client called it
  std::vector<std::string> unknown_fields;  // that were ignored
};

Result<CompletionJob> read_completion_job(std::string_view body, CompletionApi api,
                                          const CompletionContext& context);
// The same of a body that is JSON already; its strings are moved.
Result<CompletionJob> make_completion_job(RequestJson body, CompletionApi api,
                                          const CompletionContext& context);

// A tokenizer may have end tokens that the model has no rows for (a token added later); the others.
std::vector<int32_t> end_tokens_of(const Tokenizer& tokenizer, int64_t vocab_size);

// What a model's generation_config.json says, over `sampling`.
SamplingParams default_sampling(const ModelConfig::SamplingDefaults& model, SamplingParams sampling = {});

}  // namespace restkv

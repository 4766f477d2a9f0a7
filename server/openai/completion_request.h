// POST /v1/completions and /v1/chat/completions as the client meant them, before tokenising. Filled by the field tables:
// generation_fields.cpp has the rows of both, completion_fields.cpp and chat_fields.cpp those of one.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/eviction/cache_settings.h"
#include "kernels/base/sampling.h"
#include "server/openai/chat_prompt.h"
#include "server/openai/field_table.h"

namespace restkv {

inline constexpr size_t kMaxPrompts = 1024;
inline constexpr int32_t kDefaultMaxTokens = 16;  // of /v1/completions, as OpenAI has it
inline constexpr size_t kMaxStops = 4;
inline constexpr size_t kMaxStopBytes = 256;
inline constexpr size_t kMaxBadWords = 256;

struct Prompt {
  std::string text;          // if is_text
  std::vector<int32_t> ids;  // [T] token ids otherwise
  bool is_text = true;
};

// /v1/completions, /v1/chat/completions, llama.cpp's /completion
enum class CompletionApi : uint8_t { kText, kChat, kLlama };

struct CompletionRequest {
  // Set before parsing:
  CompletionApi api = CompletionApi::kText;
  int32_t vocab_size = 0;      // bounds of token ids
  FieldOptions field_options;  // for objects in the body
  SamplingParams sampling;     // the model's defaults; without seed and num_logprobs

  std::string model;            // empty: not given
  std::vector<Prompt> prompts;  // kText, kLlama
  ChatPrompt chat;              // kChat
  bool stream = false, include_usage = false, continuous_usage = false, has_stream_options = false;
  bool return_token_ids = false, tokens_as_ids = false;
  bool echo = false;
  bool add_special_tokens = true, skip_special_tokens = true, include_stop_string = false;
  bool ignore_eos = false;
  std::optional<int32_t> max_tokens, max_completion_tokens;  // not given: the default of the route
  int32_t min_tokens = 0, num_choices = 1, priority = 0;
  std::string cache_salt;
  int32_t best_of = 0;                 // 0: not given
  int32_t logprobs = -1;               // -1: none
  int32_t prompt_logprobs = -1;        // -1: none
  int32_t truncate_prompt_tokens = 0;  // 0: not; -1: to what the context leaves beside max_tokens
  bool truncates_left = true;          // the last tokens stay
  bool timings_per_token = false;      // kLlama
  bool return_prompt_text = false, return_progress = false;
  int32_t stream_interval = 1;
  std::optional<bool> wants_logprobs;  // kChat: logprobs, top_logprobs
  std::optional<int32_t> top_logprobs;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  std::vector<std::string> bad_words;
  std::vector<int32_t> bad_tokens;       // kLlama
  std::optional<int32_t> repeat_last_n;  // kLlama
  std::string request_id;                // empty: the server's own
  std::optional<uint64_t> seed;
  CacheRequest cache;
};

// Tables of whole routes.
std::span<const RequestField<CompletionRequest>> completion_fields();
std::span<const RequestField<CompletionRequest>> chat_fields();
// The rows both have.
std::span<const RequestField<CompletionRequest>> generation_fields();
// Of the object `cache`; their names begin with "cache.". Bounds are resolve_cache_settings's.
std::span<const RequestField<CacheRequest>> cache_fields();

// A client's id for a request is taken over if it can stand in a header and a log line as it is.
bool is_request_id(std::string_view text);

// What a request's temperature means: one that is tiny is greedy, dividing logits by it would overflow.
float sampling_temperature(double temperature);

// `body` is taken apart: its strings are moved, not copied. Errors name the field.
Status parse_completion_request(RequestJson body, CompletionRequest& request);

}  // namespace restkv

// POST /v1/completions as the client meant it, before tokenising. Filled by the field table of completion_fields.cpp.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/eviction/cache_settings.h"
#include "kernels/base/sampling.h"
#include "server/openai/field_table.h"

namespace restkv {

inline constexpr size_t kMaxPrompts = 1024;
inline constexpr size_t kMaxStops = 4;
inline constexpr size_t kMaxStopBytes = 256;

struct Prompt {
  std::string text;          // if is_text
  std::vector<int32_t> ids;  // [T] token ids otherwise
  bool is_text = true;
};

struct CompletionRequest {
  // Set before parsing:
  int32_t vocab_size = 0;      // bounds of token ids
  FieldOptions field_options;  // for objects in the body

  std::string model;  // empty: not given
  std::vector<Prompt> prompts;
  bool stream = false, include_usage = false, has_stream_options = false;
  bool echo = false;
  bool add_special_tokens = true, skip_special_tokens = true, include_stop_string = false;
  bool ignore_eos = false;
  int32_t max_tokens = 16, min_tokens = 0, num_choices = 1, priority = 0;
  int32_t best_of = 0;    // 0: not given
  int32_t logprobs = -1;  // -1: none
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  std::optional<uint64_t> seed;
  SamplingParams sampling;  // without seed and num_logprobs
  CacheRequest cache;
};

std::span<const RequestField<CompletionRequest>> completion_fields();
// Of the object `cache`; their names begin with "cache.". Bounds are resolve_cache_settings's.
std::span<const RequestField<CacheRequest>> cache_fields();

// `body` is taken apart: its strings are moved, not copied. Errors name the field.
Result<CompletionRequest> parse_completion_request(nlohmann::json body, int32_t vocab_size,
                                                   const FieldOptions& options);

}  // namespace restkv

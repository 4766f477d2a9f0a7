// Chunks and bodies of both routes; a choice looks different in each, all around it is the same.
#include "server/openai/completion_writer.h"

#include "server/config/build_info.h"
#include "server/openai/json_text.h"

namespace restkv {
namespace {

// A token's text, or its id; tokens that are only part of a code point as OpenAI writes them: "bytes:\xe2\x80".
void append_token_text(std::string& out, const Tokenizer& tokenizer, int32_t token, bool as_id) {
  if (as_id) {
    out += "\"token_id:";
    append_json_number(out, static_cast<int64_t>(token));
    out += '"';
    return;
  }
  const std::string_view bytes = tokenizer.token_bytes(token);
  if (is_valid_utf8(bytes)) return append_json_string(out, bytes);
  constexpr char kHex[] = "0123456789abcdef";
  out += "\"bytes:";
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    out += "\\\\x";
    out += kHex[byte >> 4];
    out += kHex[byte & 15];
  }
  out += '"';
}

template <class Items, class Append>
void append_list(std::string& out, const Items& items, Append append) {
  out += '[';
  bool is_first = true;
  for (const auto& item : items) {
    if (!is_first) out += ',';
    is_first = false;
    append(item);
  }
  out += ']';
}

// The most likely tokens; the chosen one is always among them. Equal texts (two tokens can read the same) appear once.
void append_top(std::string& out, const Tokenizer& tokenizer, const TokenOutput& token, bool as_id) {
  if (token.logprob != token.logprob) {
    out += "null";
    return;
  }
  out += '{';
  const size_t begin = out.size();
  const auto has = [&](const std::string& key) {
    size_t at = out.find(key, begin);
    while (at != std::string::npos && out[at - 1] == '\\')
      at = out.find(key, at + 1);  // the end of a longer one
    return at != std::string::npos;
  };
  const auto append = [&](int32_t id, float logprob) {
    std::string key;
    append_token_text(key, tokenizer, id, as_id);
    key += ':';
    if (has(key)) return;
    if (out.size() > begin) out += ',';
    out += key;
    append_json_number(out, static_cast<double>(logprob));
  };
  for (const TokenLogprob& top : token.top) append(top.token, top.logprob);
  append(token.token, token.logprob);
  out += '}';
}

void append_logprobs(std::string& out, const Tokenizer& tokenizer, const OutputDelta& delta,
                     const OutputOptions& options) {
  if (options.logprobs < 0) {
    out += "null";
    return;
  }
  out += "{\"tokens\":";
  append_list(out, delta.tokens, [&](const TokenOutput& token) {
    append_token_text(out, tokenizer, token.token, options.tokens_as_ids);
  });
  out += ",\"token_logprobs\":";
  append_list(out, delta.tokens,
              [&](const TokenOutput& token) { append_json_number(out, static_cast<double>(token.logprob)); });
  out += ",\"top_logprobs\":";
  append_list(out, delta.tokens,
              [&](const TokenOutput& token) { append_top(out, tokenizer, token, options.tokens_as_ids); });
  out += ",\"text_offset\":";
  append_list(out, delta.tokens,
              [&](const TokenOutput& token) { append_json_number(out, token.text_offset); });
  out += '}';
}

// "token":...,"logprob":...,"bytes":[...]
void append_chat_token(std::string& out, const Tokenizer& tokenizer, int32_t token, float logprob,
                       bool as_id) {
  out += "\"token\":";
  append_token_text(out, tokenizer, token, as_id);
  out += ",\"logprob\":";
  append_json_number(out, static_cast<double>(logprob));
  out += ",\"bytes\":";
  append_list(out, tokenizer.token_bytes(token),
              [&](char c) { append_json_number(out, static_cast<int64_t>(static_cast<unsigned char>(c))); });
}

void append_chat_logprobs(std::string& out, const Tokenizer& tokenizer, const OutputDelta& delta,
                          const OutputOptions& options) {
  if (options.logprobs < 0) {
    out += "null";
    return;
  }
  out += "{\"content\":";
  append_list(out, delta.tokens, [&](const TokenOutput& token) {
    out += '{';
    append_chat_token(out, tokenizer, token.token, token.logprob, options.tokens_as_ids);
    out += ",\"top_logprobs\":";
    append_list(out, token.top, [&](const TokenLogprob& top) {
      out += '{';
      append_chat_token(out, tokenizer, top.token, top.logprob, options.tokens_as_ids);
      out += '}';
    });
    out += '}';
  });
  out += ",\"refusal\":null}";
}

void append_token_ids(std::string& out, const OutputDelta& delta) {
  out += ",\"token_ids\":";
  append_list(out, delta.token_ids, [&](int32_t id) { append_json_number(out, static_cast<int64_t>(id)); });
}

// ,"finish_reason":...,"stop_reason":...,"token_ids":[...]
void append_finish(std::string& out, const OutputDelta& delta, const OutputOptions& options) {
  if (delta.finish == FinishReason::kNone) {
    out += ",\"finish_reason\":null";
  } else {
    out += ",\"finish_reason\":\"";
    out += finish_reason_text(delta.finish);
    out += "\",\"stop_reason\":";
    if (delta.stop_index >= 0) {
      append_json_string(out, options.stop[static_cast<size_t>(delta.stop_index)]);
    } else if (delta.stop_token >= 0) {
      append_json_number(out, static_cast<int64_t>(delta.stop_token));
    } else {
      out += "null";
    }
  }
  if (options.return_token_ids) append_token_ids(out, delta);
}

// vLLM's: {"id": {"logprob", "rank" (1-based), "decoded_token"}, ...} for a token and the most likely ones.
void append_prompt_logprob(std::string& out, const Tokenizer& tokenizer, const TokenOutput& token) {
  if (token.logprob != token.logprob) {
    out += "null";
    return;
  }
  const auto append = [&](int32_t id, float logprob, int64_t rank) {
    out += '"';
    append_json_number(out, static_cast<int64_t>(id));
    out += "\":{\"logprob\":";
    append_json_number(out, static_cast<double>(logprob));
    out += ",\"rank\":";
    append_json_number(out, rank);
    out += ",\"decoded_token\":";
    append_token_text(out, tokenizer, id, false);
    out += '}';
  };
  out += '{';
  append(token.token, token.logprob, token.rank + 1);
  for (size_t i = 0; i < token.top.size(); ++i) {
    if (token.top[i].token == token.token) continue;
    out += ',';
    append(token.top[i].token, token.top[i].logprob, static_cast<int64_t>(i) + 1);
  }
  out += '}';
}

// ,"prompt_text":...,"prompt_token_ids":[...],"prompt_logprobs":[...] of what was asked for: a text choice has them, a chat's whole answer.
void append_prompt_members(std::string& out, const Tokenizer& tokenizer, const OutputDelta& delta) {
  if (delta.prompt_text) {
    out += ",\"prompt_text\":";
    append_json_string(out, *delta.prompt_text);
  }
  if (!delta.prompt_token_ids.empty()) {
    out += ",\"prompt_token_ids\":";
    append_list(out, delta.prompt_token_ids,
                [&](int32_t id) { append_json_number(out, static_cast<int64_t>(id)); });
  }
  if (!delta.prompt.empty()) {
    out += ",\"prompt_logprobs\":";
    append_list(out, delta.prompt,
                [&](const TokenOutput& token) { append_prompt_logprob(out, tokenizer, token); });
  }
}

// Everything of a choice behind its index: ,"text":...,"finish_reason":...}
void append_choice(std::string& out, const Tokenizer& tokenizer, const OutputDelta& delta,
                   const OutputOptions& options) {
  out += ",\"text\":";
  append_json_string(out, delta.text);
  out += ",\"logprobs\":";
  append_logprobs(out, tokenizer, delta, options);
  append_finish(out, delta, options);
  append_prompt_members(out, tokenizer, delta);
  out += '}';
}

// ,"message":{...},"finish_reason":...}
void append_chat_choice(std::string& out, const Tokenizer& tokenizer, const OutputDelta& delta,
                        const OutputOptions& options) {
  out += ",\"message\":{\"role\":\"assistant\",\"content\":";
  append_json_string(out, delta.text);
  out += ",\"refusal\":null},\"logprobs\":";
  append_chat_logprobs(out, tokenizer, delta, options);
  append_finish(out, delta, options);
  out += '}';
}

void append_header(std::string& out, const CompletionHeader& header, std::string_view object) {
  out += "{\"id\":";
  append_json_string(out, header.id);
  out += ",\"object\":\"";
  out += object;
  out += "\",\"created\":";
  append_json_number(out, header.created);
  out += ",\"model\":";
  append_json_string(out, header.model);
  out += ",\"system_fingerprint\":\"restkv-";
  out += build_version();
  out += '"';
}

void append_rate(std::string& out, int64_t count, double ms) {
  append_json_fixed(out, ms > 0 ? static_cast<double>(count) * 1e3 / ms : 0.0);
}

void append_cache(std::string& out, const CacheUsage& cache) {
  out += "{\"policy\":\"";
  out += policy_name(cache.policy);
  out += "\",\"budget\":";
  if (cache.budget > 0) {
    append_json_number(out, static_cast<int64_t>(cache.budget));
  } else {
    out += "null";
  }
  const int64_t sequences = std::max<int64_t>(1, cache.num_sequences);
  out += ",\"kept\":";
  append_json_number(out, (cache.kept_sum + sequences - 1) / sequences);
  out += ",\"kept_max\":";
  append_json_number(out, static_cast<int64_t>(cache.kept_max));
  out += ",\"evicted\":";
  append_json_number(out, cache.evicted);
  out += ",\"events\":";
  append_json_number(out, cache.events);
  out += ",\"bytes\":";
  append_json_number(out, cache.bytes);
  out += ",\"predicted_error\":null}";
}

// "usage":{...},"timings":{...}
void append_usage_members(std::string& out, const OutputUsage& usage) {
  out += "\"usage\":{\"prompt_tokens\":";
  append_json_number(out, usage.prompt_tokens);
  out += ",\"completion_tokens\":";
  append_json_number(out, usage.completion_tokens);
  out += ",\"total_tokens\":";
  append_json_number(out, usage.prompt_tokens + usage.completion_tokens);
  out += ",\"prompt_tokens_details\":{\"cached_tokens\":";
  append_json_number(out, usage.cached_tokens);
  out += "},\"cache\":";
  append_cache(out, usage.cache);
  out += "},\"timings\":{\"prompt_n\":";
  append_json_number(out, usage.prompt_tokens - usage.cached_tokens);
  out += ",\"prompt_ms\":";
  append_json_fixed(out, usage.prefill_ms);
  out += ",\"prompt_per_second\":";
  append_rate(out, usage.prompt_tokens - usage.cached_tokens, usage.prefill_ms);
  out += ",\"predicted_n\":";
  append_json_number(out, usage.completion_tokens);
  out += ",\"predicted_ms\":";
  append_json_fixed(out, usage.decode_ms);
  out += ",\"predicted_per_second\":";
  append_rate(out, usage.completion_tokens, usage.decode_ms);
  out += ",\"cache_n\":";
  append_json_number(out, usage.cached_tokens);
  out += '}';
}

}  // namespace

std::string_view finish_reason_text(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kCancelled: return "abort";
    case FinishReason::kError: return "error";
    case FinishReason::kNone: break;
  }
  return "";
}

OutputUsage& operator+=(OutputUsage& sum, const OutputUsage& usage) {
  sum.prompt_tokens += usage.prompt_tokens;
  sum.cached_tokens += usage.cached_tokens;
  sum.completion_tokens += usage.completion_tokens;
  sum.queue_ms = std::max(sum.queue_ms, usage.queue_ms);
  sum.prefill_ms = std::max(sum.prefill_ms, usage.prefill_ms);
  sum.decode_ms = std::max(sum.decode_ms, usage.decode_ms);
  sum.cache.policy = usage.cache.policy;
  sum.cache.budget = std::max(sum.cache.budget, usage.cache.budget);  // with fraction they differ
  sum.cache.kept_sum += usage.cache.kept_sum;
  sum.cache.num_sequences += usage.cache.num_sequences;
  sum.cache.kept_max = std::max(sum.cache.kept_max, usage.cache.kept_max);
  sum.cache.evicted += usage.cache.evicted;
  sum.cache.events += usage.cache.events;
  sum.cache.bytes += usage.cache.bytes;
  return sum;
}

void append_prompt_progress(std::string& out, const PromptProgress& progress) {
  out += "\"prompt_progress\":{\"total\":";
  append_json_number(out, progress.total);
  out += ",\"cache\":";
  append_json_number(out, progress.cached);
  out += ",\"processed\":";
  append_json_number(out, progress.processed);
  out += ",\"time_ms\":";
  append_json_number(out, static_cast<int64_t>(progress.ms));
  out += '}';
}

std::string completion_body(const CompletionHeader& header, std::span<const CompletionChoice> choices,
                            const OutputUsage& usage, const Tokenizer& tokenizer) {
  const bool is_chat = header.api == CompletionApi::kChat;
  std::string out;
  append_header(out, header, is_chat ? "chat.completion" : "text_completion");
  out += ",\"choices\":";
  append_list(out, choices, [&](const CompletionChoice& choice) {
    out += "{\"index\":";
    append_json_number(out, static_cast<int64_t>(choice.index));
    (is_chat ? append_chat_choice : append_choice)(out, tokenizer, choice.output, *choice.options);
  });
  if (is_chat && !choices.empty()) append_prompt_members(out, tokenizer, choices[0].output);
  out += ',';
  append_usage_members(out, usage);
  out += '}';
  return out;
}

CompletionEvents::CompletionEvents(const CompletionHeader& header, const Tokenizer& tokenizer,
                                   bool include_usage)
    : api_(header.api), tokenizer_(&tokenizer) {
  prefix_ = "data: ";
  append_header(prefix_, header, api_ == CompletionApi::kChat ? "chat.completion.chunk" : "text_completion");
  usage_prefix_ = prefix_ + ",\"choices\":[],";
  prefix_ += ",\"choices\":[{\"index\":";
  suffix_ = include_usage ? "],\"usage\":null}\n\n" : "]}\n\n";
}

void CompletionEvents::append_suffix(std::string& out, const OutputUsage* usage) const {
  if (!usage) {
    out += suffix_;
    return;
  }
  out += "],";
  append_usage_members(out, *usage);
  out += "}\n\n";
}

void CompletionEvents::append_chunk(std::string& out, int32_t index, const OutputDelta& delta,
                                    const OutputOptions& options, const OutputUsage* usage) {
  if (api_ == CompletionApi::kChat) return append_chat_chunk(out, index, delta, options, usage);
  out += prefix_;
  append_json_number(out, static_cast<int64_t>(index));
  append_choice(out, *tokenizer_, delta, options);
  append_suffix(out, usage);
}

bool CompletionEvents::takes_role(int32_t index) {
  const auto at = static_cast<size_t>(index);
  if (at >= has_role_.size()) has_role_.resize(at + 1);
  if (has_role_[at]) return false;
  has_role_[at] = true;
  return true;
}

void CompletionEvents::append_progress(std::string& out, int32_t index, const PromptProgress& progress) {
  out += prefix_;
  append_json_number(out, static_cast<int64_t>(index));
  if (api_ != CompletionApi::kChat) {
    out += ",\"text\":\"\"";
  } else if (takes_role(index)) {
    out += ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"}";
  } else {
    out += ",\"delta\":{}";
  }
  out += ",\"logprobs\":null,\"finish_reason\":null}],";
  append_prompt_progress(out, progress);
  out += suffix_.substr(1);  // behind its bracket
}

void CompletionEvents::append_chat_chunk(std::string& out, int32_t index, const OutputDelta& delta,
                                         const OutputOptions& options, const OutputUsage* usage) {
  const auto begin = [&](std::string_view text) {
    out += prefix_;
    append_json_number(out, static_cast<int64_t>(index));
    out += ",\"delta\":";
    out += text;
  };
  const bool is_first = takes_role(index);
  if (is_first || delta.has_prompt()) {  // the role may have come with the prompt's progress
    begin(is_first ? "{\"role\":\"assistant\",\"content\":\"\"}" : "{}");
    out += ",\"logprobs\":null,\"finish_reason\":null}";
    out += ']';
    append_prompt_members(out, *tokenizer_, delta);
    const size_t bracket = out.size();
    append_suffix(out, usage);
    out.erase(bracket, 1);
  }
  const bool is_last = delta.finish != FinishReason::kNone;
  if (!delta.text.empty() || !delta.tokens.empty() || (!delta.token_ids.empty() && !is_last)) {
    begin("{\"content\":");
    append_json_string(out, delta.text);
    out += "},\"logprobs\":";
    append_chat_logprobs(out, *tokenizer_, delta, options);
    out += ",\"finish_reason\":null";
    if (options.return_token_ids && !is_last) append_token_ids(out, delta);
    out += '}';
    append_suffix(out, usage);
  }
  if (!is_last) return;
  begin("{},\"logprobs\":null");
  append_finish(out, delta, options);
  out += '}';
  append_suffix(out, usage);
}

void CompletionEvents::append_usage(std::string& out, const OutputUsage& usage) const {
  out += usage_prefix_;
  append_usage_members(out, usage);
  out += "}\n\n";
}

void CompletionEvents::append_error(std::string& out, const ApiError& error) {
  out += "data: ";
  out += error_body(error);
  out += "\n\n";
}

}  // namespace restkv

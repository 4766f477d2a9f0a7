// The rows of the field tables that completions and chat completions share: OpenAI's fields, vLLM's extras, and those known
// but not served yet.
#include <algorithm>
#include <cmath>
#include <limits>

#include "server/openai/completion_rows.h"

namespace restkv {
namespace {

using json = RequestJson;
using Field = CompletionField;

constexpr size_t kMaxStopTokenIds = 1024;
constexpr size_t kMaxAllowedTokens = 1 << 20;

Status add_stop(json& value, const std::string& path, CompletionRequest& r) {
  if (!value.is_string()) return invalid_field("'" + path + "' must be a string", path);
  auto& text = value.get_ref<std::string&>();
  if (text.empty()) return invalid_field("'" + path + "' must not be empty", path);
  if (text.size() > kMaxStopBytes) {
    return invalid_field("'" + path + "' must be at most " + std::to_string(kMaxStopBytes) + " bytes, not " +
                             std::to_string(text.size()),
                         path);
  }
  r.stop.push_back(std::move(text));
  return {};
}

Status set_stop(json& value, CompletionRequest& r) {
  if (value.is_string()) return add_stop(value, "stop", r);
  if (!value.is_array() || value.size() > kMaxStops) {
    return invalid_field(
        "'stop' must be a string or a list of at most " + std::to_string(kMaxStops) + " strings", "stop");
  }
  for (size_t i = 0; i < value.size(); ++i) {
    if (Status status = add_stop(value[i], "stop[" + std::to_string(i) + "]", r); !status.ok()) return status;
  }
  return {};
}

Status set_stop_token_ids(json& value, CompletionRequest& r) {
  return read_token_ids(value, "stop_token_ids", r.vocab_size, r.stop_token_ids);
}

// Keys are token ids as JSON writes keys: strings of digits.
Status set_logit_bias(json& value, CompletionRequest& r) {
  for (const auto& [key, bias] : value.items()) {
    const bool is_number = !key.empty() && key.size() <= 10 &&
                           key.find_first_not_of("0123456789") == std::string::npos &&
                           (key == "0" || key[0] != '0');
    const int64_t id = is_number ? std::stoll(key) : -1;
    if (id < 0 || id >= r.vocab_size) {
      return invalid_field(
          "the keys of 'logit_bias' must be token ids between 0 and " + std::to_string(r.vocab_size - 1),
          "logit_bias");
    }
    if (!bias.is_number() || !(std::fabs(bias.get<double>()) <= 100.0)) {
      return invalid_field("'logit_bias." + key + "' must be a number between -100 and 100",
                           "logit_bias." + key);
    }
    r.sampling.logit_bias.push_back({static_cast<int32_t>(id), bias.get<float>()});
  }
  return {};
}

Status set_stream_options(json& value, CompletionRequest& r) {
  r.has_stream_options = true;
  for (const auto& [key, option] : value.items()) {
    const std::string path = "stream_options." + key;
    bool* target = key == "include_usage"            ? &r.include_usage
                   : key == "continuous_usage_stats" ? &r.continuous_usage
                                                     : nullptr;
    if (!target) {
      if (r.field_options.strict) return unknown_field(path);
      if (r.field_options.unknown) r.field_options.unknown->push_back(path);
      continue;
    }
    if (!option.is_boolean() && !option.is_null())
      return invalid_field("'" + path + "' must be true or false", path);
    *target = option.is_boolean() && option.get<bool>();
  }
  return {};
}

Status set_allowed_token_ids(json& value, CompletionRequest& r) {
  if (value.empty())
    return invalid_field("'allowed_token_ids' must not be empty: no token could be drawn",
                         "allowed_token_ids");
  return read_token_ids(value, "allowed_token_ids", r.vocab_size, r.sampling.allowed_tokens);
}

Status set_bad_words(json& value, CompletionRequest& r) {
  for (size_t i = 0; i < value.size(); ++i) {
    const std::string path = "bad_words[" + std::to_string(i) + "]";
    if (!value[i].is_string()) return invalid_field("'" + path + "' must be a string", path);
    auto& text = value[i].get_ref<std::string&>();
    if (text.empty() || text.size() > kMaxStopBytes)
      return invalid_field("'" + path + "' must have 1 to " + std::to_string(kMaxStopBytes) + " bytes", path);
    r.bad_words.push_back(std::move(text));
  }
  return {};
}

Status set_truncation(json& value, CompletionRequest& r) {
  int64_t number = 0;
  CHECK(read_integer(value, number)) << "checked by the table";
  if (number == 0)
    return invalid_field("'truncate_prompt_tokens' must be -1 or at least 1", "truncate_prompt_tokens");
  r.truncate_prompt_tokens = static_cast<int32_t>(number);
  return {};
}

Status set_truncation_side(json& value, CompletionRequest& r) {
  if (value != "left" && value != "right")
    return invalid_field("'truncation_side' must be left or right", "truncation_side");
  r.truncates_left = value == "left";
  return {};
}

Status set_request_id(json& value, CompletionRequest& r) {
  auto& text = value.get_ref<std::string&>();
  if (!is_request_id(text)) {
    return invalid_field("'request_id' must be 1 to 128 letters, digits and any of -_.:", "request_id");
  }
  r.request_id = std::move(text);
  return {};
}

Status set_length_penalty(json& value, CompletionRequest&) {
  return value == 1 ? Status() : unsupported_field("length_penalty");
}

Status set_cache(json& value, CompletionRequest& r) {
  FieldOptions options = r.field_options;
  options.prefix = "cache.";
  return read_fields(value, cache_fields(), options, r.cache);
}

Status set_seed(json& value, CompletionRequest& r) {
  if (value.is_number_unsigned()) {
    r.seed = value.get<uint64_t>();
    return {};
  }
  int64_t seed = 0;
  CHECK(read_integer(value, seed)) << "checked by the table";
  r.seed = static_cast<uint64_t>(seed);
  return {};
}

Status set_temperature(json& value, CompletionRequest& r) {
  r.sampling.temperature = sampling_temperature(value.get<double>());
  return {};
}

// {"type": "text"} is what is done anyway.
Status set_response_format(json& value, CompletionRequest&) {
  const auto type = value.is_object() ? value.find("type") : value.end();
  if (value.is_object() && type != value.end() && *type == "text") return {};
  if (is_neutral(value)) return {};
  return invalid_argument(
             "'response_format' must be {\"type\": \"text\"}: this server cannot force a format yet")
      .with_param("response_format")
      .with_reason("unsupported_parameter");
}

using R = CompletionRequest;

const Field kFields[] = {
    text_row<&R::model>("model", 1024, "the served model's id"),
    bool_row<&R::stream>("stream", "false", "send tokens as server-sent events"),
    {{.name = "stream_options",
      .type = FieldType::kObject,
      .max = 16,
      .help = "include_usage: a last chunk with usage; continuous_usage_stats: usage in every chunk",
      .schema = R"("properties":{"include_usage":{"type":["boolean","null"]},
"continuous_usage_stats":{"type":["boolean","null"]}})"},
     set_stream_options},
    int_row<&R::min_tokens>("min_tokens", 0, kMaxInt32Field, "0",
                            "tokens before which the answer does not end"),
    {{.name = "temperature",
      .type = FieldType::kNumber,
      .max = 100,
      .default_json = "1",
      .help = "0: greedy (so is anything below 0.00001)"},
     set_temperature},
    {{.name = "top_p",
      .type = FieldType::kNumber,
      .max = 1,
      .excludes_min = true,
      .default_json = "1",
      .help = "sample from the smallest set of tokens with this much probability"},
     set_sampling_field<&SamplingParams::top_p>},
    {{.name = "top_k",
      .type = FieldType::kInteger,
      .min = -1,
      .max = kMaxInt32Field,
      .default_json = "0",
      .help = "sample from the k most likely tokens; 0 or -1: all"},
     [](json& value, R& r) {
       int64_t top_k = 0;
       CHECK(read_integer(value, top_k)) << "checked by the table";
       r.sampling.top_k = static_cast<int32_t>(std::max<int64_t>(0, top_k));
       return Status();
     }},
    sampling_row<&SamplingParams::min_p>("min_p", 0, 1, "0",
                                         "least probability, relative to the most likely token"),
    {{.name = "seed",
      .type = FieldType::kInteger,
      .min = -9223372036854775808.0,
      .max = 18446744073709551616.0,
      .help = "the same seed gives the same text; null: a new one"},
     set_seed},
    {{.name = "stop",
      .type = FieldType::kAny,
      .help = "up to 4 strings of at most 256 bytes that end the answer",
      .schema = R"("anyOf":[{"type":"string","minLength":1,"maxLength":256},{"type":"array","maxItems":4,
"items":{"type":"string","minLength":1,"maxLength":256}},{"type":"null"}])"},
     set_stop},
    {{.name = "stop_token_ids",
      .type = FieldType::kList,
      .max = kMaxStopTokenIds,
      .default_json = "[]",
      .help = "token ids that end the answer",
      .schema = R"("items":{"type":"integer","minimum":0,"format":"token-id"})"},
     set_stop_token_ids},
    bool_row<&R::ignore_eos>("ignore_eos", "false", "go on past the end token"),
    int_row<&R::num_choices>("n", 1, 16, "1", "answers for each prompt"),
    text_row<&R::cache_salt>("cache_salt", 1024,
                             "prompts share the prefix cache with those of the same key and salt only"),
    int_row<&R::priority>("priority", -2147483648.0, kMaxInt32Field, "0",
                          "who runs first under scheduling_policy: priority; lower ones do"),
    sampling_row<&SamplingParams::presence_penalty>("presence_penalty", -2, 2, "0",
                                                    "subtracted from logits of tokens that the answer has"),
    sampling_row<&SamplingParams::frequency_penalty>("frequency_penalty", -2, 2, "0",
                                                     "the same, times their count"),
    sampling_row<&SamplingParams::repetition_penalty>("repetition_penalty", 0.01, 100, "1",
                                                      "divides logits of tokens that prompt or answer have"),
    {{.name = "logit_bias",
      .type = FieldType::kObject,
      .max = 1024,
      .help = "token id -> number added to its logit",
      .schema = R"("additionalProperties":{"type":"number","minimum":-100,"maximum":100})"},
     set_logit_bias},
    bool_row<&R::skip_special_tokens>("skip_special_tokens", "true",
                                      "leave control tokens out of the answer"),
    bool_row<&R::include_stop_string>("include_stop_str_in_output", "false", "keep what ended the answer"),
    {{.name = "cache",
      .type = FieldType::kObject,
      .max = 64,
      .help = "what stays in the cache of this request"},
     set_cache},
    taken_row("user", FieldType::kString, 1024),
    int_row<&R::prompt_logprobs>("prompt_logprobs", 0, 20, "null",
                                 "log probabilities of the prompt's tokens and of so many most likely ones"),
    {{.name = "allowed_token_ids",
      .type = FieldType::kList,
      .max = kMaxAllowedTokens,
      .help = "the only tokens that may be drawn",
      .schema = R"("minItems":1,"items":{"type":"integer","minimum":0,"format":"token-id"})"},
     set_allowed_token_ids},
    {{.name = "bad_words",
      .type = FieldType::kList,
      .max = kMaxBadWords,
      .help = "texts that must not be generated",
      .schema = R"("items":{"type":"string","minLength":1,"maxLength":256})"},
     set_bad_words},
    {{.name = "truncate_prompt_tokens",
      .type = FieldType::kInteger,
      .min = -1,
      .max = kMaxInt32Field,
      .help = "keep so many of the prompt's last tokens; -1: what the context leaves beside max_tokens",
      .schema = R"("not":{"const":0})"},
     set_truncation},
    bool_row<&R::return_token_ids>("return_token_ids", "false",
                                   "prompt_token_ids and token_ids beside the text"),
    bool_row<&R::tokens_as_ids>("return_tokens_as_token_ids", "false", "tokens of logprobs as token_id:N"),
    {{.name = "request_id",
      .type = FieldType::kString,
      .max = 128,
      .help = "the id of the answer, behind its prefix",
      .schema = R"("minLength":1,"pattern":"^[A-Za-z0-9_.:-]+$")"},
     set_request_id},
    bool_row<&R::return_prompt_text>("return_prompt_text", "false",
                                     "prompt_text beside the text: what the model was given"),
    int_row<&R::stream_interval>("stream_interval", 1, 1024, "1",
                                 "pieces of a stream that are sent together, behind the first one"),
    bool_row<&R::return_progress>("return_progress", "false",
                                  "prompt_progress in chunks of a stream before the first token: total, "
                                  "cache, processed (tokens), time_ms"),
    {{.name = "length_penalty",
      .type = FieldType::kNumber,
      .min = -kUnbounded,
      .max = kUnbounded,
      .default_json = "1",
      .help = "1: there is no beam search",
      .schema = R"("enum":[1,null])"},
     set_length_penalty},
    taken_row("spaces_between_special_tokens", FieldType::kBool),
    {{.name = "response_format",
      .help = "{type: text}",
      .schema = R"("anyOf":[{"type":"object","required":["type"],"properties":{"type":{"const":"text"}}},
{"type":"null"}])"},
     set_response_format},
    {{.name = "truncation_side",
      .type = FieldType::kString,
      .max = 8,
      .default_json = "\"left\"",
      .help = "left: truncate_prompt_tokens keeps the last tokens; right: the first ones",
      .schema = R"("enum":["left","right",null])"},
     set_truncation_side},
    taken_row("session_id", FieldType::kString, 1024),
    refused_row("logprob_token_ids"),
    refused_row("thinking_token_budget"),
    refused_row("vllm_xargs"),
    refused_row("use_beam_search"),
    refused_row("structured_outputs"),
    refused_row("guided_json", FieldType::kObject),
    refused_row("guided_regex"),
    refused_row("guided_choice"),
    refused_row("guided_grammar"),
    refused_row("grammar"),
    refused_row("json_schema", FieldType::kObject),
};

}  // namespace

std::span<const Field> generation_fields() { return kFields; }

bool is_request_id(std::string_view text) {
  constexpr size_t kMaxLen = 128;
  return !text.empty() && text.size() <= kMaxLen && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
           c == '_' || c == '.' || c == ':';
  });
}

float sampling_temperature(double temperature) {
  constexpr double kLeast = 1e-5;
  return temperature < kLeast ? 0.0f : static_cast<float>(temperature);
}

}  // namespace restkv

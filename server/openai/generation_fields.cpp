// The rows of the field tables that completions and chat completions share: OpenAI's fields, vLLM's extras, and those known
// but not served yet.
#include <algorithm>
#include <cmath>
#include <limits>

#include "server/openai/completion_request.h"

namespace restkv {
namespace {

using json = RequestJson;
using Field = RequestField<CompletionRequest>;

constexpr size_t kMaxStopTokenIds = 1024;
constexpr size_t kMaxAllowedTokens = 1 << 20;

Status invalid(std::string message, std::string param) {
  return invalid_argument(std::move(message)).with_param(std::move(param)).with_reason("invalid_value");
}

Status add_stop(json& value, const std::string& path, CompletionRequest& r) {
  if (!value.is_string()) return invalid("'" + path + "' must be a string", path);
  auto& text = value.get_ref<std::string&>();
  if (text.empty()) return invalid("'" + path + "' must not be empty", path);
  if (text.size() > kMaxStopBytes) {
    return invalid("'" + path + "' must be at most " + std::to_string(kMaxStopBytes) + " bytes, not " +
                       std::to_string(text.size()),
                   path);
  }
  r.stop.push_back(std::move(text));
  return {};
}

Status set_stop(json& value, CompletionRequest& r) {
  if (value.is_string()) return add_stop(value, "stop", r);
  if (!value.is_array() || value.size() > kMaxStops) {
    return invalid("'stop' must be a string or a list of at most " + std::to_string(kMaxStops) + " strings",
                   "stop");
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
      return invalid(
          "the keys of 'logit_bias' must be token ids between 0 and " + std::to_string(r.vocab_size - 1),
          "logit_bias");
    }
    if (!bias.is_number() || !(std::fabs(bias.get<double>()) <= 100.0)) {
      return invalid("'logit_bias." + key + "' must be a number between -100 and 100", "logit_bias." + key);
    }
    r.sampling.logit_bias.push_back({static_cast<int32_t>(id), bias.get<float>()});
  }
  return {};
}

Status set_stream_options(json& value, CompletionRequest& r) {
  r.has_stream_options = true;
  for (const auto& [key, option] : value.items()) {
    const std::string path = "stream_options." + key;
    if (key == "include_usage") {
      if (!option.is_boolean() && !option.is_null())
        return invalid("'" + path + "' must be true or false", path);
      r.include_usage = option.is_boolean() && option.get<bool>();
    } else if (key == "continuous_usage_stats") {
      if (!option.is_boolean() && !option.is_null())
        return invalid("'" + path + "' must be true or false", path);
      r.continuous_usage = option.is_boolean() && option.get<bool>();
    }
  }
  return {};
}

Status set_allowed_token_ids(json& value, CompletionRequest& r) {
  if (value.empty())
    return invalid("'allowed_token_ids' must not be empty: no token could be drawn", "allowed_token_ids");
  return read_token_ids(value, "allowed_token_ids", r.vocab_size, r.sampling.allowed_tokens);
}

Status set_bad_words(json& value, CompletionRequest& r) {
  for (size_t i = 0; i < value.size(); ++i) {
    const std::string path = "bad_words[" + std::to_string(i) + "]";
    if (!value[i].is_string()) return invalid("'" + path + "' must be a string", path);
    auto& text = value[i].get_ref<std::string&>();
    if (text.empty() || text.size() > kMaxStopBytes)
      return invalid("'" + path + "' must have 1 to " + std::to_string(kMaxStopBytes) + " bytes", path);
    r.bad_words.push_back(std::move(text));
  }
  return {};
}

Status set_truncation(json& value, CompletionRequest& r) {
  int64_t number = 0;
  CHECK(read_integer(value, number)) << "checked by the table";
  if (number == 0)
    return invalid("'truncate_prompt_tokens' must be -1 or at least 1", "truncate_prompt_tokens");
  r.truncate_prompt_tokens = static_cast<int32_t>(number);
  return {};
}

Status set_truncation_side(json& value, CompletionRequest& r) {
  if (value != "left" && value != "right")
    return invalid("'truncation_side' must be left or right", "truncation_side");
  r.truncates_left = value == "left";
  return {};
}

Status set_request_id(json& value, CompletionRequest& r) {
  auto& text = value.get_ref<std::string&>();
  if (!is_request_id(text)) {
    return invalid("'request_id' must be 1 to 128 letters, digits and any of -_.:", "request_id");
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
  return is_neutral(value) ? Status() : unsupported_field("response_format");
}

template <auto Member>
Status set_sampling(json& value, CompletionRequest& r) {
  r.sampling.*Member = value.get<float>();
  return {};
}

using R = CompletionRequest;

const Field kFields[] = {
    {{.name = "model", .type = FieldType::kString, .max = 1024, .help = "the served model's id"},
     [](json& value, R& r) {
       r.model = std::move(value.get_ref<std::string&>());
       return Status();
     }},
    {{.name = "stream",
      .type = FieldType::kBool,
      .default_json = "false",
      .help = "send tokens as server-sent events"},
     set_bool_field<&R::stream>},
    {{.name = "stream_options",
      .type = FieldType::kObject,
      .max = 16,
      .help = "include_usage: a last chunk with usage; continuous_usage_stats: usage in every chunk",
      .schema = R"("properties":{"include_usage":{"type":["boolean","null"]},
"continuous_usage_stats":{"type":["boolean","null"]}})"},
     set_stream_options},
    {{.name = "min_tokens",
      .type = FieldType::kInteger,
      .max = kMaxInt32Field,
      .default_json = "0",
      .help = "tokens before which the answer does not end"},
     set_int_field<&R::min_tokens>},
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
     set_sampling<&SamplingParams::top_p>},
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
    {{.name = "min_p",
      .type = FieldType::kNumber,
      .max = 1,
      .default_json = "0",
      .help = "least probability, relative to the most likely token"},
     set_sampling<&SamplingParams::min_p>},
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
      .schema = R"("items":{"type":"integer","minimum":0})"},
     set_stop_token_ids},
    {{.name = "ignore_eos",
      .type = FieldType::kBool,
      .default_json = "false",
      .help = "go on past the end token"},
     set_bool_field<&R::ignore_eos>},
    {{.name = "n",
      .type = FieldType::kInteger,
      .min = 1,
      .max = 16,
      .default_json = "1",
      .help = "answers for each prompt"},
     set_int_field<&R::num_choices>},
    {{.name = "cache_salt",
      .type = FieldType::kString,
      .max = 1024,
      .help = "prompts share the prefix cache with those of the same key and salt only"},
     [](json& value, R& r) {
       r.cache_salt = std::move(value.get_ref<std::string&>());
       return Status();
     }},
    {{.name = "priority",
      .type = FieldType::kInteger,
      .min = -2147483648.0,
      .max = kMaxInt32Field,
      .default_json = "0",
      .help = "who runs first under scheduling_policy: priority; lower ones do"},
     set_int_field<&R::priority>},
    {{.name = "presence_penalty",
      .type = FieldType::kNumber,
      .min = -2,
      .max = 2,
      .default_json = "0",
      .help = "subtracted from logits of tokens that the answer has"},
     set_sampling<&SamplingParams::presence_penalty>},
    {{.name = "frequency_penalty",
      .type = FieldType::kNumber,
      .min = -2,
      .max = 2,
      .default_json = "0",
      .help = "the same, times their count"},
     set_sampling<&SamplingParams::frequency_penalty>},
    {{.name = "repetition_penalty",
      .type = FieldType::kNumber,
      .min = 0.01,
      .max = 100,
      .default_json = "1",
      .help = "divides logits of tokens that prompt or answer have"},
     set_sampling<&SamplingParams::repetition_penalty>},
    {{.name = "logit_bias",
      .type = FieldType::kObject,
      .max = 1024,
      .help = "token id -> number added to its logit",
      .schema = R"("additionalProperties":{"type":"number","minimum":-100,"maximum":100})"},
     set_logit_bias},
    {{.name = "skip_special_tokens",
      .type = FieldType::kBool,
      .default_json = "true",
      .help = "leave control tokens out of the answer"},
     set_bool_field<&R::skip_special_tokens>},
    {{.name = "include_stop_str_in_output",
      .type = FieldType::kBool,
      .default_json = "false",
      .help = "keep what ended the answer"},
     set_bool_field<&R::include_stop_string>},
    {{.name = "cache",
      .type = FieldType::kObject,
      .max = 64,
      .help = "what stays in the cache of this request"},
     set_cache},
    {{.name = "user", .type = FieldType::kString, .max = 1024, .help = "taken and not used"},
     [](json&, R&) { return Status(); }},
    {{.name = "prompt_logprobs",
      .type = FieldType::kInteger,
      .max = 20,
      .help = "log probabilities of the prompt's tokens and of so many most likely ones"},
     set_int_field<&R::prompt_logprobs>},
    {{.name = "allowed_token_ids",
      .type = FieldType::kList,
      .max = kMaxAllowedTokens,
      .help = "the only tokens that may be drawn",
      .schema = R"("minItems":1,"items":{"type":"integer","minimum":0})"},
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
      .help = "keep so many of the prompt's last tokens; -1: what the context leaves beside max_tokens"},
     set_truncation},
    {{.name = "return_token_ids",
      .type = FieldType::kBool,
      .default_json = "false",
      .help = "prompt_token_ids and token_ids beside the text"},
     set_bool_field<&R::return_token_ids>},
    {{.name = "return_tokens_as_token_ids",
      .type = FieldType::kBool,
      .default_json = "false",
      .help = "tokens of logprobs as token_id:N"},
     set_bool_field<&R::tokens_as_ids>},
    {{.name = "request_id",
      .type = FieldType::kString,
      .max = 128,
      .help = "the id of the answer, behind its prefix"},
     set_request_id},
    {{.name = "length_penalty",
      .type = FieldType::kNumber,
      .min = -kUnbounded,
      .max = kUnbounded,
      .default_json = "1",
      .help = "1: there is no beam search"},
     set_length_penalty},
    {{.name = "spaces_between_special_tokens", .type = FieldType::kBool, .help = "taken and not used"},
     [](json&, R&) { return Status(); }},
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
    {{.name = "session_id", .type = FieldType::kString, .max = 1024, .help = "taken and not used"},
     [](json&, R&) { return Status(); }},
    {{.name = "logprob_token_ids"}},
    {{.name = "return_prompt_text"}},
    {{.name = "stream_interval"}},
    {{.name = "thinking_token_budget"}},
    {{.name = "vllm_xargs"}},
    {{.name = "use_beam_search"}},
    {{.name = "structured_outputs"}},
    {{.name = "guided_json"}},
    {{.name = "guided_regex"}},
    {{.name = "guided_choice"}},
    {{.name = "guided_grammar"}},
    {{.name = "grammar"}},
    {{.name = "json_schema"}},
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

// The field table of POST /completion. Samplers that this server does not have are taken at the value that turns them off.
#include <algorithm>
#include <cmath>

#include "server/openai/completion_rows.h"
#include "server/openai/llama_completion.h"

namespace restkv {
namespace {

using json = RequestJson;
using Field = CompletionField;
using R = CompletionRequest;

Status set_prompt(json& value, R& r) {
  Prompt prompt;
  if (value.is_string()) {
    prompt.text = std::move(value.get_ref<std::string&>());
  } else if (value.is_array() && !value.empty() && value[0].is_number()) {
    prompt.is_text = false;
    if (Status status = read_token_ids(value, "prompt", r.vocab_size, prompt.ids); !status.ok())
      return status;
  } else {
    return invalid_field("'prompt' must be a string or a list of token ids", "prompt");
  }
  r.prompts.push_back(std::move(prompt));
  return {};
}

// -1: until the end token or the end of the context, -2: the same.
Status set_n_predict(json& value, R& r) {
  int64_t number = 0;
  CHECK(read_integer(value, number)) << "checked by the table";
  if (number >= 0) r.max_tokens = static_cast<int32_t>(number);
  return {};
}

Status set_seed(json& value, R& r) {
  int64_t seed = 0;
  CHECK(read_integer(value, seed)) << "checked by the table";
  if (seed != -1) r.seed = static_cast<uint64_t>(seed);
  return {};
}

// [[id, bias], ...]; false as the bias bans the token.
Status set_logit_bias(json& value, R& r) {
  if (!value.is_array())
    return invalid_field("'logit_bias' must be a list of [token id, number or false]", "logit_bias");
  if (value.size() > 1024) return invalid_field("'logit_bias' must have at most 1024 items", "logit_bias");
  for (size_t i = 0; i < value.size(); ++i) {
    const std::string path = "logit_bias[" + std::to_string(i) + "]";
    const json& pair = value[i];
    int64_t id = 0;
    const bool is_pair =
        pair.is_array() && pair.size() == 2 && read_integer(pair[0], id) && id >= 0 && id < r.vocab_size;
    if (!is_pair) {
      return invalid_field("'" + path + "' must be [token id between 0 and " +
                               std::to_string(r.vocab_size - 1) + ", number or false]",
                           path);
    }
    const auto token = static_cast<int32_t>(id);
    if (std::any_of(r.sampling.logit_bias.begin(), r.sampling.logit_bias.end(),
                    [&](const LogitBias& bias) { return bias.token == token; })) {
      return invalid_field("'" + path + "' names a token that is there already", path);
    }
    if (pair[1] == false) {
      r.bad_tokens.push_back(token);
    } else if (pair[1].is_number() && std::fabs(pair[1].get<double>()) <= 1e4) {
      r.sampling.logit_bias.push_back({token, pair[1].get<float>()});
    } else {
      return invalid_field("'" + path + "' must end with a number between -10000 and 10000 or false", path);
    }
  }
  return {};
}

// A sampler that is not here: only the value that turns it off.
template <int kOff>
Field off_field(std::string_view name) {
  return {{.name = name,
           .type = FieldType::kNumber,
           .min = kOff,
           .max = kOff,
           .help = "a sampler that is off here"},
          take_field};
}

// A row of the other routes under llama.cpp's name, with its default.
Field row_of(std::string_view name, std::string_view own_name, std::string_view default_json) {
  for (Field field : generation_fields()) {
    if (field.spec.name != name) continue;
    field.spec.name = own_name;
    field.spec.default_json = default_json;
    return field;
  }
  CHECK(false) << "no field " << name;
  return {};
}

std::vector<Field> make_fields() {
  std::vector<Field> fields = {
      {{.name = "prompt",
        .type = FieldType::kAny,
        .help = "a string or token ids",
        .schema =
            R"("anyOf":[{"type":"string"},{"type":"array","minItems":1,"items":{"type":"integer","minimum":0,"format":"token-id"}}])"},
       set_prompt},
      {{.name = "n_predict",
        .type = FieldType::kInteger,
        .min = -2,
        .max = kMaxInt32Field,
        .default_json = "-1",
        .help = "most tokens of the answer; -1: as far as the context reaches"},
       set_n_predict},
      row_of("temperature", "temperature", "0.8"),
      row_of("repetition_penalty", "repeat_penalty", "1"),
      int_row<&R::repeat_last_n>("repeat_last_n", -1, kMaxInt32Field, "null",
                                 "with a repeat_penalty only -1: all of prompt and answer"),
      {{.name = "seed",
        .type = FieldType::kInteger,
        .min = -1,
        .max = 9007199254740992.0,
        .default_json = "-1",
        .help = "the same seed gives the same text; -1: a new one"},
       set_seed},
      {{.name = "logit_bias",
        .type = FieldType::kAny,
        .help = "[[token id, number or false], ...]",
        .schema =
            R"("type":["array","null"],"maxItems":1024,"items":{"type":"array","minItems":2,"maxItems":2})"},
       set_logit_bias},
      {{.name = "n_probs",
        .type = FieldType::kInteger,
        .max = 20,
        .default_json = "0",
        .help = "log probabilities of the tokens and of so many most likely ones"},
       [](json& value, R& r) {
         int64_t number = 0;
         CHECK(read_integer(value, number)) << "checked by the table";
         r.logprobs = number > 0 ? static_cast<int32_t>(number) : -1;
         return Status();
       }},
      row_of("return_token_ids", "return_tokens", "false"),
      taken_row("cache_prompt", FieldType::kBool),
      taken_row("id_slot", FieldType::kInteger, kUnbounded, -kUnbounded),
      bool_row<&R::timings_per_token>("timings_per_token", "false", "timings in each event of a stream"),
      taken_row("n_keep", FieldType::kInteger, kUnbounded, -kUnbounded),
      taken_row("min_keep", FieldType::kInteger, kUnbounded, -kUnbounded),
      off_field<0>("mirostat"),
      off_field<0>("dry_multiplier"),
      off_field<0>("xtc_probability"),
      off_field<0>("dynatemp_range"),
      off_field<1>("typical_p"),
      off_field<-1>("top_n_sigma"),
      refused_row("samplers"),
      refused_row("post_sampling_probs"),
      refused_row("response_fields"),
      refused_row("lora"),
      refused_row("image_data"),
  };
  // The same name, bounds and meaning as on the other routes.
  for (const Field& field : generation_fields()) {
    for (const std::string_view name :
         {"model", "stream", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "stop",
          "ignore_eos", "cache", "return_progress", "grammar", "json_schema"}) {
      if (field.spec.name == name) fields.push_back(field);
    }
  }
  return fields;
}

}  // namespace

std::span<const Field> llama_fields() {
  static const std::vector<Field> fields = make_fields();
  return fields;
}

SamplingParams llama_sampling() {
  SamplingParams sampling;
  sampling.temperature = 0.8f;
  sampling.top_k = 40;
  sampling.top_p = 0.95f;
  sampling.min_p = 0.05f;
  sampling.temperature_last = true;
  return sampling;
}

}  // namespace restkv

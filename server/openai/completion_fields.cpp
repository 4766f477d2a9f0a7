// The field table of POST /v1/completions.
#include "server/openai/completion_request.h"
#include "server/openai/llama_completion.h"

namespace restkv {
namespace {

using json = RequestJson;
using Field = RequestField<CompletionRequest>;

Status invalid(std::string message, std::string param) {
  return invalid_argument(std::move(message)).with_param(std::move(param)).with_reason("invalid_value");
}

Status prompt_type_error(const std::string& path) {
  return invalid(
      "'" + path + "' must be a string, a list of strings, a list of token ids or a list of such lists",
      path);
}

Status set_prompt(json& value, CompletionRequest& r) {
  const auto add_text = [&](json& text) {
    Prompt& prompt = r.prompts.emplace_back();
    prompt.text = std::move(text.get_ref<std::string&>());
  };
  const auto add_ids = [&](const json& list, const std::string& path) {
    Prompt& prompt = r.prompts.emplace_back();
    prompt.is_text = false;
    return read_token_ids(list, path, r.vocab_size, prompt.ids);
  };
  if (value.is_string()) {
    add_text(value);
    return {};
  }
  if (!value.is_array()) return prompt_type_error("prompt");
  if (value.empty()) return invalid("'prompt' is an empty list", "prompt");
  if (value[0].is_number()) return add_ids(value, "prompt");
  if (value.size() > kMaxPrompts) {
    return invalid("'prompt' has " + std::to_string(value.size()) + " prompts; at most " +
                       std::to_string(kMaxPrompts) + " are taken at once",
                   "prompt");
  }
  const bool is_text = value[0].is_string();
  for (size_t i = 0; i < value.size(); ++i) {
    const std::string path = "prompt[" + std::to_string(i) + "]";
    if (is_text ? !value[i].is_string() : !value[i].is_array()) return prompt_type_error(path);
    if (is_text) {
      add_text(value[i]);
    } else if (Status status = add_ids(value[i], path); !status.ok()) {
      return status;
    }
  }
  return {};
}

using R = CompletionRequest;

const Field kFields[] = {
    {{.name = "prompt",
      .type = FieldType::kAny,
      .help = "a string, strings, token ids or lists of token ids",
      .schema = R"("anyOf":[{"type":"string"},{"type":"array","minItems":1,"maxItems":1024,
"items":{"type":"string"}},{"type":"array","minItems":1,"items":{"type":"integer",
"minimum":0}},{"type":"array","minItems":1,"maxItems":1024,"items":{"type":"array",
"minItems":1,"items":{"type":"integer","minimum":0}}}])"},
     set_prompt},
    {{.name = "max_tokens",
      .type = FieldType::kInteger,
      .max = kMaxInt32Field,
      .default_json = "16",
      .help = "most tokens of each answer"},
     set_int_field<&R::max_tokens>},
    {{.name = "best_of", .type = FieldType::kInteger, .min = 1, .max = 16, .help = "only n itself is served"},
     set_int_field<&R::best_of>},
    {{.name = "echo",
      .type = FieldType::kBool,
      .default_json = "false",
      .help = "the prompt before the answer"},
     set_bool_field<&R::echo>},
    {{.name = "logprobs",
      .type = FieldType::kInteger,
      .max = 20,
      .help = "log probabilities of the tokens and of so many most likely ones"},
     set_int_field<&R::logprobs>},
    {{.name = "add_special_tokens",
      .type = FieldType::kBool,
      .default_json = "true",
      .help = "begin-of-text tokens as the model's file says"},
     set_bool_field<&R::add_special_tokens>},
    {{.name = "suffix"}},
};

Status check_text(const CompletionRequest& r) {
  if (r.prompts.empty()) {
    return invalid_argument("'prompt' is required")
        .with_param("prompt")
        .with_reason("missing_required_parameter");
  }
  if (r.best_of > 0 && r.best_of < r.num_choices)
    return invalid("'best_of' must not be below 'n'", "best_of");
  if (r.best_of > r.num_choices) return unsupported_field("best_of");
  return {};
}

Status check_llama(const CompletionRequest& r) {
  if (r.prompts.empty()) {
    return invalid_argument("'prompt' is required")
        .with_param("prompt")
        .with_reason("missing_required_parameter");
  }
  if (r.sampling.repetition_penalty != 1.0f && r.repeat_last_n.value_or(-1) != -1) {
    return invalid(
        "'repeat_last_n' must be -1 with a 'repeat_penalty': it counts over all of prompt and answer",
        "repeat_last_n");
  }
  return {};
}

// "logprobs": true, "top_logprobs": 3 -> one number.
Status check_chat(CompletionRequest& r) {
  const bool wants_logprobs = r.wants_logprobs.value_or(false);
  if (r.top_logprobs && *r.top_logprobs > 0 && !wants_logprobs)
    return invalid("'top_logprobs' is only allowed with \"logprobs\": true", "top_logprobs");
  if (wants_logprobs) r.logprobs = r.top_logprobs.value_or(0);
  if (r.max_completion_tokens) r.max_tokens = r.max_completion_tokens;
  return check_chat_prompt(r.chat);
}

}  // namespace

std::span<const Field> completion_fields() {
  static const std::vector<Field> fields = [] {
    std::vector<Field> all(std::begin(kFields), std::end(kFields));
    all.insert(all.end(), generation_fields().begin(), generation_fields().end());
    return all;
  }();
  return fields;
}

Status parse_completion_request(json body, CompletionRequest& r) {
  const auto read = [&](std::span<const Field> fields) {
    return read_fields(body, fields, r.field_options, r);
  };
  Status status;
  switch (r.api) {
    case CompletionApi::kText:
      status = read(completion_fields());
      if (status.ok()) status = check_text(r);
      if (!r.max_tokens) r.max_tokens = kDefaultMaxTokens;
      break;
    case CompletionApi::kChat:
      status = read(chat_fields());
      if (status.ok()) status = check_chat(r);
      break;
    case CompletionApi::kLlama:
      status = read(llama_fields());
      if (status.ok()) status = check_llama(r);
      break;
  }
  if (!status.ok()) return status;
  if (r.has_stream_options && !r.stream) {
    return invalid("'stream_options' is only allowed with \"stream\": true", "stream_options");
  }
  if (r.max_tokens && r.min_tokens > *r.max_tokens) {
    return invalid("'min_tokens' (" + std::to_string(r.min_tokens) + ") must not be above 'max_tokens' (" +
                       std::to_string(*r.max_tokens) + ")",
                   "min_tokens");
  }
  return {};
}

}  // namespace restkv

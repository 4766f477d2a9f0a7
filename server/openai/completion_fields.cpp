// The field table of POST /v1/completions.
#include "server/openai/completion_rows.h"
#include "server/openai/llama_completion.h"

namespace restkv {
namespace {

using json = RequestJson;
using Field = CompletionField;

Status prompt_type_error(const std::string& path) {
  return invalid_field(
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
  if (value.empty()) return invalid_field("'prompt' is an empty list", "prompt");
  if (value[0].is_number()) return add_ids(value, "prompt");
  if (value.size() > kMaxPrompts) {
    return invalid_field("'prompt' has " + std::to_string(value.size()) + " prompts; at most " +
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
"minimum":0,"format":"token-id"}},{"type":"array","minItems":1,"maxItems":1024,"items":{"type":"array",
"minItems":1,"items":{"type":"integer","minimum":0,"format":"token-id"}}}])"},
     set_prompt},
    int_row<&R::max_tokens>("max_tokens", 0, kMaxInt32Field, "16", "most tokens of each answer"),
    int_row<&R::best_of>("best_of", 1, 16, "null", "only n itself is served"),
    bool_row<&R::echo>("echo", "false", "the prompt before the answer"),
    int_row<&R::logprobs>("logprobs", 0, 20, "null",
                          "log probabilities of the tokens and of so many most likely ones"),
    bool_row<&R::add_special_tokens>("add_special_tokens", "true",
                                     "begin-of-text tokens as the model's file says"),
    refused_row("suffix"),
};

Status check_text(const CompletionRequest& r) {
  if (r.prompts.empty()) {
    return invalid_argument("'prompt' is required")
        .with_param("prompt")
        .with_reason("missing_required_parameter");
  }
  if (r.best_of > 0 && r.best_of < r.num_choices)
    return invalid_field("'best_of' must not be below 'n'", "best_of");
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
    return invalid_field(
        "'repeat_last_n' must be -1 with a 'repeat_penalty': it counts over all of prompt and answer",
        "repeat_last_n");
  }
  return {};
}

// "logprobs": true, "top_logprobs": 3 -> one number.
Status check_chat(CompletionRequest& r) {
  const bool wants_logprobs = r.wants_logprobs.value_or(false);
  if (r.top_logprobs && *r.top_logprobs > 0 && !wants_logprobs)
    return invalid_field("'top_logprobs' is only allowed with \"logprobs\": true", "top_logprobs");
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
    return invalid_field("'stream_options' is only allowed with \"stream\": true", "stream_options");
  }
  if (r.max_tokens && r.min_tokens > *r.max_tokens) {
    return invalid_field("'min_tokens' (" + std::to_string(r.min_tokens) +
                             ") must not be above 'max_tokens' (" + std::to_string(*r.max_tokens) + ")",
                         "min_tokens");
  }
  return {};
}

}  // namespace restkv

// The field table of POST /v1/chat/completions.
#include "server/openai/completion_rows.h"

namespace restkv {
namespace {

using json = RequestJson;
using Field = CompletionField;
using R = CompletionRequest;

Status set_modalities(json& value, R&) {
  for (const json& item : value) {
    if (item != "text") return unsupported_field("modalities");
  }
  return {};
}

const Field kFields[] = {
    {{.name = "max_completion_tokens",
      .type = FieldType::kInteger,
      .max = kMaxInt32Field,
      .help = "most tokens of each answer; default: the server's default_max_tokens, as far as the context "
              "reaches"},
     set_int_field<&R::max_completion_tokens>},
    int_row<&R::max_tokens>("max_tokens", 0, kMaxInt32Field, "null",
                            "the older name of max_completion_tokens"),
    bool_row<&R::wants_logprobs>("logprobs", "false", "log probabilities of the answer's tokens"),
    int_row<&R::top_logprobs>("top_logprobs", 0, 20, "null", "and of so many most likely ones"),
    {{.name = "add_special_tokens",
      .type = FieldType::kBool,
      .default_json = "false",
      .help = "a begin-of-text token where the template writes none"},
     [](json& value, R& r) {
       r.chat.add_special_tokens = value.get<bool>();
       return Status();
     }},
    {{.name = "modalities",
      .type = FieldType::kList,
      .max = 8,
      .help = "[text]",
      .schema = R"("items":{"const":"text"})"},
     set_modalities},
    taken_row("parallel_tool_calls", FieldType::kBool),
    taken_row("metadata", FieldType::kObject, 64),
    taken_row("store", FieldType::kBool),
    taken_row("service_tier", FieldType::kString, 64),
    refused_row("echo"),
    refused_row("functions"),
    refused_row("function_call"),
    refused_row("audio"),
    refused_row("web_search_options"),
};

}  // namespace

std::span<const Field> chat_fields() {
  static const std::vector<Field> fields = [] {
    std::vector<Field> all = chat_prompt_fields<R>();
    all.insert(all.end(), std::begin(kFields), std::end(kFields));
    all.insert(all.end(), generation_fields().begin(), generation_fields().end());
    return all;
  }();
  return fields;
}

}  // namespace restkv

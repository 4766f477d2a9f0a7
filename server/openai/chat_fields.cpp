// The field table of POST /v1/chat/completions.
#include "server/openai/completion_request.h"

namespace restkv {
namespace {

using json = RequestJson;
using Field = RequestField<CompletionRequest>;
using R = CompletionRequest;

Status set_modalities(json& value, R&) {
  for (const json& item : value) {
    if (item != "text") return unsupported_field("modalities");
  }
  return {};
}

Status take(json&, R&) { return {}; }

const Field kFields[] = {
    {{.name = "max_completion_tokens",
      .type = FieldType::kInteger,
      .max = kMaxInt32Field,
      .help = "most tokens of each answer; default: the server's default_max_tokens, as far as the context "
              "reaches"},
     set_int_field<&R::max_completion_tokens>},
    {{.name = "max_tokens",
      .type = FieldType::kInteger,
      .max = kMaxInt32Field,
      .help = "the older name of max_completion_tokens"},
     set_int_field<&R::max_tokens>},
    {{.name = "logprobs",
      .type = FieldType::kBool,
      .default_json = "false",
      .help = "log probabilities of the answer's tokens"},
     set_bool_field<&R::wants_logprobs>},
    {{.name = "top_logprobs",
      .type = FieldType::kInteger,
      .max = 20,
      .help = "and of so many most likely ones"},
     set_int_field<&R::top_logprobs>},
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
    {{.name = "parallel_tool_calls", .type = FieldType::kBool, .help = "taken and not used"}, take},
    {{.name = "metadata", .type = FieldType::kObject, .max = 64, .help = "taken and not used"}, take},
    {{.name = "store", .type = FieldType::kBool, .help = "taken and not used"}, take},
    {{.name = "service_tier", .type = FieldType::kString, .max = 64, .help = "taken and not used"}, take},
    {{.name = "echo"}},
    {{.name = "functions"}},
    {{.name = "function_call"}},
    {{.name = "audio"}},
    {{.name = "web_search_options"}},
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

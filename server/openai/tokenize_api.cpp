// Both shapes of tokenize and detokenize; conversations as chat completions read them.
#include "server/openai/tokenize_api.h"

#include <optional>

#include "server/openai/json_text.h"

namespace restkv {
namespace {

using json = RequestJson;

constexpr double kMaxListItems = 1 << 24;  // the body limit bounds it first
constexpr double kMaxTextBytes = 1 << 30;

struct TokenizeRequest {
  std::string model;
  std::optional<std::string> prompt, content;
  std::optional<bool> add_special_tokens, add_special;
  bool parse_special = true;
  bool with_pieces = false, with_strings = false;
  ChatPrompt chat;
};

struct TemplateRequest {
  std::string model;
  ChatPrompt chat;
};

struct DetokenizeRequest {
  std::string model;
  int32_t vocab_size = 0;
  bool has_tokens = false;
  std::vector<int32_t> tokens;
};

template <class R, auto Member>
Status set_bool(json& value, R& r) {
  r.*Member = value.template get<bool>();
  return {};
}
template <class R, auto Member>
Status set_string(json& value, R& r) {
  r.*Member = std::move(value.get_ref<std::string&>());
  return {};
}

using T = TokenizeRequest;
const RequestField<T> kTokenizeRows[] = {
    {{.name = "model", .type = FieldType::kString, .max = 1024, .help = "the served model's id"},
     set_string<T, &T::model>},
    {{.name = "prompt", .type = FieldType::kString, .max = kMaxTextBytes, .help = "the text (vLLM)"},
     set_string<T, &T::prompt>},
    {{.name = "content", .type = FieldType::kString, .max = kMaxTextBytes, .help = "the text (llama.cpp)"},
     set_string<T, &T::content>},
    {{.name = "add_special_tokens",
      .type = FieldType::kBool,
      .default_json = "true",
      .help = "begin-of-text (vLLM)"},
     set_bool<T, &T::add_special_tokens>},
    {{.name = "add_special",
      .type = FieldType::kBool,
      .default_json = "false",
      .help = "begin-of-text (llama.cpp)"},
     set_bool<T, &T::add_special>},
    {{.name = "parse_special",
      .type = FieldType::kBool,
      .default_json = "true",
      .help = "control tokens in the text count"},
     set_bool<T, &T::parse_special>},
    {{.name = "with_pieces",
      .type = FieldType::kBool,
      .default_json = "false",
      .help = "tokens as {id, piece}"},
     set_bool<T, &T::with_pieces>},
    {{.name = "return_token_strs",
      .type = FieldType::kBool,
      .default_json = "false",
      .help = "token_strs as well"},
     set_bool<T, &T::with_strings>},
};

template <class R>
std::vector<RequestField<R>> with_chat_fields(std::span<const RequestField<R>> rows) {
  std::vector<RequestField<R>> all = chat_prompt_fields<R>();
  all.insert(all.end(), rows.begin(), rows.end());
  return all;
}

std::span<const RequestField<T>> tokenize_fields() {
  static const std::vector<RequestField<T>> fields = with_chat_fields<T>(kTokenizeRows);
  return fields;
}

using A = TemplateRequest;
const RequestField<A> kTemplateRows[] = {
    {{.name = "model", .type = FieldType::kString, .max = 1024, .help = "the served model's id"},
     set_string<A, &A::model>},
};

std::span<const RequestField<A>> template_fields() {
  static const std::vector<RequestField<A>> fields = with_chat_fields<A>(kTemplateRows);
  return fields;
}

using D = DetokenizeRequest;
const RequestField<D> kDetokenizeFields[] = {
    {{.name = "model", .type = FieldType::kString, .max = 1024, .help = "the served model's id"},
     set_string<D, &D::model>},
    {{.name = "tokens",
      .type = FieldType::kList,
      .max = kMaxListItems,
      .help = "token ids",
      .schema = R"("items":{"type":"integer","minimum":0,"format":"token-id"})"},
     [](json& value, D& d) {
       d.has_tokens = true;
       return read_token_ids(value, "tokens", d.vocab_size, d.tokens);
     }},
};

// A piece that is no text by itself is a list of its bytes, as in llama.cpp.
void append_piece(std::string& out, std::string_view bytes) {
  if (is_valid_utf8(bytes)) return append_json_string(out, bytes);
  out += '[';
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i > 0) out += ',';
    append_json_number(out, static_cast<int64_t>(static_cast<unsigned char>(bytes[i])));
  }
  out += ']';
}

Status missing(const char* name) {
  return invalid_argument(std::string("'") + name + "' is required")
      .with_param(name)
      .with_reason("missing_required_parameter");
}

}  // namespace

std::vector<FieldSpec> tokenize_specs() { return specs_of(tokenize_fields()); }
std::vector<FieldSpec> detokenize_specs() {
  return specs_of(std::span<const RequestField<D>>(kDetokenizeFields));
}
std::vector<FieldSpec> apply_template_specs() { return specs_of(template_fields()); }

Status check_model_name(const std::string& name, const std::string& served_name) {
  if (name.empty() || name == served_name) return {};
  return not_found("this server does not have the model that was asked for; it serves '" + served_name + "'")
      .with_param("model")
      .with_reason("model_not_found");
}

namespace {

Result<std::vector<int32_t>> encode_request(T& r, const TokenizeContext& context) {
  const Tokenizer& tokenizer = *context.tokenizer;
  if (r.chat.has_messages) {
    if (r.prompt || r.content) {
      return invalid_argument("'messages' and a text are both given; one is enough")
          .with_param("messages")
          .with_reason("invalid_value");
    }
    if (Status status = check_chat_prompt(r.chat); !status.ok()) return status;
    const Result<RenderedPrompt> prompt =
        render_chat(std::move(r.chat), {context.chat_format, render_limits(context.max_model_len)});
    if (!prompt.ok()) return prompt.status();
    return encode_chat(*prompt, tokenizer, r.add_special_tokens.value_or(r.add_special.value_or(false)));
  }
  if (!r.prompt && !r.content) return missing("prompt");
  const bool is_vllm = r.prompt.has_value();
  const bool add_special = is_vllm ? r.add_special_tokens.value_or(r.add_special.value_or(true))
                                   : r.add_special.value_or(r.add_special_tokens.value_or(false));
  return tokenizer.encode(
      is_vllm ? *r.prompt : *r.content,
      {.add_special = add_special,
       .special_tokens = r.parse_special ? SpecialTokens::kParse : SpecialTokens::kAsText});
}

}  // namespace

Result<std::string> tokenize_body(json request, const TokenizeContext& context) {
  T r;
  if (Status status = read_fields<T>(request, tokenize_fields(), context.fields, r); !status.ok())
    return status;
  if (Status status = check_model_name(r.model, context.served_name); !status.ok()) return status;
  const Tokenizer& tokenizer = *context.tokenizer;
  const Result<std::vector<int32_t>> encoded = encode_request(r, context);
  if (!encoded.ok()) return encoded.status();
  const std::vector<int32_t>& ids = *encoded;
  std::string out = "{\"count\":";
  append_json_number(out, static_cast<int64_t>(ids.size()));
  out += ",\"max_model_len\":";
  append_json_number(out, context.max_model_len);
  out += ",\"tokens\":[";
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) out += ',';
    if (r.with_pieces) out += "{\"id\":";
    append_json_number(out, static_cast<int64_t>(ids[i]));
    if (!r.with_pieces) continue;
    out += ",\"piece\":";
    append_piece(out, tokenizer.token_bytes(ids[i]));
    out += '}';
  }
  out += ']';
  if (r.with_strings) {
    out += ",\"token_strs\":[";
    for (size_t i = 0; i < ids.size(); ++i) {
      if (i > 0) out += ',';
      append_json_string(out, tokenizer.token_text(ids[i]));
    }
    out += ']';
  }
  out += '}';
  return out;
}

Result<std::string> apply_template_body(json request, const TokenizeContext& context) {
  A r;
  if (Status status = read_fields<A>(request, template_fields(), context.fields, r); !status.ok())
    return status;
  if (Status status = check_model_name(r.model, context.served_name); !status.ok()) return status;
  if (Status status = check_chat_prompt(r.chat); !status.ok()) return status;
  const Result<RenderedPrompt> prompt =
      render_chat(std::move(r.chat), {context.chat_format, render_limits(context.max_model_len)});
  if (!prompt.ok()) return prompt.status();
  std::string out = "{\"prompt\":";
  append_json_string(out, prompt->text);
  out += '}';
  return out;
}

Result<std::string> detokenize_body(json request, const TokenizeContext& context) {
  D r;
  r.vocab_size = context.tokenizer->vocab_size();
  if (Status status = read_fields<D>(request, kDetokenizeFields, context.fields, r); !status.ok())
    return status;
  if (Status status = check_model_name(r.model, context.served_name); !status.ok()) return status;
  if (!r.has_tokens) return missing("tokens");
  const std::string text = context.tokenizer->decode(r.tokens);
  std::string out = "{\"prompt\":";
  append_json_string(out, text);
  out += ",\"content\":";
  append_json_string(out, text);
  out += '}';
  return out;
}

std::string tokenizer_info_body(const TokenizeContext& context) {
  const Tokenizer& tokenizer = *context.tokenizer;
  const auto append_token = [&](std::string& out, const char* name, int32_t id) {
    out += ",\"" + std::string(name) + "\":";
    id < 0 ? static_cast<void>(out += "null") : append_json_string(out, tokenizer.token_text(id));
  };
  std::string body = "{\"tokenizer_class\":";
  append_json_string(body, tokenizer.kind());
  append_token(body, "bos_token", tokenizer.bos_id());
  append_token(body, "eos_token", tokenizer.eos_ids().empty() ? -1 : tokenizer.eos_ids().front());
  body += ",\"pad_token\":null,\"add_bos_token\":";
  body += tokenizer.adds_bos() ? "true" : "false";
  body += ",\"vocab_size\":" + std::to_string(tokenizer.vocab_size()) +
          ",\"model_max_length\":" + std::to_string(context.max_model_len) + ",\"chat_template\":";
  const auto* templates = context.chat_format ? &context.chat_format->templates() : nullptr;
  if (templates && templates->contains("default")) {
    append_json_string(body, templates->at("default").source);
  } else {
    body += "null";
  }
  body += '}';
  return body;
}

}  // namespace restkv

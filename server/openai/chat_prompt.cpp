// Conversations: what a message may be, and from messages to token ids.
#include "server/openai/chat_prompt.h"

#include <algorithm>
#include <array>

#include "engine/model/json_reader.h"

namespace restkv {
namespace {

constexpr std::array<std::string_view, 5> kRoles = {"system", "developer", "user", "assistant", "tool"};

// Variables of published templates that a request may set: switches and texts, none that stands for a token.
constexpr std::array<std::string_view, 32> kTemplateVariables = {"add_vision_id",
                                                                 "builtin_tools",
                                                                 "citations",
                                                                 "clear_thinking",
                                                                 "custom_tools",
                                                                 "date_string",
                                                                 "documents",
                                                                 "drop_thinking",
                                                                 "enable_citations",
                                                                 "enable_thinking",
                                                                 "grounding",
                                                                 "include_thinking",
                                                                 "keep_past_thinking",
                                                                 "low_effort",
                                                                 "model_identity",
                                                                 "preserve_thinking",
                                                                 "python_tools",
                                                                 "reasoning",
                                                                 "reasoning_effort",
                                                                 "reasoning_mode",
                                                                 "retain_reasoning",
                                                                 "safety_mode",
                                                                 "skip_thinking",
                                                                 "strip_thinking",
                                                                 "system_message",
                                                                 "thinking",
                                                                 "thinking_budget",
                                                                 "thinking_mode",
                                                                 "tools_in_user_message",
                                                                 "truncate_history_thinking",
                                                                 "user_name",
                                                                 "xml_tools"};

Status invalid(std::string message, std::string param) {
  return invalid_argument(std::move(message)).with_param(std::move(param)).with_reason("invalid_value");
}

Status missing(const std::string& path) {
  return invalid_argument("'" + path + "' is required")
      .with_param(path)
      .with_reason("missing_required_parameter");
}

template <class Names>
std::string list_text(const Names& names) {
  std::string text;
  for (const std::string_view name : names) text += (text.empty() ? "" : ", ") + std::string(name);
  return text;
}

// A member that must be a string if it is there.
Status check_string(const RequestJson& object, const char* name, const std::string& path) {
  const auto found = object.find(name);
  if (found == object.end() || found->is_string()) return {};
  return invalid("'" + path + "." + name + "' must be a string", path + "." + name);
}

// Members that say nothing are what clients copy from earlier answers ("tool_calls": null); templates ask whether they are
// there. A content that is null stays: templates ask for that, too.
void drop_nulls(RequestJson& message) {
  auto& members = message.get_ref<RequestJson::object_t&>();
  std::vector<std::string> names;
  for (const auto& [name, value] : members) {
    if (value.is_null() && name != "content") names.push_back(name);
  }
  for (const std::string& name : names) message.erase(name);
}

// [{"type": "text", "text": ...}, ...] -> the texts, a line each, as vLLM joins them.
Status join_parts(RequestJson& content, const std::string& path) {
  if (content.empty()) return invalid("'" + path + "' is an empty list", path);
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const RequestJson& part = content[i];
    const std::string place = path + "[" + std::to_string(i) + "]";
    if (!part.is_object()) return invalid("'" + place + "' must be an object {type, text}", place);
    const auto type = part.find("type");
    if (type == part.end() || !type->is_string()) return missing(place + ".type");
    if (*type != "text")
      return invalid("'" + place + ".type' must be 'text': this server takes text alone", place + ".type");
    const auto piece = part.find("text");
    if (piece == part.end() || !piece->is_string())
      return invalid("'" + place + ".text' must be a string", place + ".text");
    if (i > 0) text += '\n';
    text += piece->get_ref<const std::string&>();
  }
  content = std::move(text);
  return {};
}

// Arguments come as the text of an object (OpenAI); templates want the object.
Status read_arguments(RequestJson& function, const std::string& path) {
  const auto arguments = function.find("arguments");
  if (arguments == function.end() || arguments->is_object()) return {};
  const std::string place = path + ".arguments";
  if (!arguments->is_string()) return invalid("'" + place + "' must be a string with a JSON object", place);
  const std::string& text = arguments->get_ref<const std::string&>();
  if (text.find_first_not_of(" \t\r\n") == std::string::npos) {
    *arguments = RequestJson::object();
    return {};
  }
  Result<RequestJson> parsed = parse_ordered_json(text);
  if (!parsed.ok() || !parsed->is_object())
    return invalid("'" + place + "' must be a string with a JSON object", place);
  *arguments = *std::move(parsed);
  return {};
}

Status check_tool_calls(RequestJson& calls, const std::string& path) {
  if (!calls.is_array() || calls.size() > kMaxTools) {
    return invalid("'" + path + "' must be a list of at most " + std::to_string(kMaxTools) + " tool calls",
                   path);
  }
  for (size_t i = 0; i < calls.size(); ++i) {
    const std::string place = path + "[" + std::to_string(i) + "]";
    RequestJson& call = calls[i];
    if (!call.is_object()) return invalid("'" + place + "' must be an object {id, type, function}", place);
    const auto function = call.find("function");
    if (function == call.end() || !function->is_object())
      return invalid("'" + place + ".function' must be an object {name, arguments}", place + ".function");
    const auto name = function->find("name");
    if (name == function->end() || !name->is_string())
      return invalid("'" + place + ".function.name' must be a string", place + ".function.name");
    if (Status status = check_string(call, "id", place); !status.ok()) return status;
    if (Status status = read_arguments(*function, place + ".function"); !status.ok()) return status;
  }
  return {};
}

Status check_message(RequestJson& message, const std::string& path) {
  if (!message.is_object()) return invalid("'" + path + "' must be an object {role, content}", path);
  drop_nulls(message);
  const auto role = message.find("role");
  if (role == message.end()) return missing(path + ".role");
  if (!role->is_string() ||
      std::find(kRoles.begin(), kRoles.end(), role->get_ref<const std::string&>()) == kRoles.end())
    return invalid("'" + path + ".role' must be one of " + list_text(kRoles), path + ".role");
  for (const char* name : {"name", "tool_call_id", "reasoning_content", "reasoning"}) {
    if (Status status = check_string(message, name, path); !status.ok()) return status;
  }
  const auto calls = message.find("tool_calls");
  if (calls != message.end()) {
    if (Status status = check_tool_calls(*calls, path + ".tool_calls"); !status.ok()) return status;
  }
  const auto content = message.find("content");
  if (content == message.end() || content->is_null()) {
    const bool calls_tools = *role == "assistant" && calls != message.end() && !calls->empty();
    return calls_tools ? Status() : missing(path + ".content");
  }
  if (content->is_array()) return join_parts(*content, path + ".content");
  if (!content->is_string())
    return invalid("'" + path + ".content' must be a string or a list of text parts", path + ".content");
  return {};
}

}  // namespace

RenderLimits render_limits(int64_t max_model_len) {
  constexpr size_t kBytesPerToken = 8;  // as the limit of a request's body
  RenderLimits limits;
  limits.output_bytes = std::max(limits.output_bytes, kBytesPerToken * static_cast<size_t>(max_model_len));
  return limits;
}

Status set_messages(RequestJson& value, ChatPrompt& chat) {
  if (value.empty()) return invalid("'messages' is an empty list", "messages");
  for (size_t i = 0; i < value.size(); ++i) {
    if (Status status = check_message(value[i], "messages[" + std::to_string(i) + "]"); !status.ok())
      return status;
  }
  chat.has_messages = true;
  chat.input.messages = std::move(value);
  return {};
}

Status set_tools(RequestJson& value, ChatPrompt& chat) {
  for (size_t i = 0; i < value.size(); ++i) {
    const std::string path = "tools[" + std::to_string(i) + "]";
    const RequestJson& tool = value[i];
    if (!tool.is_object()) return invalid("'" + path + "' must be an object {type, function}", path);
    const auto type = tool.find("type");
    if (type == tool.end() || *type != "function")
      return invalid("'" + path + ".type' must be 'function'", path + ".type");
    const auto function = tool.find("function");
    if (function == tool.end() || !function->is_object())
      return invalid("'" + path + ".function' must be an object {name, description, parameters}",
                     path + ".function");
    const auto name = function->find("name");
    if (name == function->end() || !name->is_string())
      return invalid("'" + path + ".function.name' must be a string", path + ".function.name");
  }
  if (!value.empty()) chat.input.tools = std::move(value);
  return {};
}

Status set_tool_choice(RequestJson& value, ChatPrompt& chat) {
  if (value == "auto" || value == "none") {
    chat.ignores_tools = value == "none";
    return {};
  }
  if (value == "required" || value.is_object())
    return invalid_argument(
               "'tool_choice' must be auto or none: this server cannot force a call of a tool yet")
        .with_param("tool_choice")
        .with_reason("unsupported_parameter");
  return invalid("'tool_choice' must be auto or none", "tool_choice");
}

Status set_documents(RequestJson& value, ChatPrompt& chat) {
  for (size_t i = 0; i < value.size(); ++i) {
    const std::string path = "documents[" + std::to_string(i) + "]";
    if (!value[i].is_object()) return invalid("'" + path + "' must be an object", path);
  }
  if (!value.empty()) chat.input.documents = std::move(value);
  return {};
}

std::string_view template_kwargs_schema() {
  static const std::string schema = [] {
    RequestJson names = RequestJson::array();
    for (const std::string_view name : kTemplateVariables) names.push_back(std::string(name));
    return "\"propertyNames\":{\"enum\":" + names.dump() + "}";
  }();
  return schema;
}

Status set_template_kwargs(RequestJson& value, ChatPrompt& chat) {
  for (auto& [name, item] : value.items()) {
    if (std::find(kTemplateVariables.begin(), kTemplateVariables.end(), name) == kTemplateVariables.end()) {
      return invalid("the keys of 'chat_template_kwargs' must be among " + list_text(kTemplateVariables),
                     "chat_template_kwargs." + name.substr(0, 64));
    }
    chat.input.kwargs[name] = std::move(item);
  }
  return {};
}

Status set_reasoning_effort(RequestJson& value, ChatPrompt& chat) {
  if (!chat.input.kwargs.contains("reasoning_effort"))
    chat.input.kwargs["reasoning_effort"] = std::move(value);
  return {};
}

Status check_chat_prompt(ChatPrompt& chat) {
  if (!chat.has_messages) return missing("messages");
  if (chat.ignores_tools) chat.input.tools = nullptr;
  if (!chat.input.continue_final_message) return {};
  if (chat.has_generation_prompt && chat.input.add_generation_prompt) {
    return invalid("'continue_final_message' and 'add_generation_prompt' exclude each other",
                   "continue_final_message");
  }
  chat.input.add_generation_prompt = false;
  return {};
}

Result<RenderedPrompt> render_chat(ChatPrompt chat, const ChatRenderer& renderer) {
  static const ChatFormat kNone;
  const ChatFormat& format = renderer.format ? *renderer.format : kNone;
  Result<RenderedPrompt> prompt =
      format.render(std::move(chat.input), renderer.limits, std::chrono::system_clock::now());
  if (prompt.ok() || !prompt.status().param().empty()) return prompt;
  Status status = prompt.status();
  return std::move(status).with_param("messages");
}

std::vector<int32_t> encode_chat(const RenderedPrompt& prompt, const Tokenizer& tokenizer,
                                 bool add_special_tokens) {
  std::vector<ByteSpan> plain;
  for (const Segment& segment : prompt.segments) {
    if (segment.is_user) plain.push_back({segment.begin, segment.end});
  }
  std::vector<int32_t> ids = tokenizer.encode(
      prompt.text, {.add_special = false, .special_tokens = SpecialTokens::kParse, .plain = plain});
  const int32_t bos = tokenizer.bos_id();
  if (add_special_tokens && tokenizer.adds_bos() && bos >= 0 && (ids.empty() || ids.front() != bos))
    ids.insert(ids.begin(), bos);
  return ids;
}

}  // namespace restkv

// From JSON to values, and from a template's failure to a Status.
#include "server/chat/chat_template.h"

#include <algorithm>
#include <unordered_map>

#include "server/chat/interpreter.h"
#include "server/chat/lexer.h"
#include "server/chat/parser.h"
#include "server/chat/string_ops.h"
#include "server/chat/template_error.h"
#include "server/chat/unicode_classes.h"

namespace restkv {

struct ParsedTemplate {
  std::string source;  // normalised
  chat::TemplateTree tree;
};

namespace {

using nlohmann::ordered_json;

constexpr size_t kMaxSourceBytes = 1 << 20;

Status to_status(const chat::TemplateError& error, const std::string& source) {
  if (error.kind == chat::TemplateErrorKind::kRaised) {
    return invalid_argument(error.what()).with_reason("template_refused");
  }
  size_t offset = std::min(error.offset, source.size());
  std::string_view before = std::string_view(source).substr(0, offset);
  size_t line = 1 + static_cast<size_t>(std::count(before.begin(), before.end(), '\n'));
  size_t line_start = before.rfind('\n') == std::string_view::npos ? 0 : before.rfind('\n') + 1;
  size_t column = 1 + chat::count_code_points(before.substr(line_start));
  std::string place =
      "chat template, line " + std::to_string(line) + ", column " + std::to_string(column) + ": ";
  if (error.kind == chat::TemplateErrorKind::kLimit) {
    return invalid_argument(place + "limit reached: " + error.what()).with_reason("template_limit");
  }
  return invalid_argument(place + error.what()).with_reason("template_error");
}

// Throws TemplateError if the value nests too deep.
chat::Value to_value(const ordered_json& json, bool is_user, int depth = 1) {
  if (depth > chat::kMaxNesting - 8) {  // leaves room for what a template wraps around it
    throw chat::TemplateError(chat::TemplateErrorKind::kRuntime, "the input is nested too deep", 0);
  }
  switch (json.type()) {
    case ordered_json::value_t::boolean: return chat::Value(json.get<bool>());
    case ordered_json::value_t::number_integer: return chat::Value(json.get<int64_t>());
    case ordered_json::value_t::number_unsigned: {
      uint64_t number = json.get<uint64_t>();
      if (number > static_cast<uint64_t>(INT64_MAX)) return chat::Value(static_cast<double>(number));
      return chat::Value(static_cast<int64_t>(number));
    }
    case ordered_json::value_t::number_float: return chat::Value(json.get<double>());
    case ordered_json::value_t::string: return chat::Value(chat::Text(json.get<std::string>(), is_user));
    case ordered_json::value_t::array: {
      std::vector<chat::Value> items;
      for (const auto& item : json) items.push_back(to_value(item, is_user, depth + 1));
      return chat::Value::list(std::move(items));
    }
    case ordered_json::value_t::object: {
      chat::Dict dict;
      for (const auto& [key, item] : json.items()) {
        dict.set(chat::Value(chat::Text(key, is_user)), to_value(item, is_user, depth + 1));
      }
      return chat::Value::dict(std::move(dict));
    }
    default: return chat::Value();
  }
}

// A message is a user's, but for a role that every family knows: '<|' + role + '|>' is how templates write tokens.
chat::Value to_message(const ordered_json& message) {
  constexpr std::string_view kRoles[] = {"system", "developer", "user",    "assistant",
                                         "tool",   "function",  "ipython", "model"};
  chat::Value value = to_value(message, true, 2);
  auto role = message.is_object() ? message.find("role") : message.end();
  if (role == message.end() || !role->is_string()) return value;
  std::string name = role->get<std::string>();
  if (std::find(std::begin(kRoles), std::end(kRoles), name) == std::end(kRoles)) return value;
  chat::Dict dict = *value.as_dict();
  dict.set(chat::Value("role"), chat::Value(name));
  return chat::Value::dict(std::move(dict));
}

// Runs a template whose variables `define` sets.
template <class Define>
Result<chat::Text> run(const ParsedTemplate& parsed, const RenderLimits& limits,
                       std::chrono::system_clock::time_point now, Define define) {
  try {
    chat::Interpreter interpreter(parsed.tree, limits, now);
    std::unordered_map<std::string_view, int> symbols;
    for (size_t i = 0; i < parsed.tree.symbols.size(); ++i)
      symbols.emplace(parsed.tree.symbols[i], static_cast<int>(i));
    define([&](std::string_view name, auto&& make_value) {
      auto found = symbols.find(name);
      if (found != symbols.end()) interpreter.define(found->second, make_value());
    });
    return interpreter.run();
  } catch (const chat::TemplateError& error) {
    return to_status(error, parsed.source);
  }
}

// Where transformers ends a prompt whose last message goes on: behind the message's text, and its trailing blanks only
// if the template printed them.
Result<size_t> find_end_of_final_message(const ordered_json& messages, const std::string& prompt) {
  auto fail = [](const char* message) {
    return invalid_argument(message).with_param("continue_final_message");
  };
  if (!messages.is_array() || messages.empty())
    return fail("continue_final_message needs a message to continue");
  const ordered_json* content = messages.back().is_object() && messages.back().contains("content")
                                    ? &messages.back()["content"]
                                    : nullptr;
  if (content && content->is_array()) {
    auto part = std::find_if(content->rbegin(), content->rend(),
                             [](const ordered_json& p) { return p.is_object() && p.contains("text"); });
    content = part == content->rend() ? nullptr : &(*part)["text"];
  }
  if (!content || !content->is_string()) return fail("continue_final_message needs text in the last message");
  std::string text = content->get<std::string>();
  auto spaces_at = [&](bool at_end) {
    size_t at = at_end ? text.size() : 0;
    while (at_end ? at > 0 : at < text.size()) {
      chat::CodePoint point = at_end ? chat::decode_utf8_before(text, at) : chat::decode_utf8(text, at);
      if (!chat::is_space(point.code)) break;
      at_end ? at -= point.num_bytes : at += point.num_bytes;
    }
    return at;
  };
  size_t begin = spaces_at(false), end = spaces_at(true);
  std::string stripped = begin < end ? text.substr(begin, end - begin) : "";
  size_t at = stripped.empty() ? prompt.size() : chat::find_last_bytes(prompt, stripped);
  if (at == std::string::npos) {
    return fail(
        "continue_final_message: the last message does not appear in the prompt that the template makes");
  }
  std::string without_lead = text.substr(begin);
  bool keeps_blanks = prompt.compare(at, without_lead.size(), without_lead) == 0;
  return at + (keeps_blanks ? without_lead.size() : stripped.size());
}

}  // namespace

Result<ChatTemplate> ChatTemplate::parse(std::string_view source) {
  if (source.size() > kMaxSourceBytes) {
    return invalid_argument("chat template: more than " + std::to_string(kMaxSourceBytes) + " bytes");
  }
  if (!chat::is_valid_utf8(source)) return invalid_argument("chat template: not UTF-8");
  auto parsed = std::make_shared<ParsedTemplate>();
  parsed->source = chat::normalize_newlines(source);
  try {
    parsed->tree = chat::parse_template(parsed->source);
  } catch (const chat::TemplateError& error) {
    return to_status(error, parsed->source);
  }
  return ChatTemplate(std::move(parsed));
}

Result<std::string> ChatTemplate::render(const ordered_json& variables, const RenderLimits& limits,
                                         std::chrono::system_clock::time_point now) const {
  if (!variables.is_object()) return invalid_argument("the variables of a template must be an object");
  Result<chat::Text> text = run(*parsed_, limits, now, [&](auto define) {
    for (const auto& [name, value] : variables.items()) {
      define(name, [&json = value] { return to_value(json, false); });
    }
  });
  if (!text.ok()) return text.status();
  return text->bytes();
}

Result<RenderedPrompt> ChatTemplate::render_prompt(const ChatInput& input, const RenderLimits& limits,
                                                   std::chrono::system_clock::time_point now) const {
  if (input.continue_final_message && input.add_generation_prompt) {
    return invalid_argument("continue_final_message and add_generation_prompt exclude each other")
        .with_param("continue_final_message");
  }
  Result<chat::Text> text = run(*parsed_, limits, now, [&](auto define) {
    if (input.kwargs.is_object()) {
      for (const auto& [name, value] : input.kwargs.items()) {
        define(name, [&json = value] { return to_value(json, true); });
      }
    }
    define("messages", [&] {
      if (!input.messages.is_array()) return to_value(input.messages, true);
      std::vector<chat::Value> messages;
      for (const auto& message : input.messages) messages.push_back(to_message(message));
      return chat::Value::list(std::move(messages));
    });
    define("tools", [&] { return to_value(input.tools, true); });
    define("documents", [&] { return to_value(input.documents, true); });
    define("add_generation_prompt", [&] { return chat::Value(input.add_generation_prompt); });
    define("bos_token", [&] { return chat::Value(input.bos_token); });
    define("eos_token", [&] { return chat::Value(input.eos_token); });
  });
  if (!text.ok()) return text.status();
  size_t end = text->size();
  if (input.continue_final_message) {
    Result<size_t> found = find_end_of_final_message(input.messages, text->bytes());
    if (!found.ok()) return found.status();
    end = *found;
  }
  chat::Text cut = text->slice(0, end);
  RenderedPrompt prompt = {cut.bytes(), {}};
  size_t at = 0;
  for (const chat::Span& span : cut.user_spans()) {
    if (span.begin > at) prompt.segments.push_back({at, span.begin, false});
    prompt.segments.push_back({span.begin, span.end, true});
    at = span.end;
  }
  if (at < cut.size()) prompt.segments.push_back({at, cut.size(), false});
  return prompt;
}

}  // namespace restkv

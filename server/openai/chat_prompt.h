// The fields that make a conversation into a prompt: the same in POST /v1/chat/completions, /apply-template and /tokenize.
// A request type that takes them has a member `ChatPrompt chat` and puts chat_prompt_fields<T>() into its table.
#pragma once

#include <string>
#include <vector>

#include "engine/text/tokenizer.h"
#include "server/chat/chat_format.h"
#include "server/openai/field_table.h"

namespace restkv {

inline constexpr size_t kMaxMessages = 4096;
inline constexpr size_t kMaxTools = 128;

struct ChatPrompt {
  ChatInput input;
  bool has_messages = false;
  bool has_generation_prompt = false;  // add_generation_prompt was given
  bool ignores_tools = false;          // tool_choice: none
  bool add_special_tokens = false;     // of the tokenizer, around what the template gave
};

// What a server renders conversations with.
struct ChatRenderer {
  const ChatFormat* format = nullptr;  // null: as without a template
  RenderLimits limits = {};
};

// A template's output may be as long as a prompt of the longest context is as text.
RenderLimits render_limits(int64_t max_model_len);

Status set_messages(RequestJson& value, ChatPrompt& chat);
Status set_tools(RequestJson& value, ChatPrompt& chat);
Status set_tool_choice(RequestJson& value, ChatPrompt& chat);
Status set_documents(RequestJson& value, ChatPrompt& chat);
Status set_template_kwargs(RequestJson& value, ChatPrompt& chat);
// JSON Schema members: the names that chat_template_kwargs may have.
std::string_view template_kwargs_schema();
Status set_reasoning_effort(RequestJson& value, ChatPrompt& chat);

// Messages are there, and the fields go together.
Status check_chat_prompt(ChatPrompt& chat);
// The template's text. Errors name `messages`.
Result<RenderedPrompt> render_chat(ChatPrompt chat, const ChatRenderer& renderer);
// Its tokens: special tokens of the template are tokens, those a user typed stay text; no second BOS.
std::vector<int32_t> encode_chat(const RenderedPrompt& prompt, const Tokenizer& tokenizer,
                                 bool add_special_tokens);

template <class T>
std::vector<RequestField<T>> chat_prompt_fields() {
  return {
      {{.name = "messages",
        .type = FieldType::kList,
        .max = kMaxMessages,
        .help =
            "the conversation: {role, content, name, tool_calls, tool_call_id}; content: text or text parts",
        .schema = R"("minItems":1,"items":{"anyOf":[{"type":"object","required":["role","content"],
"properties":{"role":{"enum":["system","developer","user","assistant","tool"]},
"content":{"anyOf":[{"type":"string"},{"type":"array","minItems":1,"items":{"type":"object",
"required":["type","text"],"properties":{"type":{"const":"text"},"text":{"type":"string"}}}}]},
"name":{"type":["string","null"]},"tool_call_id":{"type":["string","null"]},"tool_calls":{"type":"null"},
"reasoning":{"type":["string","null"]},"reasoning_content":{"type":["string","null"]}}},
{"type":"object","required":["role","tool_calls"],"properties":{"role":{"const":"assistant"},
"content":{"type":["string","null"]},"name":{"type":["string","null"]},"tool_call_id":{"type":"null"},
"reasoning":{"type":["string","null"]},"reasoning_content":{"type":["string","null"]},
"tool_calls":{"type":"array","minItems":1,"maxItems":128,"items":{"type":"object","required":["function"],
"properties":{"id":{"type":"string"},"type":{"const":"function"},"function":{"type":"object",
"required":["name"],"properties":{"name":{"type":"string"},"arguments":{"type":"object"}}}}}}}}]})"},
       [](RequestJson& value, T& t) { return set_messages(value, t.chat); }},
      {{.name = "tools",
        .type = FieldType::kList,
        .max = kMaxTools,
        .help = "functions the template tells the model of",
        .schema = R"("items":{"type":"object","required":["type","function"],
"properties":{"type":{"const":"function"},"function":{"type":"object","required":["name"],
"properties":{"name":{"type":"string"}}}}})"},
       [](RequestJson& value, T& t) { return set_tools(value, t.chat); }},
      {{.name = "tool_choice",
        .help = "auto, or none: the template gets no tools",
        .schema = R"("enum":["auto","none",null])"},
       [](RequestJson& value, T& t) { return set_tool_choice(value, t.chat); }},
      {{.name = "documents",
        .type = FieldType::kList,
        .max = kMaxTools,
        .help = "texts for templates that cite",
        .schema = R"("items":{"type":"object"})"},
       [](RequestJson& value, T& t) { return set_documents(value, t.chat); }},
      {{.name = "chat_template_kwargs",
        .type = FieldType::kObject,
        .max = 64,
        .help = "variables of the template, such as enable_thinking",
        .schema = template_kwargs_schema()},
       [](RequestJson& value, T& t) { return set_template_kwargs(value, t.chat); }},
      {{.name = "reasoning_effort",
        .type = FieldType::kString,
        .max = 64,
        .help = "a variable of the template"},
       [](RequestJson& value, T& t) { return set_reasoning_effort(value, t.chat); }},
      {{.name = "add_generation_prompt",
        .type = FieldType::kBool,
        .default_json = "true",
        .help = "end the prompt where the assistant speaks; default: not with continue_final_message"},
       [](RequestJson& value, T& t) {
         t.chat.has_generation_prompt = true;
         t.chat.input.add_generation_prompt = value.get<bool>();
         return Status();
       }},
      {{.name = "continue_final_message",
        .type = FieldType::kBool,
        .default_json = "false",
        .help = "the answer goes on with the last message"},
       [](RequestJson& value, T& t) {
         t.chat.input.continue_final_message = value.get<bool>();
         return Status();
       }},
      {{.name = "chat_template"}},
  };
}

}  // namespace restkv

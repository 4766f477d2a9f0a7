// Conversations in request bodies: what a message may be, in which words the rest is refused, and the prompt that comes out.
#include <gtest/gtest.h>

#include "engine/model/json_reader.h"
#include "server/openai/completion_job.h"
#include "tests/server/byte_tokenizer.h"

namespace restkv {
namespace {

constexpr int32_t kVocab = 1000;

Result<CompletionRequest> parse(const std::string& text) {
  Result<RequestJson> json = parse_ordered_json(text);
  if (!json.ok()) return json.status();
  CompletionRequest request;
  request.api = CompletionApi::kChat;
  request.vocab_size = kVocab;
  if (Status status = parse_completion_request(*std::move(json), request); !status.ok()) return status;
  return request;
}

Status with_message(const std::string& message) { return parse("{\"messages\":[" + message + "]}").status(); }
std::string param_of(const std::string& message) {
  const Status status = with_message(message);
  return status.ok() ? "ok" : status.param();
}
std::string param_of_field(const std::string& fields) {
  const Status status = parse(R"({"messages":[{"role":"user","content":"x"}],)" + fields + "}").status();
  return status.ok() ? "ok" : status.param();
}

TEST(ChatRequest, MessagesAreChecked) {
  EXPECT_EQ(parse("{}").status().param(), "messages");
  EXPECT_EQ(parse(R"({"messages":[]})").status().param(), "messages");
  EXPECT_EQ(parse(R"({"messages":"hi"})").status().param(), "messages");
  const struct {
    const char* message;
    const char* param;
  } rows[] = {
      {R"({"role":"user","content":"x"})", "ok"},
      {R"({"role":"developer","content":"x"})", "ok"},
      {R"({"role":"tool","content":"x","tool_call_id":"1"})", "ok"},
      {R"({"role":"user","content":[{"type":"text","text":"a"}]})", "ok"},
      {R"({"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]})",
       "ok"},
      {R"({"role":"assistant","content":null,"tool_calls":[{"function":{"name":"f"}}]})", "ok"},
      {R"({"role":"assistant","content":"x","refusal":null,"tool_calls":null})", "ok"},
      {R"("x")", "messages[0]"},
      {R"({"content":"x"})", "messages[0].role"},
      {R"({"role":"robot","content":"x"})", "messages[0].role"},
      {R"({"role":7,"content":"x"})", "messages[0].role"},
      {R"({"role":"user"})", "messages[0].content"},
      {R"({"role":"user","content":null})", "messages[0].content"},
      {R"({"role":"assistant","content":null,"tool_calls":[]})", "messages[0].content"},
      {R"({"role":"user","content":7})", "messages[0].content"},
      {R"({"role":"user","content":[]})", "messages[0].content"},
      {R"({"role":"user","content":["x"]})", "messages[0].content[0]"},
      {R"({"role":"user","content":[{"text":"x"}]})", "messages[0].content[0].type"},
      {R"({"role":"user","content":[{"type":"text","text":"x"},{"type":"image_url","image_url":{"url":"file:///x"}}]})",
       "messages[0].content[1].type"},
      {R"({"role":"user","content":[{"type":"text","text":1}]})", "messages[0].content[0].text"},
      {R"({"role":"user","content":"x","name":1})", "messages[0].name"},
      {R"({"role":"assistant","tool_calls":[{"function":{}}]})", "messages[0].tool_calls[0].function.name"},
      {R"({"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"[1]"}}]})",
       "messages[0].tool_calls[0].function.arguments"},
      {R"({"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{"}}]})",
       "messages[0].tool_calls[0].function.arguments"},
      {R"({"role":"assistant","tool_calls":{}})", "messages[0].tool_calls"},
  };
  for (const auto& row : rows) EXPECT_EQ(param_of(row.message), row.param) << row.message;
  EXPECT_NE(with_message(R"({"role":"robot","content":"x"})").message().find("system, developer, user"),
            std::string::npos);
}

TEST(ChatRequest, LimitsAtTheLimitAndOnePast) {
  const auto messages = [](size_t count) {
    std::string text = R"({"messages":[)";
    for (size_t i = 0; i < count; ++i) text += std::string(i ? "," : "") + R"({"role":"user","content":"x"})";
    return parse(text + "]}").status();
  };
  EXPECT_TRUE(messages(4096).ok());
  EXPECT_EQ(messages(4097).param(), "messages");
  const auto tools = [](size_t count) {
    std::string text = R"("tools":[)";
    for (size_t i = 0; i < count; ++i)
      text += std::string(i ? "," : "") + R"({"type":"function","function":{"name":"f"}})";
    return param_of_field(text + "]");
  };
  EXPECT_EQ(tools(128), "ok");
  EXPECT_EQ(tools(129), "tools");
}

TEST(ChatRequest, Fields) {
  const struct {
    const char* fields;
    const char* param;
  } rows[] = {
      {R"("tools":[{"type":"function"}])", "tools[0].function"},
      {R"("tools":[{"type":"retrieval","function":{"name":"f"}}])", "tools[0].type"},
      {R"("tools":[{"type":"function","function":{"name":1}}])", "tools[0].function.name"},
      {R"("tool_choice":"auto")", "ok"},
      {R"("tool_choice":"none")", "ok"},
      {R"("tool_choice":"required")", "tool_choice"},
      {R"("tool_choice":{"type":"function","function":{"name":"f"}})", "tool_choice"},
      {R"("tool_choice":"maybe")", "tool_choice"},
      {R"("top_logprobs":2)", "top_logprobs"},
      {R"("logprobs":true,"top_logprobs":20)", "ok"},
      {R"("logprobs":true,"top_logprobs":21)", "top_logprobs"},
      {R"("logprobs":3)", "logprobs"},
      {R"("max_completion_tokens":-1)", "max_completion_tokens"},
      {R"("min_tokens":5,"max_tokens":4)", "min_tokens"},
      {R"("chat_template_kwargs":{"enable_thinking":false})", "ok"},
      {R"("chat_template_kwargs":{"messages":[]})", "chat_template_kwargs.messages"},
      {R"("chat_template_kwargs":{"bos_token":"x"})", "chat_template_kwargs.bos_token"},
      {R"("chat_template":"{{ 1 }}")", "chat_template"},
      {R"("continue_final_message":true)", "ok"},
      {R"("continue_final_message":true,"add_generation_prompt":true)", "continue_final_message"},
      {R"("response_format":{"type":"text"})", "ok"},
      {R"("response_format":{"type":"json_object"})", "response_format"},
      {R"("stream_options":{"include_usage":true})", "stream_options"},
      {R"("functions":[{}])", "functions"},
      {R"("user":"me","metadata":{"a":"b"},"store":false,"service_tier":"auto","parallel_tool_calls":true)",
       "ok"},
  };
  for (const auto& row : rows) EXPECT_EQ(param_of_field(row.fields), row.param) << row.fields;
}

TEST(ChatRequest, BothRoutesShareTheirRows) {
  const auto has = [](auto fields, std::string_view name) {
    return std::any_of(fields.begin(), fields.end(),
                       [&](const auto& field) { return field.spec.name == name; });
  };
  for (const auto& field : generation_fields()) {
    EXPECT_TRUE(has(completion_fields(), field.spec.name)) << field.spec.name;
    EXPECT_TRUE(has(chat_fields(), field.spec.name)) << field.spec.name;
  }
  for (const auto fields : {completion_fields(), chat_fields()}) {
    std::vector<std::string_view> names;
    for (const auto& field : fields) names.push_back(field.spec.name);
    std::sort(names.begin(), names.end());
    EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end()) << "a field has two rows";
  }
}

class ChatJob : public testing::Test {
 protected:
  void use(const std::map<std::string, std::string>& sources) {
    format_ = std::make_unique<ChatFormat>("a test", sources, "<s>", "</s>");
    context_.chat_format = format_.get();
  }
  // The text of the prompt's tokens.
  std::string prompt_of(const std::string& body) {
    const Result<CompletionJob> job = read_completion_job(body, CompletionApi::kChat, context_);
    if (!job.ok()) return "error: " + job.status().message();
    return tokenizer_.decode(job->requests.at(0).prompt);
  }

  ByteTokenizer tokenizer_;
  std::unique_ptr<ChatFormat> format_;
  CompletionContext context_{
      .tokenizer = &tokenizer_, .served_name = "m", .max_model_len = 4096, .max_token_bytes = 4};
};

TEST_F(ChatJob, ToolsAndArgumentsKeepTheirOrder) {
  use({{"default", "{{ tools | tojson }}{% for m in messages %}{{ m.tool_calls | tojson }}{% endfor %}"}});
  EXPECT_EQ(prompt_of(R"({"tools":[{"type":"function","function":{"name":"f","description":"d","a":1}}],
      "messages":[{"role":"assistant","tool_calls":[{"id":"x","function":{"name":"f","arguments":"{\"z\": 1, \"b\": 2}"}}]}]})"),
            R"([{"type": "function", "function": {"name": "f", "description": "d", "a": 1}}])"
            R"([{"id": "x", "function": {"name": "f", "arguments": {"z": 1, "b": 2}}}])");
}

TEST_F(ChatJob, PartsKwargsRolesAndNamedTemplates) {
  use({{"default", "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}{{ enable_thinking }}"},
       {"tool_use", "{{ tools | length }} tools"}});
  EXPECT_EQ(
      prompt_of(
          R"({"messages":[{"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}],
                          "chat_template_kwargs":{"enable_thinking":false}})"),
      "system=a\nb;False");
  const std::string tools =
      R"("tools":[{"type":"function","function":{"name":"f"}}],"messages":[{"role":"user","content":"x"}])";
  EXPECT_EQ(prompt_of("{" + tools + "}"), "1 tools");
  EXPECT_EQ(prompt_of("{" + tools + R"(,"tool_choice":"none"})"), "user=x;");
  use({{"default", "{% if messages[0].role == 'developer' %}kept{% endif %}"}});
  EXPECT_EQ(prompt_of(R"({"messages":[{"role":"developer","content":"x"}]})"), "kept");
}

TEST_F(ChatJob, ContinueFinalMessage) {
  use({{"default",
        "{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"}});
  EXPECT_EQ(prompt_of(R"({"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"an"}],
                          "continue_final_message":true})"),
            "user:q</s>assistant:an");
}

TEST_F(ChatJob, MaxTokensIsTheDefaultAsFarAsTheContextReaches) {
  use({{"default", "{{ messages[0].content }}"}});
  const auto max_tokens = [&](const std::string& fields) {
    return read_completion_job(R"({"messages":[{"role":"user","content":"0123456789"}])" + fields + "}",
                               CompletionApi::kChat, context_)
        ->requests.at(0)
        .max_tokens;
  };
  context_.default_max_tokens = 100;
  EXPECT_EQ(max_tokens(""), 100);
  context_.default_max_tokens = 100'000;
  EXPECT_EQ(max_tokens(""), 4086);
  EXPECT_EQ(max_tokens(R"(,"max_tokens":7)"), 7);
  EXPECT_EQ(max_tokens(R"(,"max_tokens":7,"max_completion_tokens":8)"), 8);
}

// Sampling: request over generation_config.json over the built-in defaults, on both routes.
TEST_F(ChatJob, SamplingDefaultsOfTheModel) {
  use({{"default", "x"}});
  ModelConfig::SamplingDefaults model;
  model.temperature = 0.6;
  model.top_p = 0.9;
  model.top_k = 20;
  context_.sampling = default_sampling(model);
  const auto sampling = [&](CompletionApi api, const std::string& fields) {
    const std::string prompt =
        api == CompletionApi::kText ? R"("prompt":"x")" : R"("messages":[{"role":"user","content":"x"}])";
    return read_completion_job("{" + prompt + fields + "}", api, context_)->requests.at(0).sampling;
  };
  for (const CompletionApi api : {CompletionApi::kText, CompletionApi::kChat}) {
    EXPECT_EQ(sampling(api, "").temperature, 0.6f);
    EXPECT_EQ(sampling(api, "").top_k, 20);
    EXPECT_EQ(sampling(api, R"(,"temperature":0,"top_p":null)").temperature, 0.0f);
    EXPECT_EQ(sampling(api, R"(,"temperature":0,"top_p":null)").top_p, 0.9f);
  }
}

TEST_F(ChatJob, EndTokensOfTheTokenizerEndAnAnswer) {
  use({{"default", "x"}});
  const int32_t ends[] = {ByteTokenizer::kEos};
  context_.end_tokens = ends;
  const auto stops = [&](const std::string& fields) {
    return read_completion_job(R"({"messages":[{"role":"user","content":"x"}])" + fields + "}",
                               CompletionApi::kChat, context_)
        ->requests.at(0)
        .stop_token_ids;
  };
  EXPECT_EQ(stops(""), std::vector<int32_t>{ByteTokenizer::kEos});
  EXPECT_EQ(stops(R"(,"ignore_eos":true,"stop_token_ids":[5])"), std::vector<int32_t>{5});
}

}  // namespace
}  // namespace restkv

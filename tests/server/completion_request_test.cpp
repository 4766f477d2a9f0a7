// The field table: what is taken, what is refused and in which words; the hostile values of reliability.md.
#include "server/openai/completion_request.h"

#include <gtest/gtest.h>

#include "engine/model/json_reader.h"
#include "server/openai/completion_job.h"
#include "tests/server/fake_engine.h"

namespace restkv {
namespace {

constexpr int32_t kVocab = 1000;

Result<CompletionRequest> parse(const std::string& text, const FieldOptions& options) {
  Result<RequestJson> json = parse_ordered_json(text);
  if (!json.ok()) return json.status();
  CompletionRequest request;
  request.vocab_size = kVocab;
  request.field_options = options;
  if (Status status = parse_completion_request(*std::move(json), request); !status.ok()) return status;
  return request;
}

Result<CompletionRequest> parse(const std::string& text, bool strict = false) {
  return parse(text, FieldOptions{.strict = strict});
}

// The parameter an error names; "ok" if there is none.
std::string param_of(const std::string& fields) {
  const Result<CompletionRequest> result =
      parse("{\"prompt\":\"x\"" + (fields.empty() ? "" : "," + fields) + "}");
  if (result.ok()) return "ok";
  EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument);
  return result.status().param();
}

TEST(CompletionRequest, Defaults) {
  const CompletionRequest r = *parse(R"({"prompt":"x"})");
  EXPECT_EQ(r.max_tokens, 16);
  EXPECT_EQ(r.num_choices, 1);
  EXPECT_EQ(r.sampling.temperature, 1.0f);
  EXPECT_EQ(r.logprobs, -1);
  EXPECT_FALSE(r.seed.has_value());
}

TEST(CompletionRequest, NullIsTheDefaultOfEveryField) {
  for (const auto& field : completion_fields()) {
    if (field.spec.name == "prompt") continue;
    EXPECT_EQ(param_of("\"" + std::string(field.spec.name) + "\":null"), "ok") << field.spec.name;
  }
}

TEST(CompletionRequest, PromptShapes) {
  EXPECT_EQ((*parse(R"({"prompt":"a"})")).prompts.size(), 1u);
  EXPECT_EQ((*parse(R"({"prompt":["a","b","c"]})")).prompts[2].text, "c");
  EXPECT_EQ((*parse(R"({"prompt":[1,2,3]})")).prompts[0].ids, (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ((*parse(R"({"prompt":[[1],[2,999]]})")).prompts[1].ids, (std::vector<int32_t>{2, 999}));
  EXPECT_EQ(parse(R"({"prompt":[[1],[2,1000]]})").status().param(), "prompt[1][1]");
  EXPECT_EQ(parse(R"({"prompt":[1,-1]})").status().param(), "prompt[1]");
  EXPECT_EQ(parse(R"({"prompt":[2147483648]})").status().param(), "prompt[0]");
  EXPECT_EQ(parse(R"({"prompt":[1.5]})").status().param(), "prompt[0]");
  EXPECT_EQ(parse(R"({"prompt":["a",1]})").status().param(), "prompt[1]");
  EXPECT_EQ(parse(R"({"prompt":[]})").status().param(), "prompt");
  EXPECT_EQ(parse(R"({"prompt":{}})").status().param(), "prompt");
  EXPECT_EQ(parse(R"({"prompt":null})").status().param(), "prompt");
  EXPECT_EQ(parse(R"({})").status().param(), "prompt");
  EXPECT_FALSE(parse(R"([1])").ok());
}

TEST(CompletionRequest, BoundsAtTheLimitAndOnePast) {
  const struct {
    const char* name;
    const char* inside[2];
    const char* outside[2];
  } rows[] = {
      {"n", {"1", "16"}, {"0", "17"}},
      {"logprobs", {"0", "20"}, {"-1", "21"}},
      {"max_tokens", {"0", "2147483647"}, {"-1", "2147483648"}},
      {"temperature", {"0", "100"}, {"-0.1", "100.1"}},
      {"top_p", {"0.0001", "1"}, {"0", "1.1"}},
      {"top_k", {"-1", "2147483647"}, {"-2", "2147483648"}},
      {"min_p", {"0", "1"}, {"-0.1", "1.01"}},
      {"presence_penalty", {"-2", "2"}, {"-2.1", "2.1"}},
      {"frequency_penalty", {"-2", "2"}, {"-2.1", "2.1"}},
      {"repetition_penalty", {"0.01", "100"}, {"0", "1e-38"}},
      {"seed", {"-9223372036854775808", "18446744073709551615"}, {"1e300", "-1e300"}},
      {"best_of", {"1", "1"}, {"0", "17"}},
  };
  for (const auto& row : rows) {
    const std::string name = std::string("\"") + row.name + "\":";
    for (const char* value : row.inside) EXPECT_EQ(param_of(name + value), "ok") << name << value;
    for (const char* value : row.outside) EXPECT_EQ(param_of(name + value), row.name) << name << value;
  }
}

TEST(CompletionRequest, WrongTypesNameTheField) {
  for (const auto& field : completion_fields()) {
    if (!field.set || field.spec.name == "user" || field.spec.type == FieldType::kAny) continue;
    const std::string wrong = field.spec.type == FieldType::kString ? "7" : "\"text\"";
    EXPECT_EQ(param_of("\"" + std::string(field.spec.name) + "\":" + wrong), field.spec.name);
  }
  EXPECT_EQ(param_of(R"("stream":1)"), "stream");
  EXPECT_EQ(param_of(R"("n":1.5)"), "n");
  EXPECT_EQ(param_of(R"("n":true)"), "n");
  EXPECT_EQ(param_of(R"("n":9223372036854775808)"), "n");
  EXPECT_EQ(param_of(R"("n":-9223372036854775808)"), "n");
}

TEST(CompletionRequest, ErrorsSayWhatIsAllowed) {
  EXPECT_EQ(parse(R"({"prompt":"x","n":17})").status().message(),
            "'n' must be an integer between 1 and 16, not 17");
  EXPECT_EQ(parse(R"({"prompt":"x","top_p":0})").status().message(),
            "'top_p' must be a number greater than 0 and at most 1, not 0");
  EXPECT_EQ(parse(R"({"prompt":"x","stream":"yes"})").status().message(),
            "'stream' must be true or false, not a string");
}

TEST(CompletionRequest, TinyTemperaturesAreGreedy) {
  EXPECT_EQ((*parse(R"({"prompt":"x","temperature":1e-38})")).sampling.temperature, 0.0f);
  EXPECT_EQ((*parse(R"({"prompt":"x","temperature":0.5})")).sampling.temperature, 0.5f);
  EXPECT_FALSE(parse(R"({"prompt":"x","temperature":1e999})").ok());
  EXPECT_FALSE(parse(R"({"prompt":"x","temperature":NaN})").ok());
  EXPECT_EQ(param_of(R"("temperature":"inf")"), "temperature");
}

TEST(CompletionRequest, Stops) {
  EXPECT_EQ((*parse(R"({"prompt":"x","stop":"a"})")).stop.size(), 1u);
  EXPECT_EQ((*parse(R"({"prompt":"x","stop":["a","b","c","d"]})")).stop.size(), 4u);
  EXPECT_EQ(param_of(R"("stop":["a","b","c","d","e"])"), "stop");
  EXPECT_EQ(param_of("\"stop\":\"" + std::string(256, 'x') + "\""), "ok");
  EXPECT_EQ(param_of("\"stop\":[\"" + std::string(257, 'x') + "\"]"), "stop[0]");
  EXPECT_EQ(param_of(R"("stop":[""])"), "stop[0]");
  EXPECT_EQ(param_of(R"("stop":[])"), "ok");
  EXPECT_EQ(param_of(R"("stop":7)"), "stop");
  EXPECT_EQ(param_of(R"("stop_token_ids":[1,1000])"), "stop_token_ids[1]");
  EXPECT_EQ(param_of(R"("stop_token_ids":[-1])"), "stop_token_ids[0]");
}

TEST(CompletionRequest, LogitBias) {
  const CompletionRequest r = *parse(R"({"prompt":"x","logit_bias":{"5":-100,"0":1.5}})");
  ASSERT_EQ(r.sampling.logit_bias.size(), 2u);
  for (const char* key : {"-1", "1000", "2147483648", "x", "", "05", "1.0"}) {
    EXPECT_EQ(param_of("\"logit_bias\":{\"" + std::string(key) + "\":1}"), "logit_bias") << key;
  }
  EXPECT_EQ(param_of(R"("logit_bias":{"5":101})"), "logit_bias.5");
  EXPECT_EQ(param_of(R"("logit_bias":{"5":"1"})"), "logit_bias.5");
  std::string many = "\"logit_bias\":{\"0\":1";
  for (int i = 1; i < 1025; ++i) many += ",\"" + std::to_string(i) + "\":1";
  EXPECT_EQ(param_of(many + "}"), "logit_bias");
}

TEST(CompletionRequest, FieldsThatDependOnOthers) {
  EXPECT_EQ(param_of(R"("stream_options":{"include_usage":true})"), "stream_options");
  EXPECT_EQ(param_of(R"("stream":true,"stream_options":{"include_usage":true})"), "ok");
  EXPECT_EQ(param_of(R"("stream":true,"stream_options":{"include_usage":1})"),
            "stream_options.include_usage");
  EXPECT_EQ(param_of(R"("min_tokens":17)"), "min_tokens");
  EXPECT_EQ(param_of(R"("n":2,"best_of":1)"), "best_of");
  EXPECT_EQ(param_of(R"("n":2,"best_of":2)"), "ok");
  EXPECT_EQ(param_of(R"("n":2,"best_of":3)"), "best_of");
}

TEST(CompletionRequest, KnownButNotServed) {
  EXPECT_EQ(param_of(R"("suffix":"end")"), "suffix");
  EXPECT_EQ(param_of(R"("suffix":"")"), "ok");
  EXPECT_EQ(param_of(R"("use_beam_search":false)"), "ok");
  EXPECT_EQ(parse(R"({"prompt":"x","use_beam_search":true})").status().reason(), "unsupported_parameter");
}

TEST(CompletionRequest, UnknownFields) {
  EXPECT_EQ(param_of(R"("colour":1)"), "ok");
  EXPECT_EQ(parse(R"({"prompt":"x","colour":1})", true).status().param(), "colour");
  EXPECT_EQ(param_of(R"("stream":true,"stream_options":{"colour":1})"), "ok");
  EXPECT_EQ(parse(R"({"prompt":"x","stream":true,"stream_options":{"colour":1}})", true).status().param(),
            "stream_options.colour");
}

TEST(CompletionRequest, HostileJson) {
  const std::string deep(100000, '[');
  EXPECT_FALSE(parse("{\"prompt\":\"x\",\"ignored\":" + deep + std::string(100000, ']') + "}").ok());
  EXPECT_FALSE(parse("{\"prompt\":\"x\",\"ignored\":" + deep).ok());
  EXPECT_FALSE(parse(std::string("{\"prompt\":\"x\"}\0x", 16)).ok());
  EXPECT_FALSE(parse(R"({"prompt":"x"} x)").ok());
  EXPECT_FALSE(parse(R"({"prompt":"x","prompt":"y"})").ok());
  EXPECT_FALSE(parse(R"({"prompt":"\ud800"})").ok());
  EXPECT_FALSE(parse("").ok());
}

TEST(CacheFields, WrongTypesNameTheField) {
  for (const auto& field : cache_fields()) {
    const std::string name(field.spec.name.substr(std::string("cache.").size()));
    const bool takes_text = field.spec.type == FieldType::kString || field.spec.type == FieldType::kAny;
    const std::string wrong = takes_text ? "7" : "\"text\"";
    EXPECT_EQ(param_of("\"cache\":{\"" + name + "\":" + wrong + "}"), field.spec.name);
    EXPECT_EQ(param_of("\"cache\":{\"" + name + "\":null}"), "ok") << name;
  }
  EXPECT_EQ(param_of(R"("cache":[])"), "cache");
  EXPECT_EQ(parse(R"({"prompt":"x","cache":{"budget":"1k"}})").status().message(),
            "'cache.budget' must be an integer, not a string");
}

TEST(CacheFields, NothingAskedFor) {
  EXPECT_EQ(param_of(R"("cache":{"probe":"none","trace":false,"compress_at":null})"), "ok");
}

TEST(CacheFields, UnknownOnesAreNamedWhole) {
  std::vector<std::string> unknown;
  const Result<CompletionRequest> r =
      parse(R"({"prompt":"x","cache":{"bugdet":64}})", FieldOptions{.unknown = &unknown});
  ASSERT_TRUE(r.ok());
  EXPECT_EQ(unknown, std::vector<std::string>{"cache.bugdet"});
  EXPECT_EQ(parse(R"({"prompt":"x","cache":{"bugdet":64}})", true).status().param(), "cache.bugdet");
}

TEST(CompletionJob, CacheOverTheServersDefaults) {
  const ByteTokenizer tokenizer;
  CompletionContext context{
      .tokenizer = &tokenizer, .served_name = "m", .max_model_len = 64, .max_token_bytes = 4};
  context.cache.budget = 128;
  context.cache_limits.max_budget = 1024;
  context.cache_limits.allow_grow = false;
  const auto read = [&](const std::string& cache) {
    return read_completion_job("{\"prompt\":\"ab\",\"cache\":{" + cache + "}}", CompletionApi::kText,
                               context);
  };
  EXPECT_EQ((*read("")).requests[0].cache.policy, PolicyKind::kRestkv);
  EXPECT_EQ((*read("")).requests[0].cache.budget, 128);
  EXPECT_EQ((*read(R"("policy":"snapkv","budget":256)")).requests[0].cache.policy, PolicyKind::kSnapkv);
  EXPECT_EQ((*read(R"("budget":256)")).requests[0].cache.budget, 256);
  EXPECT_EQ((*read(R"("policy":"full")")).requests[0].cache.policy, PolicyKind::kFull);
  const struct {
    const char* fields;
    const char* param;
    const char* words;
  } errors[] = {
      {R"("budget":1)", "cache.budget", "must be between 38 (4 sinks + 32 window"},
      {R"("budget":-5)", "cache.budget", "and 1024"},
      {R"("budget":2147483648)", "cache.budget", "and 1024"},
      {R"("budget":18446744073709551615)", "cache.budget", "and 1024"},
      {R"("budget":40,"stride":16)", "cache.budget", "must be between 52"},
      {R"("fraction":0)", "cache.fraction", "must be above 0 and at most 1"},
      {R"("policy":"lru")", "cache.policy", "is not one of full, restkv"},
      {R"("window":1025)", "cache.window", "between 1 and 1024"},
      {R"("decode":"grow")", "cache.decode", "cache.allow_grow"},
      {R"("allocation":"calibrated")", "cache.allocation", "no allocation file"},
  };
  for (const auto& error : errors) {
    const Status status = read(error.fields).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << error.fields;
    EXPECT_EQ(status.param(), error.param) << error.fields;
    EXPECT_NE(status.message().find(error.words), std::string::npos) << status.message();
  }
}

TEST(CompletionJob, TokenisesAndBoundsThePrompt) {
  const ByteTokenizer tokenizer;
  const CompletionContext context{
      .tokenizer = &tokenizer, .served_name = "m", .max_model_len = 64, .max_token_bytes = 4};
  const CompletionJob job = *read_completion_job(R"({"prompt":["ab","c"],"echo":true,"logprobs":2,"n":3})",
                                                 CompletionApi::kText, context);
  ASSERT_EQ(job.requests.size(), 2u);
  EXPECT_EQ(job.requests[0].prompt, (std::vector<int32_t>{256, 'a', 'b'}));
  EXPECT_EQ(job.requests[0].prompt_logprobs, 2);
  EXPECT_EQ(job.requests[1].num_choices, 3);
  EXPECT_EQ(job.prompt_texts[1], "c");
  EXPECT_EQ(
      read_completion_job(R"({"prompt":"x","model":"other"})", CompletionApi::kText, context).status().code(),
      StatusCode::kNotFound);
  EXPECT_EQ(read_completion_job(R"({"prompt":"","add_special_tokens":false})", CompletionApi::kText, context)
                .status()
                .param(),
            "prompt");
  const std::string long_text = "{\"prompt\":\"" + std::string(1000, 'x') + "\"}";
  EXPECT_EQ(read_completion_job(long_text, CompletionApi::kText, context).status().reason(),
            "context_length_exceeded");
}

TEST(EndTokens, ThoseWithoutARowOfTheModelAreLeftOut) {
  const ByteTokenizer tokenizer;
  EXPECT_EQ(end_tokens_of(tokenizer, ByteTokenizer::kEos + 1), std::vector<int32_t>{ByteTokenizer::kEos});
  EXPECT_TRUE(end_tokens_of(tokenizer, ByteTokenizer::kEos).empty());
}

}  // namespace
}  // namespace restkv

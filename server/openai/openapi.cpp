// Fields to JSON Schema, operations to paths.
#include "server/openai/openapi.h"

#include <map>

#include "server/config/options.h"
#include "server/openai/completion_request.h"
#include "server/openai/llama_completion.h"
#include "server/openai/tokenize_api.h"

namespace restkv {
namespace {

using json = RequestJson;

// In schemas of token ids; their bound is the model's.
constexpr std::string_view kTokenFormat = "token-id";

constexpr std::string_view kOneText =
    R"("anyOf":[{"required":["prompt"],"properties":{"prompt":{"type":"string"},"messages":{"type":"null"}}},
{"required":["content"],"properties":{"content":{"type":"string"},"messages":{"type":"null"}}},
{"required":["messages"],"properties":{"messages":{"type":"array"},"prompt":{"type":"null"},"content":{"type":"null"}}}])";

constexpr std::string_view kText = "text/plain; version=0.0.4; charset=utf-8";

const ApiOperation kOperations[] = {
    {.method = "POST",
     .path = "/v1/completions",
     .summary = "Complete prompts (OpenAI, vLLM)",
     .fields = [] { return specs_of(completion_fields()); },
     .required = "prompt",
     .refused = [] { return refused_of(completion_fields()); }},
    {.method = "POST",
     .path = "/v1/chat/completions",
     .summary = "Answer a conversation (OpenAI, vLLM)",
     .fields = [] { return specs_of(chat_fields()); },
     .required = "messages",
     .refused = [] { return refused_of(chat_fields()); }},
    {.method = "POST",
     .path = "/completion",
     .summary = "Complete a prompt (llama.cpp)",
     .fields = [] { return specs_of(llama_fields()); },
     .required = "prompt",
     .refused = [] { return refused_of(llama_fields()); }},
    {.method = "POST",
     .path = "/completions",
     .summary = "The same (llama.cpp)",
     .fields = [] { return specs_of(llama_fields()); },
     .required = "prompt",
     .refused = [] { return refused_of(llama_fields()); }},
    {"GET", "/props", "What is served (llama.cpp)"},
    {"GET", "/slots",
     "Who runs: the caller's own requests with numbers, those of others as taken places (llama.cpp)"},
    {"GET", "/v1/models", "The served model, as a list"},
    {"GET", "/v1/models/{id}", "The served model"},
    {"GET", "/v1/requests", "What the caller's key has in flight"},
    {"DELETE", "/v1/requests/{id}", "End a request in flight"},
    {"GET", "/v1/cache/traces/{id}", "What became of the cache of a request that asked for cache.trace"},
    {"POST",
     "/tokenize",
     "Token ids of a text or a conversation",
     tokenize_specs,
     {},
     "application/json",
     false,
     kOneText},
    {"POST", "/detokenize", "The text of token ids", detokenize_specs, "tokens"},
    {"POST", "/apply-template", "The prompt that a conversation becomes", apply_template_specs, "messages"},
    {"GET", "/tokenizer_info", "Special tokens and bounds of the tokenizer (vLLM)"},
    {"GET", "/load", "Requests that run or wait (vLLM)"},
    {"GET", "/v2", "Name and version of the server (KServe)"},
    {"GET", "/v2/models/{id}", "The served model (KServe); behind /ready: whether it answers"},
    {"GET", "/v2/health/live", "Whether the process answers (KServe)", nullptr, {}, "application/json", true},
    {"GET", "/v2/health/ready", "Whether requests are taken (KServe)", nullptr, {}, "application/json", true},
    {"GET",
     "/health",
     "Whether requests are taken; 503 while loading, draining or broken",
     nullptr,
     {},
     "application/json",
     true},
    {"GET", "/health/ready", "The same", nullptr, {}, "application/json", true},
    {"GET", "/health/live", "Whether the process answers", nullptr, {}, "application/json", true},
    {"GET", "/ping", "The same", nullptr, {}, "application/json", true},
    {"GET", "/version", "The program's version", nullptr, {}, "application/json", true},
    {"GET", "/metrics", "Counters for Prometheus", nullptr, {}, kText},
    {"GET", "/openapi.json", "This document"},
};

json parsed_members(std::string_view members) { return json::parse("{" + std::string(members) + "}"); }

// A bound as JSON writes it; infinite ones are the setter's matter.
void set_bound(json& schema, const char* name, double value, bool is_integer) {
  if (value == kUnbounded || value == -kUnbounded) return;
  constexpr double kExact = 9007199254740992.0;
  if (is_integer && value >= -kExact && value <= kExact) {
    schema[name] = static_cast<int64_t>(value);
  } else if (!is_integer) {
    schema[name] = value;
  }
}

json schema_of(const FieldSpec& spec) {
  json schema = json::object();
  const auto nullable = [&](const char* type) { schema["type"] = json::array({type, "null"}); };
  switch (spec.type) {
    case FieldType::kBool: nullable("boolean"); break;
    case FieldType::kInteger:
    case FieldType::kNumber: {
      const bool is_integer = spec.type == FieldType::kInteger;
      nullable(is_integer ? "integer" : "number");
      set_bound(schema, spec.excludes_min ? "exclusiveMinimum" : "minimum", spec.min, is_integer);
      set_bound(schema, "maximum", spec.max, is_integer);
      break;
    }
    case FieldType::kString:
      nullable("string");
      schema["maxLength"] = static_cast<int64_t>(spec.max);
      break;
    case FieldType::kObject:
      nullable("object");
      schema["maxProperties"] = static_cast<int64_t>(spec.max);
      break;
    case FieldType::kList:
      nullable("array");
      schema["maxItems"] = static_cast<int64_t>(spec.max);
      break;
    case FieldType::kAny: break;
  }
  if (!spec.schema.empty()) schema.update(parsed_members(spec.schema));
  schema["description"] = std::string(spec.help);
  const json default_value = json::parse(spec.default_json);
  if (!default_value.is_null()) schema["default"] = default_value;
  return schema;
}

// `prefix` is cut off the names.
json object_schema(const std::vector<FieldSpec>& fields, size_t prefix) {
  json properties = json::object();
  for (const FieldSpec& field : fields) properties[std::string(field.name.substr(prefix))] = schema_of(field);
  return {{"type", "object"}, {"properties", std::move(properties)}};
}

// Names and bounds of a field of `cache` are those of its option.
void add_option_bounds(const Option& option, json& schema) {
  if (option.type == OptionType::kEnum) {
    schema["enum"] = json::array();
    for (const std::string_view choice : option.choices) schema["enum"].push_back(std::string(choice));
    schema["enum"].push_back(nullptr);
    schema.erase("maxLength");
  } else if (option.type == OptionType::kInt || option.type == OptionType::kFloat) {
    set_bound(schema, "minimum", option.min, option.type == OptionType::kInt);
    set_bound(schema, "maximum", option.max, option.type == OptionType::kInt);
  }
}

// An id beyond the vocabulary is an error wherever it stands.
void add_vocabulary(json& schema, int64_t vocab_size) {
  if (schema.is_object() && schema.contains("format") && schema["format"] == kTokenFormat)
    schema["maximum"] = vocab_size - 1;
  for (json& part : schema) {
    if (part.is_structured()) add_vocabulary(part, vocab_size);
  }
}

json body_schema(const ApiOperation& operation, const ApiModel& model) {
  json schema = object_schema(operation.fields(), 0);
  if (!operation.schema.empty()) schema.update(parsed_members(operation.schema));
  if (!operation.required.empty()) schema["required"] = json::array({std::string(operation.required)});
  json& properties = schema["properties"];  // the object gets no member from here on: it would move them
  if (!operation.required.empty()) {
    json& required = properties[std::string(operation.required)];
    if (required.contains("type") && required["type"].is_array())
      required["type"] = json(required["type"][0]);
  }
  if (properties.contains("model")) {
    properties["model"].erase("type");
    properties["model"].erase("maxLength");
    properties["model"]["anyOf"] =
        json::array({{{"type", "string"}, {"const", model.name}}, {{"type", "null"}}});
  }
  add_vocabulary(properties, model.vocab_size);
  if (properties.contains("cache")) {
    json cache = object_schema(specs_of(cache_fields()), std::string_view("cache.").size());
    cache["type"] = json::array({"object", "null"});
    cache["description"] = properties["cache"]["description"];
    for (const auto& [name, field] : cache["properties"].items()) {
      if (const Option* option = find_key("cache", name)) add_option_bounds(*option, field);
    }
    properties["cache"] = std::move(cache);
  }
  if (operation.refused) {
    json names = json::array();
    for (const std::string_view name : operation.refused()) names.push_back(std::string(name));
    schema["x-refused"] = std::move(names);
  }
  return schema;
}

json error_response(const char* description) {
  return {{"description", description},
          {"content", {{"application/json", {{"schema", {{"$ref", "#/components/schemas/Error"}}}}}}}};
}

json operation_of(const ApiOperation& operation, const ApiModel& model) {
  json out = {{"summary", std::string(operation.summary)}};
  if (operation.is_public) out["security"] = json::array();
  if (operation.path.find("{id}") != std::string_view::npos) {
    out["parameters"] = json::array({{{"name", "id"},
                                      {"in", "path"},
                                      {"required", true},
                                      {"schema", {{"type", "string"}, {"minLength", 1}}}}});
  }
  json content = {{std::string(operation.content_type), json::object()}};
  if (operation.fields) {
    out["requestBody"] = {{"required", true},
                          {"content", {{"application/json", {{"schema", body_schema(operation, model)}}}}}};
    if (operation.path.find("completion") != std::string_view::npos)
      content["text/event-stream; charset=utf-8"] = json::object();
  }
  out["responses"] = {{"200", {{"description", "the answer"}, {"content", std::move(content)}}},
                      {"4XX", error_response("what is wrong with the request")},
                      {"503", error_response("shutting down or broken")}};
  return out;
}

}  // namespace

std::span<const ApiOperation> api_operations() { return kOperations; }

std::string openapi_document(std::string_view version, const ApiModel& model) {
  json paths = json::object();
  for (const ApiOperation& operation : kOperations) {
    std::string method(operation.method);
    for (char& c : method) c = static_cast<char>(c - 'A' + 'a');
    paths[std::string(operation.path)][method] = operation_of(operation, model);
  }
  const json nullable_string = {{"type", json::array({"string", "null"})}};
  const json error = {{"type", "object"},
                      {"required", json::array({"message", "type", "param", "code"})},
                      {"properties",
                       {{"message", {{"type", "string"}}},
                        {"type", {{"type", "string"}}},
                        {"param", nullable_string},
                        {"code", nullable_string}}}};
  const json document = {
      {"openapi", "3.1.0"},
      {"info",
       {{"title", "RestKV"}, {"version", std::string(version)}, {"license", {{"name", "Apache-2.0"}}}}},
      {"security", json::array({{{"key", json::array()}}, json::object()})},
      {"paths", std::move(paths)},
      {"components",
       {{"securitySchemes", {{"key", {{"type", "http"}, {"scheme", "bearer"}}}}},
        {"schemas",
         {{"Error",
           {{"type", "object"},
            {"required", json::array({"error"})},
            {"properties", {{"error", error}}}}}}}}}};
  return document.dump();
}

}  // namespace restkv

// Where published models keep their chat template.
#include "server/chat/chat_format.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>

#include "engine/model/json_reader.h"

namespace restkv {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kDefault = "default";
constexpr const char* kToolUse = "tool_use";
constexpr size_t kMaxFileBytes = 64 << 20;  // of the JSON files beside a model

std::optional<std::string> read_file(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error) || fs::file_size(path, error) > kMaxFileBytes) return std::nullopt;
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

json read_json(const fs::path& path) {
  constexpr JsonLimits kLimits{.max_depth = 64, .max_keys = 1'000'000, .allow_nul = true};
  const std::optional<std::string> text = read_file(path);
  if (!text) return json::object();
  Result<json> parsed = parse_json(*text, kLimits);
  return parsed.ok() && parsed->is_object() ? *std::move(parsed) : json::object();
}

// "text", or {"content": "text"}.
std::string token_text(const json& config, const char* key) {
  const auto found = config.find(key);
  if (found == config.end()) return {};
  if (found->is_string()) return found->get<std::string>();
  const auto content = found->is_object() ? found->find("content") : found->end();
  return found->is_object() && content != found->end() && content->is_string() ? content->get<std::string>()
                                                                               : std::string();
}

using Sources = std::map<std::string, std::string>;

// A string, or [{"name": ..., "template": ...}, ...].
Sources sources_of(const json& value) {
  Sources sources;
  if (value.is_string()) sources[kDefault] = value.get<std::string>();
  if (!value.is_array()) return sources;
  for (const json& entry : value) {
    const auto text = [&](const char* key) {
      return entry.is_object() && entry.contains(key) && entry[key].is_string()
                 ? entry[key].get<std::string>()
                 : std::string();
    };
    if (const std::string name = text("name"); !name.empty()) sources[name] = text("template");
  }
  return sources;
}

std::string text_of(const Tokenizer& tokenizer, int64_t id) {
  return id >= 0 && id < tokenizer.vocab_size() ? std::string(tokenizer.token_text(static_cast<int32_t>(id)))
                                                : std::string();
}

struct Found {
  std::string origin;
  Sources sources;
  std::string bos_token, eos_token;
};

Found find_in_gguf(const GgufFile& file, const Tokenizer& tokenizer) {
  constexpr const char* kKey = "tokenizer.chat_template";
  Found found;
  const auto text = [&](const std::string& key) -> std::optional<std::string> {
    const Result<std::optional<std::string_view>> value = file.get_string(key);
    if (!value.ok() || !*value) return std::nullopt;
    return std::string(**value);
  };
  if (auto source = text(kKey)) found.sources[kDefault] = *std::move(source);
  const Result<std::vector<std::string_view>> names = file.get_strings("tokenizer.chat_templates");
  if (names.ok()) {
    for (const std::string_view name : *names) {
      if (auto source = text(std::string(kKey) + "." + std::string(name)))
        found.sources[std::string(name)] = *std::move(source);
    }
  }
  if (!found.sources.empty()) found.origin = std::string(kKey) + " of the GGUF file";
  found.bos_token = text_of(tokenizer, tokenizer.bos_id());
  const Result<std::optional<int64_t>> eos = file.get_int("tokenizer.ggml.eos_token_id");
  if (eos.ok() && *eos) found.eos_token = text_of(tokenizer, **eos);
  return found;
}

Found find_in_folder(const fs::path& folder, const Tokenizer& tokenizer) {
  Found found;
  const json config = read_json(folder / "tokenizer_config.json");
  if (auto source = read_file(folder / "chat_template.jinja")) {
    found.origin = "chat_template.jinja";
    found.sources[kDefault] = *std::move(source);
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(folder / "additional_chat_templates", error)) {
      if (entry.path().extension() != ".jinja") continue;
      if (auto more = read_file(entry.path())) found.sources[entry.path().stem().string()] = *std::move(more);
    }
  } else if (config.contains("chat_template") && !sources_of(config["chat_template"]).empty()) {
    found.origin = "tokenizer_config.json";
    found.sources = sources_of(config["chat_template"]);
  } else if (const json other = read_json(folder / "chat_template.json");
             other.contains("chat_template") && !sources_of(other["chat_template"]).empty()) {
    found.origin = "chat_template.json";
    found.sources = sources_of(other["chat_template"]);
  }
  found.bos_token = token_text(config, "bos_token");
  found.eos_token = token_text(config, "eos_token");
  if (found.bos_token.empty() && !config.contains("bos_token"))
    found.bos_token = text_of(tokenizer, tokenizer.bos_id());
  if (found.eos_token.empty() && !config.contains("eos_token")) {
    const json model = read_json(folder / "config.json");
    const json id = model.contains("eos_token_id") ? model["eos_token_id"] : json();
    const json first = id.is_array() && !id.empty() ? id[0] : id;
    if (first.is_number_integer()) found.eos_token = text_of(tokenizer, first.get<int64_t>());
  }
  return found;
}

}  // namespace

ChatFormat::ChatFormat(std::string origin, const std::map<std::string, std::string>& sources,
                       std::string bos_token, std::string eos_token)
    : origin_(std::move(origin)), bos_token_(std::move(bos_token)), eos_token_(std::move(eos_token)) {
  for (const auto& [name, source] : sources) {
    Named& named = templates_[name];
    named.source = source;
    named.knows_developer = source.find("developer") != std::string::npos;
    Result<ChatTemplate> parsed = ChatTemplate::parse(source);
    if (parsed.ok()) {
      named.parsed = std::make_shared<const ChatTemplate>(*std::move(parsed));
    } else {
      named.error = parsed.status();
    }
  }
}

Result<const ChatFormat::Named*> ChatFormat::find(bool has_tools) const {
  if (templates_.empty()) {
    return invalid_argument(
               "this model has no chat template: start the server with --chat-template FILE, or use "
               "/v1/completions, which takes a prompt")
        .with_reason("no_chat_template");
  }
  auto found = has_tools ? templates_.find(kToolUse) : templates_.end();
  if (found == templates_.end()) found = templates_.find(kDefault);
  if (found == templates_.end() && templates_.size() == 1) found = templates_.begin();
  if (found == templates_.end()) {
    return invalid_argument("this model has several chat templates and none of them is called 'default'")
        .with_reason("no_chat_template");
  }
  if (!found->second.parsed) return found->second.error;
  return &found->second;
}

Status ChatFormat::status() const {
  const Result<const Named*> found = find(false);
  return found.ok() ? Status() : found.status();
}

Result<RenderedPrompt> ChatFormat::render(ChatInput input, const RenderLimits& limits,
                                          std::chrono::system_clock::time_point now) const {
  const Result<const Named*> found = find(input.tools.is_array() && !input.tools.empty());
  if (!found.ok()) return found.status();
  input.bos_token = bos_token_;
  input.eos_token = eos_token_;
  if (!(*found)->knows_developer && input.messages.is_array()) {
    for (auto& message : input.messages) {
      if (message.is_object() && message.contains("role") && message["role"] == "developer")
        message["role"] = "system";
    }
  }
  return (*found)->parsed->render_prompt(input, limits, now);
}

Result<std::shared_ptr<const ChatFormat>> load_chat_format(const std::string& model_path,
                                                           const GgufFile* gguf, const Tokenizer& tokenizer,
                                                           const std::string& template_file) {
  Found found = gguf ? find_in_gguf(*gguf, tokenizer) : find_in_folder(model_path, tokenizer);
  if (!template_file.empty()) {
    std::optional<std::string> source = read_file(template_file);
    if (!source) return not_found("--chat-template: cannot read " + template_file);
    found.origin = template_file;
    found.sources = {{kDefault, *std::move(source)}};
  }
  auto format = std::make_shared<ChatFormat>(std::move(found.origin), found.sources,
                                             std::move(found.bos_token), std::move(found.eos_token));
  if (!template_file.empty() && !format->status().ok())
    return Status(StatusCode::kInvalidArgument, template_file + ": " + format->status().message());
  return std::shared_ptr<const ChatFormat>(std::move(format));
}

}  // namespace restkv

// From JSON to token ids.
#include "server/openai/completion_job.h"

#include <algorithm>

#include "engine/model/json_reader.h"
#include "server/openai/probe_tokens.h"
#include "server/openai/tokenize_api.h"

namespace restkv {
namespace {

// Longest-token bound: a text of so many bytes cannot have fewer tokens than the context takes, so it need not be
// tokenised to be refused.
Status check_prompt_size(const std::string& text, const std::string& path, const CompletionContext& context) {
  const size_t least = text.size() / std::max<size_t>(1, context.max_token_bytes);
  if (least <= static_cast<size_t>(context.max_model_len)) return {};
  return invalid_argument("'" + path + "' has " + std::to_string(text.size()) +
                          " bytes, which are at least " + std::to_string(least) +
                          " tokens; this server takes at most " + std::to_string(context.max_model_len))
      .with_param(path)
      .with_reason("context_length_exceeded");
}

Status no_tokens(const std::string& path) {
  return invalid_argument("'" + path + "' has no tokens").with_param(path);
}

// Prompts of /v1/completions to token ids, and the texts that echo shows.
Status tokenize_prompts(CompletionRequest& r, const CompletionContext& context,
                        std::vector<std::vector<int32_t>>& ids, std::vector<std::string>& texts) {
  for (size_t i = 0; i < r.prompts.size(); ++i) {
    Prompt& prompt = r.prompts[i];
    const std::string path = r.prompts.size() == 1 ? "prompt" : "prompt[" + std::to_string(i) + "]";
    if (prompt.is_text) {
      if (Status status = check_prompt_size(prompt.text, path, context); !status.ok()) return status;
      prompt.ids = context.tokenizer->encode(
          prompt.text, {.add_special = r.add_special_tokens, .special_tokens = SpecialTokens::kParse});
    }
    if (prompt.ids.empty()) return no_tokens(path);
    std::string& text = texts.emplace_back();
    if (r.echo) text = prompt.is_text ? std::move(prompt.text) : context.tokenizer->decode(prompt.ids);
    ids.push_back(std::move(prompt.ids));
  }
  return {};
}

// A conversation to token ids. Its answer has `default_max_tokens`, where the request says nothing and the context has as
// many left; a prompt that fills the context is the engine's error.
Status tokenize_chat(CompletionRequest& r, const CompletionContext& context,
                     std::vector<std::vector<int32_t>>& ids) {
  const bool add_special_tokens = r.chat.add_special_tokens;
  const Result<RenderedPrompt> prompt =
      render_chat(std::move(r.chat), {context.chat_format, render_limits(context.max_model_len)});
  if (!prompt.ok()) return prompt.status();
  if (Status status = check_prompt_size(prompt->text, "messages", context); !status.ok()) return status;
  ids.push_back(encode_chat(*prompt, *context.tokenizer, add_special_tokens));
  if (ids[0].empty()) return no_tokens("messages");
  const int64_t room = context.max_model_len - static_cast<int64_t>(ids[0].size());
  if (!r.max_tokens) {
    r.max_tokens = static_cast<int32_t>(std::clamp<int64_t>(room, 1, context.default_max_tokens));
    r.min_tokens = std::min(r.min_tokens, *r.max_tokens);
  }
  return {};
}

Result<CacheSettings> cache_of(const CacheRequest& asked, const CompletionContext& context,
                               int64_t prompt_len) {
  Result<CacheSettings> cache =
      settings_of_prompt(asked, context.cache, context.cache_profiles, context.cache_limits,
                         {.owner = context.owner, .model = context.served_name, .prompt_len = prompt_len});
  Status status = cache.status();
  if (cache.ok()) status = tokenize_probe(*cache, prompt_len, *context.tokenizer);
  if (!status.ok()) return std::move(status).with_reason("invalid_value");
  return cache;
}

}  // namespace

SamplingParams default_sampling(const ModelConfig::SamplingDefaults& model, SamplingParams sampling) {
  if (model.temperature) sampling.temperature = sampling_temperature(*model.temperature);
  if (model.top_p && *model.top_p > 0) sampling.top_p = static_cast<float>(*model.top_p);
  if (model.min_p) sampling.min_p = static_cast<float>(*model.min_p);
  if (model.repetition_penalty) sampling.repetition_penalty = static_cast<float>(*model.repetition_penalty);
  if (model.top_k) sampling.top_k = static_cast<int32_t>(*model.top_k);
  return sampling;
}

Result<CompletionJob> read_completion_job(std::string_view body, CompletionApi api,
                                          const CompletionContext& context) {
  Result<RequestJson> json = parse_ordered_json(body);
  if (!json.ok()) return json.status();
  CompletionJob job;
  job.api = api;
  CompletionRequest r;
  r.api = api;
  r.vocab_size = context.tokenizer->vocab_size();
  r.field_options = {.strict = context.strict_params, .unknown = &job.unknown_fields};
  r.sampling = context.sampling;
  if (Status status = parse_completion_request(*std::move(json), r); !status.ok()) return status;
  if (Status status = check_model_name(r.model, context.served_name); !status.ok()) return status;

  std::vector<std::vector<int32_t>> prompts;
  Status status = api == CompletionApi::kChat ? tokenize_chat(r, context, prompts)
                                              : tokenize_prompts(r, context, prompts, job.prompt_texts);
  if (!status.ok()) return status;
  job.prompt_texts.resize(prompts.size());

  job.stream = r.stream;
  job.include_usage = r.include_usage;
  job.has_seed = r.seed.has_value();
  job.output = {.stop = std::move(r.stop),
                .stop_token_ids = r.stop_token_ids,
                .include_stop_string = r.include_stop_string,
                .skip_special_tokens = r.skip_special_tokens,
                .min_tokens = r.min_tokens,
                .logprobs = r.logprobs,
                .echo = r.echo};
  r.sampling.seed = r.seed.value_or(0);
  r.sampling.num_logprobs = r.logprobs;
  if (!r.ignore_eos)
    r.stop_token_ids.insert(r.stop_token_ids.end(), context.end_tokens.begin(), context.end_tokens.end());
  for (std::vector<int32_t>& ids : prompts) {
    Request& request = job.requests.emplace_back();
    request.prompt = std::move(ids);
    request.max_tokens = *r.max_tokens;
    request.min_tokens = r.min_tokens;
    request.num_choices = r.num_choices;
    request.priority = r.priority;
    request.cache_salt = r.cache_salt;
    request.sampling = r.sampling;
    Result<CacheSettings> cache = cache_of(r.cache, context, static_cast<int64_t>(request.prompt.size()));
    if (!cache.ok()) return cache.status();
    request.cache = *std::move(cache);
    request.stop_token_ids = r.stop_token_ids;
    request.ignore_eos = r.ignore_eos;
    request.prompt_logprobs = r.echo ? r.logprobs : -1;
  }
  return job;
}

}  // namespace restkv

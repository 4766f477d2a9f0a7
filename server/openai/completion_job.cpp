// From JSON to token ids.
#include "server/openai/completion_job.h"

#include <algorithm>
#include <limits>

#include "engine/model/json_reader.h"
#include "server/openai/llama_completion.h"
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

// A request that says nothing has `most` tokens or as many as the context has left; a prompt that fills it is the engine's error.
void set_max_tokens(CompletionRequest& r, const CompletionContext& context, int64_t most,
                    int64_t prompt_len) {
  if (r.max_tokens) return;
  r.max_tokens = static_cast<int32_t>(std::clamp<int64_t>(context.max_model_len - prompt_len, 1, most));
  r.min_tokens = std::min(r.min_tokens, *r.max_tokens);
}

// truncate_prompt_tokens: the last tokens stay, or the first. True: something was cut.
bool truncate_prompt(const CompletionRequest& r, const CompletionContext& context,
                     std::vector<int32_t>& ids) {
  if (r.truncate_prompt_tokens == 0) return false;
  const int64_t room = context.max_model_len - r.max_tokens.value_or(context.default_max_tokens);
  const int64_t len = r.truncate_prompt_tokens > 0 ? r.truncate_prompt_tokens : std::max<int64_t>(1, room);
  if (static_cast<int64_t>(ids.size()) <= len) return false;
  r.truncates_left ? ids.erase(ids.begin(), ids.end() - len) : ids.erase(ids.begin() + len, ids.end());
  return true;
}

// Prompts of /v1/completions and /completion to token ids, and the texts that echo and return_prompt_text show.
Status tokenize_prompts(CompletionRequest& r, const CompletionContext& context,
                        std::vector<std::vector<int32_t>>& ids, std::vector<std::string>& texts) {
  for (size_t i = 0; i < r.prompts.size(); ++i) {
    Prompt& prompt = r.prompts[i];
    const std::string path = r.prompts.size() == 1 ? "prompt" : "prompt[" + std::to_string(i) + "]";
    if (prompt.is_text) {
      if (Status status = check_prompt_size(prompt.text, path, context);
          r.truncate_prompt_tokens == 0 && !status.ok()) {
        return status;
      }
      prompt.ids = context.tokenizer->encode(
          prompt.text, {.add_special = r.add_special_tokens, .special_tokens = SpecialTokens::kParse});
    }
    if (prompt.ids.empty()) return no_tokens(path);
    std::string& text = texts.emplace_back();
    const bool is_whole = !truncate_prompt(r, context, prompt.ids);
    if (r.echo || r.return_prompt_text)
      text = prompt.is_text && is_whole ? std::move(prompt.text) : context.tokenizer->decode(prompt.ids);
    set_max_tokens(r, context, std::numeric_limits<int32_t>::max(), static_cast<int64_t>(prompt.ids.size()));
    ids.push_back(std::move(prompt.ids));
  }
  return {};
}

// A word is another token behind a space; both are banned.
std::vector<std::vector<int32_t>> tokenize_bad_words(const std::vector<std::string>& words,
                                                     const Tokenizer& tokenizer) {
  std::vector<std::vector<int32_t>> all;
  for (const std::string& word : words) {
    for (const std::string& text : {word, " " + word}) {
      std::vector<int32_t> ids =
          tokenizer.encode(text, {.add_special = false, .special_tokens = SpecialTokens::kAsText});
      if (!ids.empty() && std::find(all.begin(), all.end(), ids) == all.end()) all.push_back(std::move(ids));
    }
  }
  return all;
}

// A conversation to token ids. Its answer has `default_max_tokens`, where the request says nothing and the context has as
// many left; a prompt that fills the context is the engine's error.
Status tokenize_chat(CompletionRequest& r, const CompletionContext& context,
                     std::vector<std::vector<int32_t>>& ids, std::vector<std::string>& texts) {
  const bool add_special_tokens = r.chat.add_special_tokens;
  Result<RenderedPrompt> prompt =
      render_chat(std::move(r.chat), {context.chat_format, render_limits(context.max_model_len)});
  if (!prompt.ok()) return prompt.status();
  if (Status status = check_prompt_size(prompt->text, "messages", context);
      r.truncate_prompt_tokens == 0 && !status.ok()) {
    return status;
  }
  ids.push_back(encode_chat(*prompt, *context.tokenizer, add_special_tokens));
  if (ids[0].empty()) return no_tokens("messages");
  const bool is_whole = !truncate_prompt(r, context, ids[0]);
  if (r.return_prompt_text)
    texts.push_back(is_whole ? std::move(prompt->text) : context.tokenizer->decode(ids[0]));
  set_max_tokens(r, context, context.default_max_tokens, static_cast<int64_t>(ids[0].size()));
  return {};
}

Result<CacheSettings> cache_of(const CacheRequest& asked, const CompletionContext& context,
                               int64_t prompt_len) {
  std::span<const CacheProfile> profiles;
  if (context.cache_profiles) profiles = *context.cache_profiles;
  Result<CacheSettings> cache = settings_of_prompt(asked, context.cache, profiles, context.cache_limits,
                                                   {.owner = context.owner,
                                                    .key_profile = context.key_profile.get(),
                                                    .model = context.served_name,
                                                    .prompt_len = prompt_len});
  Status status = cache.status();
  if (cache.ok()) status = tokenize_probe(*cache, prompt_len, *context.tokenizer);
  if (!status.ok()) return std::move(status).with_reason("invalid_value");
  return cache;
}

}  // namespace

std::vector<int32_t> end_tokens_of(const Tokenizer& tokenizer, int64_t vocab_size) {
  std::vector<int32_t> ids = tokenizer.eos_ids();
  std::erase_if(ids, [&](int32_t id) { return id >= vocab_size; });
  return ids;
}

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
  return make_completion_job(*std::move(json), api, context);
}

Result<CompletionJob> make_completion_job(RequestJson body, CompletionApi api,
                                          const CompletionContext& context) {
  CompletionJob job;
  job.api = api;
  CompletionRequest r;
  r.api = api;
  r.vocab_size = context.tokenizer->vocab_size();
  r.field_options = {.strict = context.strict_params, .unknown = &job.unknown_fields};
  r.sampling = api == CompletionApi::kLlama ? llama_sampling() : context.sampling;
  if (Status status = parse_completion_request(std::move(body), r); !status.ok()) return status;
  if (Status status = check_model_name(r.model, context.served_name); !status.ok()) return status;

  std::vector<std::vector<int32_t>> prompts;
  Status status = api == CompletionApi::kChat ? tokenize_chat(r, context, prompts, job.prompt_texts)
                                              : tokenize_prompts(r, context, prompts, job.prompt_texts);
  if (!status.ok()) return status;
  job.prompt_texts.resize(prompts.size());

  if (api == CompletionApi::kLlama) job.limit_field = "n_predict";
  if (r.max_completion_tokens) job.limit_field = "max_completion_tokens";
  job.stream = r.stream;
  job.include_usage = r.include_usage;
  job.continuous_usage = r.continuous_usage;
  job.request_id = std::move(r.request_id);
  job.has_seed = r.seed.has_value();
  job.output = {.stop = std::move(r.stop),
                .stop_token_ids = r.stop_token_ids,
                .include_stop_string = r.include_stop_string,
                .skip_special_tokens = r.skip_special_tokens,
                .min_tokens = r.min_tokens,
                .logprobs = r.logprobs,
                .echo = r.echo,
                .prompt_logprobs = r.prompt_logprobs,
                .return_token_ids = r.return_token_ids,
                .tokens_as_ids = r.tokens_as_ids,
                .timings_per_token = r.timings_per_token,
                .return_prompt_text = r.return_prompt_text,
                .stream_interval = r.stream_interval};
  r.sampling.seed = r.seed.value_or(0);
  r.sampling.num_logprobs = r.logprobs;
  if (!r.ignore_eos)
    r.stop_token_ids.insert(r.stop_token_ids.end(), context.end_tokens.begin(), context.end_tokens.end());
  std::vector<std::vector<int32_t>> bad_words = tokenize_bad_words(r.bad_words, *context.tokenizer);
  for (const int32_t token : r.bad_tokens) bad_words.push_back({token});
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
    request.prompt_logprobs = std::max(r.echo ? r.logprobs : -1, r.prompt_logprobs);
    request.bad_words = bad_words;
    request.reports_progress = r.return_progress && r.stream;
  }
  return job;
}

}  // namespace restkv

// From JSON to token ids.
#include "server/openai/completion_job.h"

#include "engine/model/json_reader.h"
#include "server/openai/completion_request.h"
#include "server/openai/tokenize_api.h"

namespace restkv {
namespace {

// Longest-token bound: a text of so many bytes cannot have fewer tokens than the context takes, so it need not be
// tokenised to be refused.
Status check_prompt_size(const Prompt& prompt, const std::string& path, const CompletionContext& context) {
  if (!prompt.is_text) return {};
  const size_t least = prompt.text.size() / std::max<size_t>(1, context.max_token_bytes);
  if (least <= static_cast<size_t>(context.max_model_len)) return {};
  return invalid_argument("'" + path + "' has " + std::to_string(prompt.text.size()) +
                          " bytes, which are at least " + std::to_string(least) +
                          " tokens; this server takes at most " + std::to_string(context.max_model_len))
      .with_param(path)
      .with_reason("context_length_exceeded");
}

}  // namespace

Result<CompletionJob> read_completion_job(std::string_view body, const CompletionContext& context) {
  Result<nlohmann::json> json = parse_json(body);
  if (!json.ok()) return json.status();
  CompletionJob job;
  const FieldOptions options{.strict = context.strict_params, .unknown = &job.unknown_fields};
  Result<CompletionRequest> parsed =
      parse_completion_request(*std::move(json), context.tokenizer->vocab_size(), options);
  if (!parsed.ok()) return parsed.status();
  CompletionRequest& r = *parsed;
  if (Status status = check_model_name(r.model, context.served_name); !status.ok()) return status;

  Result<CacheSettings> cache = resolve_cache_settings(overlay(context.cache, r.cache), context.cache_limits);
  if (!cache.ok()) {
    Status status = cache.status();
    return std::move(status).with_reason("invalid_value");
  }

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
  for (size_t i = 0; i < r.prompts.size(); ++i) {
    Prompt& prompt = r.prompts[i];
    const std::string path = r.prompts.size() == 1 ? "prompt" : "prompt[" + std::to_string(i) + "]";
    if (Status status = check_prompt_size(prompt, path, context); !status.ok()) return status;
    if (prompt.is_text) {
      prompt.ids = context.tokenizer->encode(
          prompt.text, {.add_special = r.add_special_tokens, .special_tokens = SpecialTokens::kParse});
    }
    if (prompt.ids.empty()) return invalid_argument("'" + path + "' has no tokens").with_param(path);
    std::string& text = job.prompt_texts.emplace_back();
    if (r.echo) text = prompt.is_text ? std::move(prompt.text) : context.tokenizer->decode(prompt.ids);
    Request& request = job.requests.emplace_back();
    request.prompt = std::move(prompt.ids);
    request.max_tokens = r.max_tokens;
    request.min_tokens = r.min_tokens;
    request.num_choices = r.num_choices;
    request.priority = r.priority;
    request.sampling = r.sampling;
    request.cache = *cache;
    request.stop_token_ids = r.stop_token_ids;
    request.ignore_eos = r.ignore_eos;
    request.prompt_logprobs = r.echo ? r.logprobs : -1;
  }
  return job;
}

}  // namespace restkv

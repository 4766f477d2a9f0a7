// Which requests are refused when they are submitted: what could never run, and what has to come again later.
#include "engine/request_checks.h"

#include <algorithm>

#include "engine/engine_core.h"

namespace restkv {
namespace {

bool is_token(int32_t id, int64_t vocab_size) { return id >= 0 && id < vocab_size; }
Status no_token(int32_t id, int64_t vocab_size) {
  return invalid_argument("token id " + std::to_string(id) + " is not in the vocabulary of " +
                          std::to_string(vocab_size));
}

}  // namespace

Status check_token_ids(std::span<const int32_t> ids, int64_t vocab_size, std::string_view param) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!is_token(ids[i], vocab_size))
      return no_token(ids[i], vocab_size).with_param(std::string(param) + "[" + std::to_string(i) + "]");
  }
  return {};
}

Status EngineCore::check(const Request& request) const {
  const ModelConfig& config = model_.config;
  if (request.prompt.empty()) return invalid_argument("the prompt has no tokens").with_param("prompt");
  const auto check_ids = [&](const std::vector<int32_t>& ids, const char* param) {
    return check_token_ids(ids, config.vocab_size, param);
  };
  if (Status s = check_ids(request.prompt, "prompt"); !s.ok()) return s;
  if (request.cache.allocation == Allocation::kCalibrated && !options_.allocation)
    return invalid_argument(
               "cache.allocation: this model has no allocation file; make one with `restkv calibrate`")
        .with_param("cache.allocation");
  if (Status s = check_ids(request.cache.probe.tokens, "cache.probe"); !s.ok()) return s;
  if (Status s = check_ids(request.stop_token_ids, "stop_token_ids"); !s.ok()) return s;
  if (Status s = check_ids(request.sampling.allowed_tokens, "allowed_token_ids"); !s.ok()) return s;
  for (const LogitBias& bias : request.sampling.logit_bias) {
    if (!is_token(bias.token, config.vocab_size))
      return no_token(bias.token, config.vocab_size).with_param("logit_bias");
  }
  for (const std::vector<int32_t>& word : request.bad_words) {
    if (word.empty()) return invalid_argument("a bad word has no tokens").with_param("bad_words");
    if (Status s = check_ids(word, "bad_words"); !s.ok()) return s;
  }
  if (request.max_tokens < 0)
    return invalid_argument("max_tokens must be at least 0").with_param("max_tokens");
  if (request.num_choices < 1 || request.num_choices > 16)
    return invalid_argument("n must be between 1 and 16").with_param("n");
  const auto prompt_len = static_cast<int64_t>(request.prompt.size());
  if (prompt_len + request.max_tokens > plan_.max_model_len) {
    return invalid_argument("the prompt has " + std::to_string(prompt_len) +
                            " tokens and the answer may have " + std::to_string(request.max_tokens) +
                            ", together " + std::to_string(prompt_len + request.max_tokens) +
                            "; this server takes at most " + std::to_string(plan_.max_model_len))
        .with_param(prompt_len >= plan_.max_model_len ? "prompt" : "max_tokens")
        .with_reason("context_length_exceeded");
  }
  const ProbeSpec probe = probe_for_prompt(request.cache, prompt_len);
  if (probe.kind != ProbeSpec::Kind::kNone) {
    const auto probe_len = static_cast<int64_t>(probe.tokens.size());
    if (probe_len < 1 || probe_len > kMaxProbeTokens) {
      return invalid_argument("cache.probe: has " + std::to_string(probe_len) +
                              " tokens, must be between 1 and " + std::to_string(kMaxProbeTokens))
          .with_param("cache.probe");
    }
    const int64_t rows = prefill_tokens(request.cache, prompt_len) + probe_len;
    if (rows > plan_.max_model_len) {
      return invalid_argument("cache.probe: the prompt and the probe's " + std::to_string(probe_len) +
                              " tokens are together " + std::to_string(rows) +
                              "; this server takes at most " + std::to_string(plan_.max_model_len))
          .with_param("cache.probe")
          .with_reason("context_length_exceeded");
    }
  }
  const int64_t pages = executor_.pages_for(request.cache, prompt_len, request.max_tokens);
  if (pages > plan_.pages) {
    return invalid_argument("with this budget the request needs " + std::to_string(pages) +
                            " pages of cache; this server has " + std::to_string(plan_.pages))
        .with_param("cache.budget")
        .with_reason("context_length_exceeded");
  }
  // All choices are admitted together.
  const int64_t more = executor_.pages_for_more(request.cache, prompt_len, request.max_tokens);
  const int64_t largest = std::min<int64_t>(
      options_.max_num_seqs, 1 + (more > 0 ? (plan_.pages - pages) / more : options_.max_num_seqs));
  if (request.num_choices > largest) {
    return invalid_argument("n is " + std::to_string(request.num_choices) + ", and " +
                            std::to_string(largest) + (largest == 1 ? " choice" : " choices") +
                            " of this length fit at once; lower n, max_tokens or cache.budget")
        .with_param("n")
        .with_reason("invalid_value");
  }
  return {};
}

Status EngineCore::check_queue(const Request& request, int64_t waiting, int64_t waiting_tokens) const {
  const auto tokens = static_cast<int64_t>(request.prompt.size()) * request.num_choices;
  // A request that alone is more than the queue takes may wait in an empty one.
  if (waiting == 0 || (waiting + request.num_choices <= options_.max_queue_requests &&
                       waiting_tokens + tokens <= options_.max_queue_tokens))
    return {};
  return Status(StatusCode::kResourceExhausted,
                "the queue is full (" + std::to_string(waiting) + " waiting); try again later")
      .with_reason("queue_full");
}

}  // namespace restkv

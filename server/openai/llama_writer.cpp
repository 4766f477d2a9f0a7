// Answers of POST /completion.
#include "server/openai/completion_writer.h"
#include "server/openai/json_text.h"
#include "server/openai/llama_completion.h"

namespace restkv {
namespace {

void append_member(std::string& out, std::string_view name, int64_t value) {
  out += ",\"";
  out += name;
  out += "\":";
  append_json_number(out, value);
}

void append_member(std::string& out, std::string_view name, double value) {
  out += ",\"";
  out += name;
  out += "\":";
  append_json_number(out, value);
}

void append_ids(std::string& out, const std::vector<int32_t>& ids) {
  out += '[';
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) out += ',';
    append_json_number(out, static_cast<int64_t>(ids[i]));
  }
  out += ']';
}

// {"id":...,"token":...,"bytes":[...],"logprob":...  without the closing brace
void append_token(std::string& out, const Tokenizer& tokenizer, int32_t token, float logprob) {
  const std::string_view bytes = tokenizer.token_bytes(token);
  out += "{\"id\":";
  append_json_number(out, static_cast<int64_t>(token));
  out += ",\"token\":";
  append_json_string(out, bytes);
  out += ",\"bytes\":[";
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i > 0) out += ',';
    append_json_number(out, static_cast<int64_t>(static_cast<unsigned char>(bytes[i])));
  }
  out += "],\"logprob\":";
  append_json_number(out, static_cast<double>(logprob));
}

void append_probabilities(std::string& out, const LlamaAnswer& answer, const OutputDelta& delta) {
  if (answer.options->logprobs < 0) return;
  out += ",\"completion_probabilities\":[";
  for (size_t i = 0; i < delta.tokens.size(); ++i) {
    const TokenOutput& token = delta.tokens[i];
    if (i > 0) out += ',';
    append_token(out, *answer.tokenizer, token.token, token.logprob);
    out += ",\"top_logprobs\":[";
    for (size_t k = 0; k < token.top.size(); ++k) {
      if (k > 0) out += ',';
      append_token(out, *answer.tokenizer, token.top[k].token, token.top[k].logprob);
      out += '}';
    }
    out += "]}";
  }
  out += ']';
}

void append_settings(std::string& out, const Request& request, const OutputOptions& options) {
  const SamplingParams& sampling = request.sampling;
  out += ",\"generation_settings\":{\"n_predict\":";
  append_json_number(out, static_cast<int64_t>(request.max_tokens));
  out += ",\"seed\":";
  out += std::to_string(sampling.seed);
  append_member(out, "temperature", static_cast<double>(sampling.temperature));
  append_member(out, "top_k", static_cast<int64_t>(sampling.top_k));
  append_member(out, "top_p", static_cast<double>(sampling.top_p));
  append_member(out, "min_p", static_cast<double>(sampling.min_p));
  append_member(out, "repeat_penalty", static_cast<double>(sampling.repetition_penalty));
  append_member(out, "presence_penalty", static_cast<double>(sampling.presence_penalty));
  append_member(out, "frequency_penalty", static_cast<double>(sampling.frequency_penalty));
  out += ",\"ignore_eos\":";
  out += request.ignore_eos ? "true" : "false";
  out += ",\"stop\":[";
  for (size_t i = 0; i < options.stop.size(); ++i) {
    if (i > 0) out += ',';
    append_json_string(out, options.stop[i]);
  }
  out += "],\"samplers\":[\"penalties\",\"top_k\",\"top_p\",\"min_p\",\"temperature\"]}";
}

void append_timing(std::string& out, std::string_view name, int64_t count, double ms) {
  const std::string prefix(name);
  out += '"' + prefix + "_n\":";
  append_json_number(out, count);
  out += ",\"" + prefix + "_ms\":";
  append_json_fixed(out, ms);
  out += ",\"" + prefix + "_per_second\":";
  append_json_fixed(out, ms > 0 ? static_cast<double>(count) * 1e3 / ms : 0.0);
}

// ,"timings":{...}
void append_timings(std::string& out, const OutputUsage& usage) {
  out += ",\"timings\":{";
  append_timing(out, "prompt", usage.prompt_tokens - usage.cached_tokens, usage.prefill_ms);
  out += ',';
  append_timing(out, "predicted", usage.completion_tokens, usage.decode_ms);
  append_member(out, "cache_n", usage.cached_tokens);
  out += '}';
}

void append_begin(std::string& out, const OutputDelta& delta, bool is_last) {
  out += "{\"index\":0,\"content\":";
  append_json_string(out, delta.text);
  out += ",\"tokens\":";
  append_ids(out, delta.token_ids);
  out += is_last ? ",\"stop\":true,\"id_slot\":-1" : ",\"stop\":false,\"id_slot\":-1";
}

}  // namespace

void append_llama_chunk(std::string& out, const LlamaAnswer& answer, const OutputDelta& delta,
                        const OutputUsage& usage) {
  append_begin(out, delta, false);
  append_member(out, "tokens_predicted", usage.completion_tokens);
  append_member(out, "tokens_evaluated", usage.prompt_tokens);
  append_probabilities(out, answer, delta);
  if (answer.options->timings_per_token) append_timings(out, usage);
  out += '}';
}

void append_llama_progress(std::string& out, const PromptProgress& progress) {
  append_begin(out, {}, false);
  append_member(out, "tokens_predicted", int64_t{0});
  append_member(out, "tokens_evaluated", progress.total);
  out += ',';
  append_prompt_progress(out, progress);
  out += '}';
}

void append_llama_final(std::string& out, const LlamaAnswer& answer, const OutputDelta& delta,
                        bool is_streamed, const OutputUsage& usage) {
  static const OutputDelta kNothing;
  append_begin(out, is_streamed ? kNothing : delta, true);
  out += ",\"model\":";
  append_json_string(out, answer.model);
  append_member(out, "tokens_predicted", usage.completion_tokens);
  append_member(out, "tokens_evaluated", usage.prompt_tokens);
  append_member(out, "tokens_cached", usage.prompt_tokens + usage.completion_tokens);
  append_settings(out, *answer.request, *answer.options);
  out += ",\"prompt\":";
  append_json_string(out, answer.tokenizer->decode(answer.request->prompt));
  out += ",\"has_new_line\":";
  out += answer.has_new_line ? "true" : "false";
  out += ",\"truncated\":false,\"stop_type\":\"";
  const bool is_word = delta.stop_index >= 0;
  out += is_word ? "word" : delta.finish == FinishReason::kStop ? "eos" : "limit";
  out += "\",\"stopping_word\":";
  append_json_string(out,
                     is_word ? answer.options->stop[static_cast<size_t>(delta.stop_index)] : std::string());
  if (!is_streamed) append_probabilities(out, answer, delta);
  append_timings(out, usage);
  out += '}';
}

}  // namespace restkv

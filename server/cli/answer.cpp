// Streaming to stdout, figures to stderr.
#include "server/cli/answer.h"

#include <algorithm>
#include <cstdio>

#include "server/cli/model_loading.h"
#include "server/cli/terminal.h"
#include "server/openai/completion_request.h"

namespace restkv {
namespace {

const char* finish_text(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "end of text";
    case FinishReason::kLength: return "max-tokens";
    case FinishReason::kCancelled: return "interrupted";
    default: return "";
  }
}

}  // namespace

SamplingParams sampling_of(const AnswerSettings& settings, SamplingParams defaults) {
  SamplingParams sampling = std::move(defaults);
  if (settings.temperature) sampling.temperature = sampling_temperature(*settings.temperature);
  if (settings.top_p) sampling.top_p = static_cast<float>(*settings.top_p);
  if (settings.top_k) sampling.top_k = static_cast<int32_t>(*settings.top_k);
  if (settings.min_p) sampling.min_p = static_cast<float>(*settings.min_p);
  if (settings.repetition_penalty)
    sampling.repetition_penalty = static_cast<float>(*settings.repetition_penalty);
  sampling.presence_penalty = static_cast<float>(settings.presence_penalty);
  sampling.frequency_penalty = static_cast<float>(settings.frequency_penalty);
  if (settings.seed) sampling.seed = static_cast<uint64_t>(*settings.seed);
  return sampling;
}

int32_t answer_room(const Engine& engine, size_t prompt_len, int64_t max_tokens) {
  const int64_t room = engine.memory_plan().max_model_len - static_cast<int64_t>(prompt_len);
  return static_cast<int32_t>(std::clamp<int64_t>(room, 1, max_tokens));
}

Result<Answer> print_answer(Engine& engine, Request request, const Tokenizer& tokenizer) {
  StreamingDetokenizer text(tokenizer);
  Answer answer;
  const auto print = [&](const std::string& piece) {
    answer.text += piece;
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
  };
  Result<TokenRecord> finish = run_request(
      engine, std::move(request), [&](const TokenRecord& record) { print(text.append(record.token)); },
      InterruptGuard::is_interrupted);
  if (!finish.ok()) return finish.status();
  print(text.finish());
  std::fputs("\n", stdout);
  std::fflush(stdout);
  answer.finish = *std::move(finish);
  return answer;
}

void print_figures(const TokenRecord& finish) {
  const SequenceCounters& counters = finish.counters;
  // The first token comes out of the prefill; decode_ms covers the others.
  const double prefill_tok_s =
      counters.prefill_ms > 0 ? 1000.0 * counters.prompt_tokens / counters.prefill_ms : 0;
  const int32_t decoded = std::max(0, counters.completion_tokens - 1);
  const double decode_tok_s = counters.decode_ms > 0 ? 1000.0 * decoded / counters.decode_ms : 0;
  const CacheCounters& cache = counters.cache;
  std::fprintf(stderr,
               "[prompt %d tokens, %.1f tok/s | answer %d tokens, %.1f tok/s | cache %d entries a head, %lld "
               "evicted | %s]\n",
               counters.prompt_tokens, prefill_tok_s, counters.completion_tokens, decode_tok_s, cache.kept,
               static_cast<long long>(cache.evicted), finish_text(finish.finish));
}

}  // namespace restkv

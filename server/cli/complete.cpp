// restkv complete MODEL [PROMPT]: the answer streams to stdout, figures go to stderr.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <iterator>

#include "server/cli/model_loading.h"
#include "server/cli/terminal.h"
#include "server/cli/verbs.h"

namespace restkv {
namespace {

Request request_of(const CompleteSettings& settings, const CacheSettings& cache, const Tokenizer& tokenizer,
                   const std::string& prompt, int64_t max_model_len) {
  Request request;
  request.id = "cmpl-terminal";
  request.prompt = tokenizer.encode(prompt, {});
  // An answer that does not fit the context ends there; a prompt that does not fit is the engine's error.
  const int64_t room = max_model_len - static_cast<int64_t>(request.prompt.size());
  request.max_tokens = static_cast<int32_t>(std::clamp<int64_t>(room, 1, settings.max_tokens));
  request.sampling.temperature = static_cast<float>(settings.temperature);
  request.sampling.top_p = static_cast<float>(settings.top_p);
  request.sampling.top_k = settings.top_k;
  request.sampling.min_p = static_cast<float>(settings.min_p);
  request.sampling.presence_penalty = static_cast<float>(settings.presence_penalty);
  request.sampling.frequency_penalty = static_cast<float>(settings.frequency_penalty);
  request.sampling.repetition_penalty = static_cast<float>(settings.repetition_penalty);
  request.sampling.seed = static_cast<uint64_t>(settings.seed);
  request.ignore_eos = settings.ignore_eos;
  request.cache = cache;
  if (!settings.ignore_eos) request.stop_token_ids = tokenizer.eos_ids();
  return request;
}

const char* finish_text(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "end of text";
    case FinishReason::kLength: return "max-tokens";
    case FinishReason::kCancelled: return "interrupted";
    default: return "";
  }
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

}  // namespace

int run_complete(const Invocation& invocation) {
  const Settings& settings = invocation.settings();
  const Result<LoadedModel> loaded = load_model_and_tokenizer(settings);
  if (!loaded.ok()) return fail(loaded.status());
  const Tokenizer& tokenizer = *loaded->tokenizer;
  const std::string prompt = invocation.arguments.empty()
                                 ? std::string(std::istreambuf_iterator<char>(std::cin), {})
                                 : invocation.arguments[0];
  const Result<std::unique_ptr<Engine>> engine = Engine::start(loaded->model, settings.engine);
  if (!engine.ok()) return fail(engine.status());

  const InterruptGuard guard;
  StreamingDetokenizer text(tokenizer);
  const auto print = [](const std::string& piece) {
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
  };
  const Result<TokenRecord> finish = run_request(
      **engine,
      request_of(settings.complete, settings.engine.cache, tokenizer, prompt,
                 (*engine)->memory_plan().max_model_len),
      [&](const TokenRecord& record) { print(text.append(record.token)); }, InterruptGuard::is_interrupted);
  if (!finish.ok()) return fail(finish.status());
  print(text.finish() + "\n");
  print_figures(*finish);
  return InterruptGuard::is_interrupted() ? kExitInterrupted : kExitOk;
}

}  // namespace restkv

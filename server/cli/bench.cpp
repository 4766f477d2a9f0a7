// restkv bench latency MODEL: one sequence at a time through the engine, times as a client sees them.
//   ttft = submit to first token; itl = between two tokens; prefill tok/s = prompt / ttft;
//   decode tok/s = (answer - 1) / (last token - first token). A round's figures, then their medians over the rounds.
#include <algorithm>
#include <cstdio>

#include <nlohmann/json.hpp>

#include "server/cli/allocation_path.h"
#include "server/cli/bench_text.h"
#include "server/cli/model_loading.h"
#include "server/cli/terminal.h"
#include "server/cli/verbs.h"
#include "server/config/quantity.h"
#include "server/openai/probe_tokens.h"

namespace restkv {
namespace {

int32_t prompt_len_of(const Settings& settings) {
  return static_cast<int32_t>(settings.output.prompt_len.value_or(512));
}

struct RoundFigures {
  double ttft_ms = 0, itl_ms = 0, itl_p99_ms = 0, prefill_tok_s = 0, decode_tok_s = 0;
  double eviction_share = 0;  // of the time of decode
  int64_t cache_bytes = 0;    // pages, ring and tables of the sequence
};

template <class Field>
double median_of(const std::vector<RoundFigures>& rounds, Field field) {
  std::vector<double> values;
  for (const RoundFigures& round : rounds) values.push_back(round.*field);
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : 0.5 * (values[middle - 1] + values[middle]);
}

Result<RoundFigures> run_round(Engine& engine, std::vector<int32_t> prompt, const CacheSettings& cache,
                               const BenchSettings& settings) {
  const auto prompt_len = static_cast<double>(prompt.size());
  Request request;
  request.id = "bench";
  request.prompt = std::move(prompt);
  request.max_tokens = settings.output_len;
  request.sampling.temperature = 0;
  request.ignore_eos = true;
  request.cache = cache;
  std::vector<Clock::time_point> times;
  times.reserve(static_cast<size_t>(settings.output_len));
  const double eviction_before = engine.stats().eviction_decode_seconds;
  const Clock::time_point start = Clock::now();
  const Result<TokenRecord> finish = run_request(
      engine, std::move(request), [&](const TokenRecord&) { times.push_back(Clock::now()); },
      InterruptGuard::is_interrupted);
  if (!finish.ok()) return finish.status();
  if (finish->finish == FinishReason::kCancelled) return Status(StatusCode::kCancelled, "interrupted");
  if (static_cast<int32_t>(times.size()) != settings.output_len) {
    return Status(StatusCode::kInternal, "the answer has " + std::to_string(times.size()) +
                                             " tokens, expected " + std::to_string(settings.output_len));
  }

  const auto ms = [](Clock::duration duration) {
    return std::chrono::duration<double, std::milli>(duration).count();
  };
  std::vector<double> gaps;
  for (size_t i = 1; i < times.size(); ++i) gaps.push_back(ms(times[i] - times[i - 1]));
  RoundFigures figures;
  figures.cache_bytes = finish->counters.cache.bytes;
  figures.ttft_ms = ms(times.front() - start);
  figures.itl_ms = quantile(gaps, 0.5);
  figures.itl_p99_ms = quantile(gaps, 0.99);
  figures.prefill_tok_s = 1000.0 * prompt_len / figures.ttft_ms;
  const double decode_ms = ms(times.back() - times.front());
  figures.decode_tok_s = 1000.0 * static_cast<double>(gaps.size()) / decode_ms;
  figures.eviction_share = 1000.0 * (engine.stats().eviction_decode_seconds - eviction_before) / decode_ms;
  return figures;
}

void print_figures(const std::vector<RoundFigures>& rounds, const Engine& engine, const Settings& settings) {
  const double ttft = median_of(rounds, &RoundFigures::ttft_ms),
               itl = median_of(rounds, &RoundFigures::itl_ms);
  const double itl_p99 = median_of(rounds, &RoundFigures::itl_p99_ms);
  const double prefill = median_of(rounds, &RoundFigures::prefill_tok_s);
  const double decode = median_of(rounds, &RoundFigures::decode_tok_s);
  const double eviction = median_of(rounds, &RoundFigures::eviction_share);
  const CacheSettings& cache = engine.options().cache;
  const bool is_full = cache.policy == PolicyKind::kFull;
  const int32_t budget = budget_for_prompt(cache, prompt_len_of(settings));
  if (settings.output.json) {
    const nlohmann::ordered_json json = {
        {"ttft_ms", ttft},
        {"itl_ms", itl},
        {"itl_p99_ms", itl_p99},
        {"prefill_tok_s", prefill},
        {"decode_tok_s", decode},
        {"eviction_of_decode", eviction},
        {"peak_rss_bytes", peak_rss_bytes()},
        {"cache_bytes", rounds.back().cache_bytes},
        {"prompt_len", prompt_len_of(settings)},
        {"output_len", settings.bench.output_len},
        {"threads", engine.options().threads},
        {"rounds", settings.bench.rounds},
        {"policy", policy_name(cache.policy)},
        {"budget", is_full ? nlohmann::ordered_json() : nlohmann::ordered_json(budget)}};
    std::puts(json.dump(2).c_str());
    return;
  }
  const int32_t threads = engine.options().threads;
  std::printf(
      "prompt %d tokens, answer %d, %s, medians of %d rounds\n", prompt_len_of(settings),
      settings.bench.output_len,
      threads > 0 ? (std::to_string(threads) + " threads").c_str() : "a thread for each physical core",
      settings.bench.rounds);
  std::printf("  policy %s", std::string(policy_name(cache.policy)).c_str());
  if (!is_full) std::printf(", budget %d", budget);
  std::printf("\n");
  std::printf("  time to first token   %10.2f ms    prefill %8.1f tok/s\n", ttft, prefill);
  std::printf("  time between tokens   %10.2f ms    decode  %8.1f tok/s    99th percentile %.2f ms\n", itl,
              decode, itl_p99);
  if (!is_full) std::printf("  eviction              %10.1f %% of decode\n", 100.0 * eviction);
  std::printf("  peak resident memory  %10s\n", rounded_size_text(peak_rss_bytes()).c_str());
}

}  // namespace

int run_bench(const Invocation& invocation) {
  Settings settings = invocation.settings();
  if (invocation.arguments[0] == "serve") return run_bench_serve(invocation);
  if (invocation.arguments[0] == "throughput") return run_bench_throughput(invocation);
  if (invocation.arguments[0] != "latency") {
    return fail("unknown benchmark '" + invocation.arguments[0] + "' (latency, throughput, serve)",
                kExitUsage);
  }
  const Result<LoadedModel> loaded = load_model_and_tokenizer(settings);
  if (!loaded.ok()) return fail(loaded.status());
  if (Status status = apply_allocation(*loaded->model, settings); !status.ok()) return fail(status);
  const Result<std::vector<int32_t>> tokens = bench_tokens(settings.bench.prompt_file, *loaded->tokenizer);
  if (!tokens.ok()) return fail(tokens.status());
  const Result<std::unique_ptr<Engine>> engine = Engine::start(loaded->model, settings.engine);
  if (!engine.ok()) return fail(engine.status());

  CacheSettings cache = settings.engine.cache;
  if (Status status = tokenize_probe(cache, prompt_len_of(settings), *loaded->tokenizer); !status.ok())
    return fail(status);

  const InterruptGuard guard;
  std::vector<RoundFigures> rounds;
  for (int32_t round = 0; round <= settings.bench.rounds; ++round) {
    // Each round starts elsewhere in the text, so that no two prompts are the same.
    Result<RoundFigures> figures = run_round(
        **engine, bench_prompt(*tokens, int64_t{7} * round, prompt_len_of(settings)), cache, settings.bench);
    if (!figures.ok()) {
      return fail(figures.status().message(),
                  figures.status().code() == StatusCode::kCancelled ? kExitInterrupted : kExitFailure);
    }
    if (round > 0) rounds.push_back(*figures);  // the first one warms up
    if (stderr_is_terminal()) std::fprintf(stderr, "\rround %d of %d", round, settings.bench.rounds);
  }
  if (stderr_is_terminal()) std::fputs("\r\x1b[K", stderr);
  print_figures(rounds, **engine, settings);
  return kExitOk;
}

}  // namespace restkv

// restkv bench throughput MODEL: all requests at once through the engine of this process, as it batches them; no server, no
// client. Tokens a second over the whole run; times between tokens over all of it, and of decode steps alone: while every
// request was answering.
#include <algorithm>
#include <cstdio>

#include <nlohmann/json.hpp>

#include "server/cli/allocation_path.h"
#include "server/cli/bench_text.h"
#include "server/cli/model_loading.h"
#include "server/cli/terminal.h"
#include "server/cli/verbs.h"
#include "server/cli/wake_signal.h"
#include "server/config/quantity.h"
#include "server/openai/probe_tokens.h"

namespace restkv {
namespace {

struct Work {
  int64_t num_requests = 0, prompt_len = 0, output_len = 0;
  double seconds = 0;
  std::vector<double> gaps_ms = {};         // between two tokens of a request
  std::vector<double> decode_gaps_ms = {};  // those while every request was answering
};

// A request and when its tokens came.
struct OpenRequest {
  std::shared_ptr<RequestHandle> handle;
  std::vector<Clock::time_point> times;
};

void find_gaps(const std::vector<OpenRequest>& requests, Work& work) {
  Clock::time_point all_started = Clock::time_point::min(), first_ended = Clock::time_point::max();
  for (const OpenRequest& request : requests) {
    if (request.times.empty()) return;
    all_started = std::max(all_started, request.times.front());
    first_ended = std::min(first_ended, request.times.back());
  }
  for (const OpenRequest& request : requests) {
    for (size_t i = 1; i < request.times.size(); ++i) {
      const Clock::time_point from = request.times[i - 1], to = request.times[i];
      work.gaps_ms.push_back(std::chrono::duration<double, std::milli>(to - from).count());
      if (from >= all_started && to <= first_ended) work.decode_gaps_ms.push_back(work.gaps_ms.back());
    }
  }
}

// Submits everything and waits for the last token.
Status run_all(Engine& engine, const std::vector<int32_t>& tokens, const CacheSettings& cache, Work& work) {
  const auto signal = std::make_shared<WakeSignal>();
  std::vector<OpenRequest> requests;
  Status failure;
  const Clock::time_point begin = Clock::now();
  for (int64_t i = 0; i < work.num_requests && failure.ok(); ++i) {
    Request request;
    request.id = "bench-" + std::to_string(i);
    request.prompt = bench_prompt(tokens, 7 * i, work.prompt_len);
    request.max_tokens = static_cast<int32_t>(work.output_len);
    request.sampling.temperature = 0;
    request.ignore_eos = true;
    request.cache = cache;
    request.arrival = begin;
    const auto handle = std::make_shared<RequestHandle>(std::move(request), [signal] { signal->notify(); });
    failure = engine.submit(handle);
    if (!failure.ok()) break;
    OpenRequest& entry = requests.emplace_back();
    entry.handle = handle;
    entry.times.reserve(static_cast<size_t>(work.output_len));
  }
  std::vector<OpenRequest*> open;
  for (OpenRequest& request : requests) open.push_back(&request);
  const size_t total = open.size();
  std::vector<TokenRecord> records;
  while (!open.empty()) {
    signal->wait();
    const Clock::time_point now = Clock::now();
    if (failure.ok() && InterruptGuard::is_interrupted()) failure = {StatusCode::kCancelled, "interrupted"};
    std::erase_if(open, [&](OpenRequest* request) {
      if (!failure.ok()) request->handle->cancel();
      request->handle->stream.take(records);
      for (const TokenRecord& record : records) {
        if (record.kind == TokenRecord::Kind::kToken) request->times.push_back(now);
        if (record.kind != TokenRecord::Kind::kFinish) continue;
        if (record.finish == FinishReason::kError && failure.ok()) failure = record.error;
        return true;
      }
      return false;
    });
    if (stderr_is_terminal()) std::fprintf(stderr, "\r%zu of %zu requests", total - open.size(), total);
  }
  if (stderr_is_terminal()) std::fputs("\r\x1b[K", stderr);
  work.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  find_gaps(requests, work);
  return failure;
}

// null where there is nothing to tell: answers of one token, requests that waited for each other.
nlohmann::ordered_json quantile_json(const std::vector<double>& values, double q) {
  return values.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(quantile(values, q));
}

void print_gaps(const char* what, const std::vector<double>& gaps) {
  if (gaps.empty()) return;
  std::printf("  time between tokens   %10.2f ms    99th percentile %.2f ms    %s\n", quantile(gaps, 0.5),
              quantile(gaps, 0.99), what);
}

void print_figures(const Work& work, const Engine& engine, bool as_json) {
  const CacheSettings& cache = engine.options().cache;
  const bool is_full = cache.policy == PolicyKind::kFull;
  const int32_t budget = budget_for_prompt(cache, work.prompt_len);
  const auto requests = static_cast<double>(work.num_requests);
  const double prompt = requests * static_cast<double>(work.prompt_len) / work.seconds;
  const double output = requests * static_cast<double>(work.output_len) / work.seconds;
  if (as_json) {
    const nlohmann::ordered_json json = {
        {"requests", work.num_requests},
        {"seconds", work.seconds},
        {"requests_s", requests / work.seconds},
        {"prompt_tok_s", prompt},
        {"output_tok_s", output},
        {"total_tok_s", prompt + output},
        {"itl_ms", quantile_json(work.gaps_ms, 0.5)},
        {"itl_p99_ms", quantile_json(work.gaps_ms, 0.99)},
        {"decode_itl_ms", quantile_json(work.decode_gaps_ms, 0.5)},
        {"decode_itl_p99_ms", quantile_json(work.decode_gaps_ms, 0.99)},
        {"peak_rss_bytes", peak_rss_bytes()},
        {"prompt_len", work.prompt_len},
        {"output_len", work.output_len},
        {"max_num_seqs", engine.options().max_num_seqs},
        {"threads", engine.options().threads},
        {"policy", policy_name(cache.policy)},
        {"budget", is_full ? nlohmann::ordered_json() : nlohmann::ordered_json(budget)}};
    std::puts(json.dump(2).c_str());
    return;
  }
  std::printf("%lld requests, prompt %lld tokens, answer %lld, at most %d at once, policy %s",
              static_cast<long long>(work.num_requests), static_cast<long long>(work.prompt_len),
              static_cast<long long>(work.output_len), engine.options().max_num_seqs,
              std::string(policy_name(cache.policy)).c_str());
  if (!is_full) std::printf(", budget %d", budget);
  std::printf("\n  %.2f s    %.2f requests/s    %.1f tokens/s read    %.1f tokens/s generated\n",
              work.seconds, requests / work.seconds, prompt, output);
  print_gaps("over the whole run", work.gaps_ms);
  print_gaps("while every request was answering", work.decode_gaps_ms);
  std::printf("  peak resident memory %s\n", rounded_size_text(peak_rss_bytes()).c_str());
}

}  // namespace

int run_bench_throughput(const Invocation& invocation) {
  Settings settings = invocation.settings();
  Work work{.num_requests = settings.bench.num_prompts,
            .prompt_len = settings.output.prompt_len.value_or(512),
            .output_len = settings.bench.output_len};
  // Everything may wait at once.
  settings.engine.max_queue_requests =
      std::max(settings.engine.max_queue_requests, settings.bench.num_prompts);
  settings.engine.max_queue_tokens =
      std::max(settings.engine.max_queue_tokens, work.num_requests * (work.prompt_len + work.output_len));
  const Result<LoadedModel> loaded = load_model_and_tokenizer(settings);
  if (!loaded.ok()) return fail(loaded.status());
  if (Status status = apply_allocation(*loaded->model, settings); !status.ok()) return fail(status);
  const Result<std::vector<int32_t>> tokens = bench_tokens(settings.bench.prompt_file, *loaded->tokenizer);
  if (!tokens.ok()) return fail(tokens.status());
  const Result<std::unique_ptr<Engine>> engine = Engine::start(loaded->model, settings.engine);
  if (!engine.ok()) return fail(engine.status());
  CacheSettings cache = settings.engine.cache;
  if (Status status = tokenize_probe(cache, work.prompt_len, *loaded->tokenizer); !status.ok())
    return fail(status);

  const InterruptGuard guard;
  if (Status status = run_all(**engine, *tokens, cache, work); !status.ok()) {
    return fail(status.message(), status.code() == StatusCode::kCancelled ? kExitInterrupted : kExitFailure);
  }
  print_figures(work, **engine, settings.output.json);
  return kExitOk;
}

}  // namespace restkv

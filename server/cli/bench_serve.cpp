// restkv bench serve URL: load on a running server over HTTP, as its clients see it. Open loop (request_rate: arrivals do not
// wait for answers) or closed (max_concurrency clients, each sends when its last answer ended), or both. Keys and meanings of
// the figures are those of vLLM's benchmark:
//   ttft = first text - start; tpot = (last text - first text) / (tokens - 1); itl = between two chunks; e2el = end - start
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>

#include <nlohmann/json.hpp>

#include "server/cli/bench_text.h"
#include "server/cli/load_client.h"
#include "server/cli/terminal.h"
#include "server/cli/verbs.h"

namespace restkv {
namespace {

using std::chrono::steady_clock;

// As other clients of OpenAI's API take it; a flag would show it to everybody on the machine.
std::string_view api_key() {
  const char* key = std::getenv("OPENAI_API_KEY");
  return key ? key : "";
}

double milliseconds_between(steady_clock::time_point from, steady_clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

struct PlannedRequest {
  double at = 0;  // seconds after the start
  std::string body;
};

// Limits a request must keep to count as good; infinity: none.
struct Goodput {
  double ttft = std::numeric_limits<double>::infinity(), tpot = ttft, e2el = ttft;  // milliseconds
  bool is_set = false;
};

// "ttft:200 tpot:50" (or with commas).
Result<Goodput> parse_goodput(const std::string& text) {
  Goodput goodput;
  size_t begin = 0;
  while (begin < text.size()) {
    size_t end = text.find_first_of(" ,", begin);
    if (end == std::string::npos) end = text.size();
    const std::string part = text.substr(begin, end - begin);
    begin = end + 1;
    if (part.empty()) continue;
    const size_t colon = part.find(':');
    const std::string name = part.substr(0, colon);
    char* rest = nullptr;
    const double limit = colon == std::string::npos ? -1 : std::strtod(part.c_str() + colon + 1, &rest);
    double* field = name == "ttft"   ? &goodput.ttft
                    : name == "tpot" ? &goodput.tpot
                    : name == "e2el" ? &goodput.e2el
                                     : nullptr;
    if (!field || !(limit > 0) || *rest != '\0') {
      return invalid_argument(
          "--goodput: '" + part.substr(0, 32) +
          "' is not NAME:MILLISECONDS with a name of ttft, tpot, e2el (example: ttft:200 tpot:50)");
    }
    *field = limit;
    goodput.is_set = true;
  }
  return goodput;
}

// Length with the given mean, uniform within mean * (1 -/+ spread).
int32_t draw_length(int32_t mean, double spread, std::mt19937_64& random) {
  const auto low = std::max(1, static_cast<int32_t>(std::floor(mean * (1 - spread))));
  const auto high = std::max(low, static_cast<int32_t>(std::ceil(mean * (1 + spread))));
  return std::uniform_int_distribution<int32_t>(low, high)(random);
}

std::vector<PlannedRequest> plan(const Settings& all, const std::string& model) {
  const BenchSettings& settings = all.bench;
  const auto mean_prompt_len = static_cast<int32_t>(all.output.prompt_len.value_or(512));
  std::mt19937_64 random(static_cast<uint64_t>(settings.seed));
  const std::vector<std::string_view> words = bench_words();
  std::exponential_distribution<double> gap(1.0);
  std::vector<PlannedRequest> requests(static_cast<size_t>(settings.num_prompts));
  double at = 0;
  for (PlannedRequest& request : requests) {
    const int32_t prompt_len = draw_length(mean_prompt_len, settings.length_spread, random);
    const int32_t output_len = draw_length(settings.output_len, settings.length_spread, random);
    // Words of the text from anywhere; about one token each, the server says how many.
    std::string prompt = std::to_string(random() % 1'000'000'007) + ":";
    const size_t first = random() % words.size();
    for (int32_t i = 1; i < prompt_len; ++i) {
      prompt += ' ';
      prompt += words[(first + static_cast<size_t>(i)) % words.size()];
    }
    const nlohmann::json body = {{"model", model},
                                 {"prompt", prompt},
                                 {"max_tokens", output_len},
                                 {"temperature", 0},
                                 {"ignore_eos", true},
                                 {"stream", true},
                                 {"stream_options", {{"include_usage", true}}}};
    request.body = body.dump();
    request.at = at;
    if (settings.request_rate > 0)
      at += (settings.arrivals == "fixed" ? 1.0 : gap(random)) / settings.request_rate;
  }
  return requests;
}

std::vector<LoadAnswer> run(const ServerAddress& server, const BenchSettings& settings,
                            const std::vector<PlannedRequest>& requests) {
  std::vector<LoadAnswer> answers(requests.size());
  std::atomic<size_t> next{0}, done{0};
  const steady_clock::time_point start = steady_clock::now();
  const auto client = [&] {
    for (size_t i = next++; i < requests.size(); i = next++) {
      const auto due = start + std::chrono::duration_cast<steady_clock::duration>(
                                   std::chrono::duration<double>(requests[i].at));
      std::this_thread::sleep_until(due);
      if (InterruptGuard::is_interrupted()) return;
      answers[i] =
          stream_completion(server, "/v1/completions", requests[i].body, api_key(), settings.timeout);
      const size_t count = ++done;
      if (stderr_is_terminal()) std::fprintf(stderr, "\r%zu of %zu", count, requests.size());
    }
  };
  // In an open loop every request has a client that waits for its time; a closed one has max_concurrency of them.
  const size_t clients = settings.max_concurrency > 0
                             ? std::min(requests.size(), static_cast<size_t>(settings.max_concurrency))
                             : requests.size();
  std::vector<std::thread> threads;
  threads.reserve(clients);
  for (size_t i = 0; i < clients; ++i) threads.emplace_back(client);
  for (std::thread& thread : threads) thread.join();
  if (stderr_is_terminal()) std::fputs("\r\x1b[K", stderr);
  return answers;
}

double mean_of(const std::vector<double>& values) {
  return values.empty()
             ? 0
             : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}
// Linear between the neighbours, as numpy does it.
double percentile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double place = q / 100.0 * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(place);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (place - static_cast<double>(low));
}

void add_figures(nlohmann::ordered_json& json, const std::string& name, const std::vector<double>& values) {
  const double mean = mean_of(values);
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  json["mean_" + name + "_ms"] = mean;
  json["median_" + name + "_ms"] = percentile(values, 50);
  json["std_" + name + "_ms"] = values.empty() ? 0 : std::sqrt(squares / static_cast<double>(values.size()));
  json["p99_" + name + "_ms"] = percentile(values, 99);
}

nlohmann::ordered_json summarise(const std::vector<LoadAnswer>& answers, const BenchSettings& settings,
                                 const Goodput& goodput, const std::string& model) {
  std::vector<double> ttft, tpot, itl, e2el;
  int64_t input = 0, output = 0, completed = 0, good = 0;
  steady_clock::time_point first = steady_clock::time_point::max(), last{};
  for (const LoadAnswer& answer : answers) {
    if (answer.start == steady_clock::time_point{}) continue;  // never sent
    first = std::min(first, answer.start);
    last = std::max(last, answer.end);
    if (!answer.error.empty() || answer.chunks.empty()) continue;
    ++completed;
    input += answer.prompt_tokens;
    output += answer.completion_tokens;
    ttft.push_back(milliseconds_between(answer.start, answer.chunks.front()));
    e2el.push_back(milliseconds_between(answer.start, answer.end));
    double own_tpot = 0;
    if (answer.completion_tokens > 1) {
      own_tpot = milliseconds_between(answer.chunks.front(), answer.chunks.back()) /
                 static_cast<double>(answer.completion_tokens - 1);
      tpot.push_back(own_tpot);
    }
    for (size_t i = 1; i < answer.chunks.size(); ++i)
      itl.push_back(milliseconds_between(answer.chunks[i - 1], answer.chunks[i]));
    good += ttft.back() <= goodput.ttft && own_tpot <= goodput.tpot && e2el.back() <= goodput.e2el;
  }
  const double duration = completed > 0 ? std::max(1e-9, milliseconds_between(first, last) / 1000) : 0;
  const auto per_second = [&](int64_t count) {
    return duration > 0 ? static_cast<double>(count) / duration : 0;
  };
  nlohmann::ordered_json json;
  json["model_id"] = model;
  json["num_prompts"] = settings.num_prompts;
  if (settings.request_rate > 0) {
    json["request_rate"] = settings.request_rate;
  } else {
    json["request_rate"] = "inf";
  }
  json["max_concurrency"] = settings.max_concurrency > 0 ? nlohmann::ordered_json(settings.max_concurrency)
                                                         : nlohmann::ordered_json();
  json["duration"] = duration;
  json["completed"] = completed;
  json["failed"] = static_cast<int64_t>(answers.size()) - completed;
  json["total_input_tokens"] = input;
  json["total_output_tokens"] = output;
  json["request_throughput"] = per_second(completed);
  if (goodput.is_set) json["request_goodput"] = per_second(good);
  json["output_throughput"] = per_second(output);
  json["total_token_throughput"] = per_second(input + output);
  add_figures(json, "ttft", ttft);
  add_figures(json, "tpot", tpot);
  add_figures(json, "itl", itl);
  add_figures(json, "e2el", e2el);
  return json;
}

void print_table(const nlohmann::ordered_json& json) {
  const auto number = [&](const char* key) { return json.at(key).get<double>(); };
  std::printf("%.0f requests in %.2f s, %.0f failed\n", number("completed"), number("duration"),
              number("failed"));
  std::printf("  %.2f requests/s, %.1f output tokens/s, %.1f tokens/s in all\n", number("request_throughput"),
              number("output_throughput"), number("total_token_throughput"));
  if (json.contains("request_goodput"))
    std::printf("  %.2f requests/s within the goodput limits\n", number("request_goodput"));
  std::printf("  %-6s %10s %10s %10s   ms\n", "", "mean", "median", "p99");
  for (const std::string name : {"ttft", "tpot", "itl", "e2el"}) {
    std::printf("  %-6s %10.2f %10.2f %10.2f\n", name.c_str(), number(("mean_" + name + "_ms").c_str()),
                number(("median_" + name + "_ms").c_str()), number(("p99_" + name + "_ms").c_str()));
  }
}

}  // namespace

int run_bench_serve(const Invocation& invocation) {
  const Settings& settings = invocation.settings();
  const Result<ServerAddress> server = parse_server_url(settings.model.path);
  if (!server.ok()) return fail(server.status().message(), kExitUsage);
  const Result<Goodput> goodput = parse_goodput(settings.bench.goodput);
  if (!goodput.ok()) return fail(goodput.status().message(), kExitUsage);
  const Result<std::string> models = get_body(*server, "/v1/models", api_key());
  if (!models.ok()) return fail(models.status());
  const nlohmann::json list = nlohmann::json::parse(*models, nullptr, false);
  if (!list.is_object() || !list.contains("data") || !list["data"].is_array() || list["data"].empty() ||
      !list["data"][0].is_object() || !list["data"][0].contains("id") || !list["data"][0]["id"].is_string())
    return fail("/v1/models names no model");
  const std::string model = list["data"][0]["id"];

  const InterruptGuard guard;
  const std::vector<LoadAnswer> answers = run(*server, settings.bench, plan(settings, model));
  if (InterruptGuard::is_interrupted()) return fail("interrupted", kExitInterrupted);
  const nlohmann::ordered_json json = summarise(answers, settings.bench, *goodput, model);
  if (settings.output.json) {
    std::puts(json.dump(2).c_str());
  } else {
    print_table(json);
  }
  for (const LoadAnswer& answer : answers) {
    if (answer.error.empty()) continue;
    std::fprintf(stderr, "restkv: a request failed: %s\n", answer.error.c_str());
    return kExitFailure;
  }
  return kExitOk;
}

}  // namespace restkv

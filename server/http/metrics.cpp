// One family after the other: # HELP, # TYPE, then a line a label value.
#include "server/http/metrics.h"

#include <algorithm>
#include <cstdio>
#include <initializer_list>
#include <utility>

namespace restkv {
namespace {

std::string label_value(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

class MetricsWriter {
 public:
  MetricsWriter(std::string_view prefix, std::string_view model_name)
      : prefix_(prefix), labels_("model_name=\"" + label_value(model_name) + "\",engine=\"0\"") {}

  // `is_own`: a metric that vLLM does not have, always restkv_.
  void family(std::string_view name, std::string_view type, std::string_view help, bool is_own = false) {
    name_ = (is_own ? "restkv_" : prefix_) + std::string(name);
    out_ +=
        "# HELP " + name_ + " " + std::string(help) + "\n# TYPE " + name_ + " " + std::string(type) + "\n";
  }
  void value(const std::string& number) { line("", "", number); }
  void value(int64_t number) { value(std::to_string(number)); }
  void value(std::string_view label, std::string_view label_text, int64_t number) {
    line("", "," + std::string(label) + "=\"" + label_value(label_text) + "\"", std::to_string(number));
  }
  void value(std::string_view label, std::string_view label_text, double number) {
    line("", "," + std::string(label) + "=\"" + label_value(label_text) + "\"", number_text(number));
  }
  void single(std::string_view name, std::string_view type, std::string_view help, int64_t number,
              bool is_own = false) {
    family(name, type, help, is_own);
    value(number);
  }
  void histogram(const MetricInfo& info, const Histograms::One& one) {
    // vLLM's name of this one ends as a counter's does, which promtool refuses.
    const bool is_iterations = info.name == "iteration_tokens" && prefix_ == "vllm:";
    family(is_iterations ? "iteration_tokens_total" : info.name, "histogram", info.help);
    int64_t below = 0;
    for (size_t i = 0; i < info.bounds.size(); ++i) {
      below += one.counts[i];
      line("_bucket", ",le=\"" + number_text(info.bounds[i]) + "\"", std::to_string(below));
    }
    line("_bucket", ",le=\"+Inf\"", std::to_string(one.count));
    line("_sum", "", number_text(one.sum));
    line("_count", "", std::to_string(one.count));
  }
  // Count and sum alone.
  void summary(std::string_view name, std::string_view help, int64_t count, double sum) {
    family(name, "summary", help, true);
    line("_sum", "", number_text(sum));
    line("_count", "", std::to_string(count));
  }
  using Labels = std::initializer_list<std::pair<std::string_view, std::string_view>>;
  void value(Labels labels, int64_t number) {
    std::string more;
    for (const auto& [name, text] : labels)
      more += "," + std::string(name) + "=\"" + label_value(text) + "\"";
    line("", more, std::to_string(number));
  }
  void info(Labels labels) { value(labels, 1); }  // a gauge that is 1, for its labels
  std::string take() { return std::move(out_); }

 private:
  void line(std::string_view suffix, const std::string& more_labels, const std::string& number) {
    out_ += name_ + std::string(suffix) + "{" + labels_ + more_labels + "} " + number + "\n";
  }

  std::string prefix_, labels_, name_, out_;
};

}  // namespace

std::string metrics_text(const EngineStats& stats, const Histograms& histograms, const MetricsLabels& labels,
                         const ServerMetrics& server) {
  MetricsWriter out(labels.prefix, labels.model_name);
  out.single("num_requests_running", "gauge", "Sequences that run", stats.running);
  out.single("num_requests_waiting", "gauge", "Sequences that wait", stats.waiting);
  const double used = stats.pages_total > 0
                          ? static_cast<double>(stats.pages_owned) / static_cast<double>(stats.pages_total)
                          : 0.0;
  out.family("kv_cache_usage_perc", "gauge", "Share of the cache's pages that sequences own, 0 to 1");
  out.value(number_text(used));
  out.family("cache_config_info", "gauge", "The cache: entries of a page, pages");
  out.info({{"block_size", std::to_string(stats.page_slots)},
            {"num_gpu_blocks", std::to_string(stats.pages_total)}});
  out.single("num_preemptions_total", "counter", "Sequences that were preempted: none, by design", 0);
  out.single("prompt_tokens_total", "counter", "Prompt tokens of prompts that were prefilled",
             stats.prompt_tokens);
  out.single("generation_tokens_total", "counter", "Tokens generated", stats.generated_tokens);
  out.single("prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache",
             stats.prefix_queries);
  out.single("prefix_cache_hits_total", "counter", "Prompt tokens read from the prefix cache",
             stats.prefix_hits);
  out.single("corrupted_requests_total", "counter", "Sequences whose logits were not numbers",
             stats.nan_requests);
  out.family("request_success_total", "counter", "Sequences that ended, by reason");
  out.value("finished_reason", "stop", stats.finished_stop);
  out.value("finished_reason", "length", stats.finished_length);
  out.value("finished_reason", "abort", stats.finished_cancelled);
  out.value("finished_reason", "error", stats.finished_error);
  for (size_t i = 0; i < kNumMetrics; ++i) {
    const auto metric = static_cast<Metric>(i);
    out.histogram(metric_info(metric), histograms.of(metric));
    // vLLM has two names: the limit as it was sent and as it holds; here they are one.
    if (metric_info(metric).name == "request_max_num_generation_tokens") {
      MetricInfo sent = metric_info(metric);
      sent.name = "request_params_max_tokens";
      out.histogram(sent, histograms.of(metric));
    }
  }
  out.family("kv_entries_evicted_total", "counter", "Cache entries evicted, over all layers and KV heads",
             true);
  for (size_t policy = 0; policy < kNumPolicies; ++policy)
    out.value("policy", policy_name(static_cast<PolicyKind>(policy)), stats.evicted_by_policy[policy]);
  out.single("kv_evictions_total", "counter", "Cuts of one layer of one sequence that evicted entries",
             stats.eviction_events, true);
  out.single("steps_ahead_total", "counter",
             "Steps enqueued on a card while the one before them was in flight", stats.steps_ahead, true);
  out.family(
      "kv_eviction_seconds_total", "counter",
      "Time in observing, scoring, smoothing, selecting and compacting, of prompts and between steps (on a "
      "card: what the host takes to enqueue it)",
      true);
  out.value("phase", "prefill", stats.eviction_prefill_seconds);
  out.value("phase", "decode", stats.eviction_decode_seconds);
  const double rows = static_cast<double>(std::max<int64_t>(1, stats.ended_rows));
  out.family("kv_kept_ratio", "gauge", "Share of their cache entries that sequences held when they ended",
             true);
  out.value(number_text(1.0 - static_cast<double>(stats.ended_rows_gone) / rows));
  out.single("kv_nan_rows_total", "counter",
             "Scores that were not finite, of heads that gave up entries; such entries stay", stats.nan_rows,
             true);
  out.family("kv_pages", "gauge", "Pages of the cache", true);
  out.value("state", "free", stats.pages_free);
  out.value("state", "owned", stats.pages_owned);
  out.value("state", "cached", stats.pages_cached);
  out.single("http_connections", "gauge", "Open HTTP connections", server.http_connections, true);
  out.single("http_body_bytes", "gauge", "Bytes that HTTP request bodies of more than 64 KiB take",
             server.body_bytes, true);
  out.family("responses_total", "counter",
             "Answers by protocol, path and code (of streams: that of their beginning); 499: the client went "
             "or was cancelled",
             true);
  for (const ResponseCounts::Row& row : server.responses)
    out.value({{"protocol", row.protocol}, {"path", row.path}, {"code", row.code}}, row.count);
  out.single("sse_slow_clients_total", "counter",
             "Streams ended because their client took nothing for write_timeout", server.slow_clients, true);
  out.summary("tokenize_seconds", "Time in parsing, rendering and tokenizing requests", server.tokenized,
              server.tokenize_seconds);
  out.family("memory_bytes", "gauge", "What the memory plan gives to each use", true);
  out.value("kind", "weights", server.memory.weights);
  out.value("kind", "workspace", server.memory.workspace);
  out.value("kind", "scratch", server.memory.scratch);
  out.value("kind", "cache", server.memory.pool);
  out.family("build_info", "gauge", "This program", true);
  out.info({{"version", std::string(server.version)}, {"commit", std::string(server.commit)}});
  return out.take();
}

}  // namespace restkv

// One family after the other: # HELP, # TYPE, then a line a label value.
#include "server/http/metrics.h"

#include <algorithm>
#include <cstdio>

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

std::string shortest(double number) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", number);
  return text;
}

class MetricsWriter {
 public:
  explicit MetricsWriter(std::string_view model_name)
      : labels_("model_name=\"" + label_value(model_name) + "\"") {}

  void family(std::string_view name, std::string_view type, std::string_view help) {
    name_ = "restkv_" + std::string(name);
    out_ +=
        "# HELP " + name_ + " " + std::string(help) + "\n# TYPE " + name_ + " " + std::string(type) + "\n";
  }
  void value(std::string_view number) { out_ += name_ + "{" + labels_ + "} " + std::string(number) + "\n"; }
  void value(int64_t number) { value(std::to_string(number)); }
  void value(std::string_view label, std::string_view label_text, int64_t number) {
    out_ += name_ + "{" + labels_ + "," + std::string(label) + "=\"" + std::string(label_text) + "\"} " +
            std::to_string(number) + "\n";
  }
  void value(std::string_view label, std::string_view label_text, double number) {
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", number);
    out_ += name_ + "{" + labels_ + "," + std::string(label) + "=\"" + std::string(label_text) + "\"} " +
            text + "\n";
  }
  void single(std::string_view name, std::string_view type, std::string_view help, int64_t number) {
    family(name, type, help);
    value(number);
  }
  std::string take() { return std::move(out_); }

 private:
  std::string labels_, name_, out_;
};

}  // namespace

std::string metrics_text(const EngineStats& stats, std::string_view model_name) {
  MetricsWriter out(model_name);
  out.single("num_requests_running", "gauge", "Sequences that run", stats.running);
  out.single("num_requests_waiting", "gauge", "Sequences that wait", stats.waiting);
  const double used = stats.pages_total > 0
                          ? static_cast<double>(stats.pages_owned) / static_cast<double>(stats.pages_total)
                          : 0.0;
  out.family("kv_cache_usage_perc", "gauge", "Share of the cache's pages that sequences own, 0 to 1");
  out.value(shortest(used));
  out.single("prompt_tokens_total", "counter", "Prompt tokens computed", stats.prompt_tokens);
  out.single("generation_tokens_total", "counter", "Tokens generated", stats.generated_tokens);
  out.family("request_success_total", "counter", "Sequences that ended, by reason");
  out.value("finished_reason", "stop", stats.finished_stop);
  out.value("finished_reason", "length", stats.finished_length);
  out.value("finished_reason", "abort", stats.finished_cancelled);
  out.value("finished_reason", "error", stats.finished_error);
  out.family("kv_entries_evicted_total", "counter", "Cache entries evicted, over all layers and KV heads");
  for (size_t policy = 0; policy < kNumPolicies; ++policy)
    out.value("policy", policy_name(static_cast<PolicyKind>(policy)), stats.evicted_by_policy[policy]);
  out.single("kv_evictions_total", "counter", "Cuts of one layer of one sequence that evicted entries",
             stats.eviction_events);
  out.family("kv_eviction_seconds_total", "counter",
             "Time in observing, scoring, smoothing, selecting and compacting, of prompts and between steps");
  out.value("phase", "prefill", stats.eviction_prefill_seconds);
  out.value("phase", "decode", stats.eviction_decode_seconds);
  const double rows = static_cast<double>(std::max<int64_t>(1, stats.ended_rows));
  out.family("kv_kept_ratio", "gauge", "Share of their cache entries that sequences held when they ended");
  out.value(shortest(1.0 - static_cast<double>(stats.ended_rows_gone) / rows));
  out.single("kv_nan_rows_total", "counter", "Scores that were not finite; such entries stay",
             stats.nan_rows);
  out.family("kv_pages", "gauge", "Pages of the cache");
  out.value("state", "free", stats.pages_free);
  out.value("state", "owned", stats.pages_owned);
  return out.take();
}

}  // namespace restkv

// The text that Prometheus reads.
#include "server/http/metrics.h"

#include <gtest/gtest.h>

namespace restkv {
namespace {

TEST(Metrics, NamesLabelsAndValues) {
  EngineStats stats;
  stats.running = 2;
  stats.pages_total = 8;
  stats.pages_free = 6;
  stats.pages_owned = 2;
  stats.finished_length = 5;
  stats.evicted_by_policy[static_cast<size_t>(PolicyKind::kSnapkv)] = 77;
  Histograms histograms;
  histograms.add(Metric::kInterToken, 0.02, 3);
  histograms.add(Metric::kInterToken, 1000);
  const ServerMetrics server{
      .http_connections = 3, .slow_clients = 1, .tokenized = 9, .tokenize_seconds = 0.5, .version = "1.2"};
  const std::string text = metrics_text(stats, histograms, {"restkv_", "a\"b"}, server);
  for (const char* line : {
           "\n# TYPE restkv_num_requests_waiting gauge\n",
           "restkv_num_requests_running{model_name=\"a\\\"b\",engine=\"0\"} 2\n",
           "restkv_kv_cache_usage_perc{model_name=\"a\\\"b\",engine=\"0\"} 0.25\n",
           "restkv_request_success_total{model_name=\"a\\\"b\",engine=\"0\",finished_reason=\"length\"} 5\n",
           "restkv_kv_entries_evicted_total{model_name=\"a\\\"b\",engine=\"0\",policy=\"snapkv\"} 77\n",
           "restkv_kv_entries_evicted_total{model_name=\"a\\\"b\",engine=\"0\",policy=\"restkv\"} 0\n",
           "restkv_inter_token_latency_seconds_bucket{model_name=\"a\\\"b\",engine=\"0\",le=\"0.01\"} 0\n",
           "restkv_inter_token_latency_seconds_bucket{model_name=\"a\\\"b\",engine=\"0\",le=\"0.025\"} 3\n",
           "restkv_inter_token_latency_seconds_bucket{model_name=\"a\\\"b\",engine=\"0\",le=\"80\"} 3\n",
           "restkv_inter_token_latency_seconds_bucket{model_name=\"a\\\"b\",engine=\"0\",le=\"+Inf\"} 4\n",
           "restkv_inter_token_latency_seconds_sum{model_name=\"a\\\"b\",engine=\"0\"} 1000.06\n",
           "restkv_kv_pages{model_name=\"a\\\"b\",engine=\"0\",state=\"free\"} 6\n",
           "restkv_http_connections{model_name=\"a\\\"b\",engine=\"0\"} 3\n",
           "restkv_sse_slow_clients_total{model_name=\"a\\\"b\",engine=\"0\"} 1\n",
           "restkv_tokenize_seconds_sum{model_name=\"a\\\"b\",engine=\"0\"} 0.5\n",
           "restkv_build_info{model_name=\"a\\\"b\",engine=\"0\",version=\"1.2\",commit=\"\"} 1\n",
       }) {
    EXPECT_NE(text.find(line), std::string::npos) << line << text;
  }
}

TEST(Metrics, OwnNamesKeepTheirPrefix) {
  const std::string text = metrics_text({}, {}, {"vllm:", "m"});
  for (const char* line :
       {"\n# TYPE vllm:num_requests_waiting gauge\n", "\n# TYPE vllm:iteration_tokens_total histogram\n",
        "\n# TYPE restkv_kv_pages gauge\n", "\n# TYPE restkv_kv_evictions_total counter\n",
        "\n# TYPE vllm:request_params_max_tokens histogram\n"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << text;
  }
}

}  // namespace
}  // namespace restkv

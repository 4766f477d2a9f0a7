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
  const std::string text = metrics_text(stats, "a\"b");
  for (const char* line : {
           "\n# TYPE restkv_num_requests_waiting gauge\n",
           "restkv_num_requests_running{model_name=\"a\\\"b\"} 2\n",
           "restkv_kv_cache_usage_perc{model_name=\"a\\\"b\"} 0.25\n",
           "restkv_request_success_total{model_name=\"a\\\"b\",finished_reason=\"length\"} 5\n",
           "restkv_kv_entries_evicted_total{model_name=\"a\\\"b\",policy=\"snapkv\"} 77\n",
           "restkv_kv_entries_evicted_total{model_name=\"a\\\"b\",policy=\"restkv\"} 0\n",
           "restkv_kv_pages{model_name=\"a\\\"b\",state=\"free\"} 6\n",
       }) {
    EXPECT_NE(text.find(line), std::string::npos) << line << text;
  }
}

}  // namespace
}  // namespace restkv

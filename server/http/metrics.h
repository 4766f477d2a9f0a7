// GET /metrics: the engine's counters in Prometheus's text format. Names, labels and buckets are vLLM's where it has the
// metric, under the prefix metrics.prefix; our own are always restkv_.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "server/serving/response_counts.h"

namespace restkv {

inline constexpr std::string_view kMetricsType = "text/plain; version=0.0.4; charset=utf-8";

struct MetricsLabels {
  std::string_view prefix;  // "restkv_", "vllm:"
  std::string_view model_name;
};

// What the server knows beside its engine.
struct ServerMetrics {
  int64_t http_connections = 0;
  int64_t body_bytes = 0;    // of request bodies, held
  int64_t slow_clients = 0;  // dropped since the start
  std::vector<ResponseCounts::Row> responses = {};
  int64_t tokenized = 0;  // requests parsed, rendered and tokenized
  double tokenize_seconds = 0;
  MemoryPlan memory = {};
  std::string_view version = {}, commit = {};
};

std::string metrics_text(const EngineStats& stats, const Histograms& histograms, const MetricsLabels& labels,
                         const ServerMetrics& server = {});

}  // namespace restkv

// GET /metrics: the engine's counters in Prometheus's text format. Names, labels and buckets are vLLM's where it has the
// metric, under the prefix metrics.prefix; our own are always restkv_.
#pragma once

#include <string>
#include <string_view>

#include "engine/engine.h"

namespace restkv {

inline constexpr std::string_view kMetricsType = "text/plain; version=0.0.4; charset=utf-8";

struct MetricsLabels {
  std::string_view prefix;  // "restkv_", "vllm:"
  std::string_view model_name;
};

std::string metrics_text(const EngineStats& stats, const Histograms& histograms, const MetricsLabels& labels);

}  // namespace restkv

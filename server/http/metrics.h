// GET /metrics: the engine's counters in Prometheus's text format. Names are vLLM's where it has one, with the prefix
// restkv_; the family kv_* is our own.
#pragma once

#include <string>
#include <string_view>

#include "engine/engine.h"

namespace restkv {

inline constexpr std::string_view kMetricsType = "text/plain; version=0.0.4; charset=utf-8";

std::string metrics_text(const EngineStats& stats, std::string_view model_name);

}  // namespace restkv

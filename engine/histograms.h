// What requests took, as Prometheus counts it: buckets by upper bound, a sum and a count. Names, bounds and help texts are
// vLLM's where it has the metric. Written by the engine thread, read as copies.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace restkv {

enum class Metric : uint8_t {
  kTimeToFirstToken,
  kInterToken,
  kTimePerOutputToken,
  kLatency,
  kQueueTime,
  kInferenceTime,
  kPrefillTime,
  kDecodeTime,
  kPromptTokens,
  kGenerationTokens,
  kMaxTokens,
  kNumChoices,
  kIterationTokens,
  kComputedTokens,
};
inline constexpr size_t kNumMetrics = 14;

struct MetricInfo {
  std::string_view name;  // without the prefix
  std::string_view help;
  std::span<const double> bounds;  // ascending upper bounds; +Inf is not among them
};
const MetricInfo& metric_info(Metric metric);

class Histograms {
 public:
  struct One {
    std::vector<int64_t> counts;  // by bucket, the last is +Inf's; not summed up
    double sum = 0;
    int64_t count = 0;
  };

  Histograms();
  void add(Metric metric, double value, int64_t times = 1);
  const One& of(Metric metric) const { return all_[static_cast<size_t>(metric)]; }

 private:
  std::array<One, kNumMetrics> all_;
};

}  // namespace restkv

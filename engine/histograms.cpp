// The bounds of vLLM's buckets.
#include "engine/histograms.h"

#include <algorithm>

namespace restkv {
namespace {

constexpr double kFirstToken[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                  1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
constexpr double kToken[] = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                             .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
constexpr double kRequest[] = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                               30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
constexpr double kCounts[] = {1,    2,    5,     10,    20,    50,     100,    200,    500,    1000,
                              2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000, 1000000};
constexpr double kIterations[] = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
constexpr double kChoices[] = {1, 2, 5, 10, 20};

constexpr MetricInfo kInfos[kNumMetrics] = {
    {"time_to_first_token_seconds", "From arrival to a sequence's first token", kFirstToken},
    {"inter_token_latency_seconds", "Between two tokens of a sequence", kToken},
    {"request_time_per_output_token_seconds", "Mean time of a sequence's tokens but the first", kToken},
    {"e2e_request_latency_seconds", "From arrival to the end of a sequence", kRequest},
    {"request_queue_time_seconds", "From arrival to admission", kRequest},
    {"request_inference_time_seconds", "From admission to the end", kRequest},
    {"request_prefill_time_seconds", "From admission to the first token", kRequest},
    {"request_decode_time_seconds", "From the first token to the end", kRequest},
    {"request_prompt_tokens", "Prompt tokens of a sequence", kCounts},
    {"request_generation_tokens", "Tokens of an answer", kCounts},
    {"request_max_num_generation_tokens", "The limit max_tokens of a sequence", kCounts},
    {"request_params_n", "Choices of a request", kChoices},
    {"iteration_tokens", "Tokens of one step or prefill unit", kIterations},
    {"request_prefill_kv_computed_tokens", "Prompt tokens that were not read from the prefix cache", kCounts},
};

}  // namespace

const MetricInfo& metric_info(Metric metric) { return kInfos[static_cast<size_t>(metric)]; }

Histograms::Histograms() {
  for (size_t i = 0; i < kNumMetrics; ++i) all_[i].counts.assign(kInfos[i].bounds.size() + 1, 0);
}

void Histograms::add(Metric metric, double value, int64_t times) {
  const std::span<const double> bounds = metric_info(metric).bounds;
  One& one = all_[static_cast<size_t>(metric)];
  const auto bucket = std::lower_bound(bounds.begin(), bounds.end(), value) - bounds.begin();
  one.counts[static_cast<size_t>(bucket)] += times;
  one.sum += value * static_cast<double>(times);
  one.count += times;
}

}  // namespace restkv

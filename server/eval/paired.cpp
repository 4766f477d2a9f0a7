#include "server/eval/paired.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

namespace restkv {

double mean_of(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double quantile_of(std::span<const float> values, double q) {
  std::vector<float> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  const auto rank = static_cast<size_t>(q * static_cast<double>(sorted.size()));
  return sorted[std::min(rank, sorted.size() - 1)];
}

PairedRatio paired_ratio(std::span<const double> x, std::span<const double> base) {
  constexpr int kResamples = 4000;
  PairedRatio out;
  for (size_t i = 0; i < x.size(); ++i) out.wins += x[i] < base[i];
  const double base_mean = mean_of(base);
  if (!(base_mean > 0)) {
    out.ratio = out.low = out.high = std::numeric_limits<double>::quiet_NaN();
    return out;
  }
  out.ratio = mean_of(x) / base_mean;
  std::mt19937 random(20250607);
  std::vector<double> ratios;
  while (ratios.size() < kResamples) {
    double sum_x = 0, sum_base = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const size_t pick = random() % x.size();
      sum_x += x[pick];
      sum_base += base[pick];
    }
    ratios.push_back(sum_base > 0 ? sum_x / sum_base : std::numeric_limits<double>::infinity());
  }
  std::sort(ratios.begin(), ratios.end());
  out.low = ratios[kResamples / 40];
  out.high = ratios[kResamples - 1 - kResamples / 40];
  return out;
}

}  // namespace restkv

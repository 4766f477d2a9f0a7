// Paired comparison of two settings over the same texts: ratio of means with a bootstrap interval over texts, and wins.
#pragma once

#include <cstdint>
#include <span>

namespace restkv {

struct PairedRatio {
  double ratio = 0;          // mean(x) / mean(base)
  double low = 0, high = 0;  // 95 %
  int32_t wins = 0;          // texts with x < base
};

// x, base [n], n >= 1, >= 0, in the same order of texts. 4,000 resamples, always the same ones. All NaN where mean(base) is 0.
PairedRatio paired_ratio(std::span<const double> x, std::span<const double> base);

double mean_of(std::span<const double> values);
// Nearest rank; sorts a copy.
double quantile_of(std::span<const float> values, double q);

}  // namespace restkv

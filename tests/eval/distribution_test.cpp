// Softmax statistics and paired ratios against plain f64.
#include "server/eval/distribution.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "server/eval/paired.h"

namespace restkv {
namespace {

TEST(Distribution, AgreesWithPlainDoubles) {
  std::mt19937 random(5);
  for (const int64_t vocab : {1, 7, 16, 1023, 49152}) {
    for (const float spread : {0.01f, 3.0f, 40.0f}) {
      std::normal_distribution<float> normal(0.0f, spread);
      std::vector<float> l(static_cast<size_t>(vocab)), m(l.size()), p(l.size());
      for (size_t v = 0; v < l.size(); ++v) {
        l[v] = normal(random);
        m[v] = l[v] + 0.1f * normal(random);
      }
      const auto lse = [](const std::vector<float>& x) {
        double sum = 0;
        for (const float value : x) sum += std::exp(static_cast<double>(value));
        return std::log(sum);
      };
      const double lse_l = lse(l), lse_m = lse(m);
      double kl = 0;
      for (size_t v = 0; v < l.size(); ++v) {
        const double lp = static_cast<double>(l[v]) - lse_l, lq = static_cast<double>(m[v]) - lse_m;
        kl += std::exp(lp) * (lp - lq);
      }
      const Distribution dl = distribution_of(l.data(), vocab), dm = distribution_of(m.data(), vocab);
      EXPECT_NEAR(dl.lse, lse_l, 1e-5);
      EXPECT_EQ(l[static_cast<size_t>(dl.best)], *std::max_element(l.begin(), l.end()));
      probabilities_of(l.data(), dl, p);
      double sum = 0;
      for (const float value : p) sum += static_cast<double>(value);
      EXPECT_NEAR(sum, 1.0, 2e-5);
      EXPECT_NEAR(divergence(p, l.data(), dl, m.data(), dm), kl, 1e-4 + 1e-4 * kl) << vocab << " " << spread;
      EXPECT_EQ(divergence(p, l.data(), dl, l.data(), dl), 0.0);
    }
  }
}

TEST(Paired, RatioWinsAndInterval) {
  const std::vector<double> base = {1, 2, 3, 4}, half = {0.5, 1, 1.5, 2}, mixed = {2, 1, 3, 3};
  const PairedRatio exact = paired_ratio(half, base);
  EXPECT_DOUBLE_EQ(exact.ratio, 0.5);
  EXPECT_DOUBLE_EQ(exact.low, 0.5);  // the ratio is the same in every text, however they are drawn
  EXPECT_DOUBLE_EQ(exact.high, 0.5);
  EXPECT_EQ(exact.wins, 4);
  const PairedRatio wide = paired_ratio(mixed, base);
  EXPECT_DOUBLE_EQ(wide.ratio, 0.9);
  EXPECT_LT(wide.low, 0.9);
  EXPECT_GT(wide.high, 0.9);
  EXPECT_EQ(wide.wins, 2);
  EXPECT_TRUE(std::isnan(paired_ratio(base, std::vector<double>(4, 0.0)).ratio));
}

TEST(Paired, QuantileIsTheNearestRank) {
  std::vector<float> values;
  for (int i = 99; i >= 0; --i) values.push_back(static_cast<float>(i));
  EXPECT_EQ(quantile_of(values, 0.95), 95);
  EXPECT_EQ(quantile_of(values, 1.0), 99);
  EXPECT_EQ(quantile_of(std::vector<float>{4}, 0.95), 4);
}

}  // namespace
}  // namespace restkv

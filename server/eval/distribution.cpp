#include "server/eval/distribution.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

namespace restkv {
namespace {

constexpr int64_t kLanes = 16;    // independent sums
constexpr int64_t kBlock = 1024;  // f32 sums are folded into f64 after so many values

// e^x for x <= 0, relative error below 3e-7; 0 below -87.
inline float exp_of(float x) {
  x = std::max(x, -87.0f);
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const float whole = x * 1.44269504f + kRound - kRound;
  const float f = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;  // |f| <= ln(2)/2
  const float e =
      1.0f + f * (1.0f + f * (0.5f + f * (0.166666657f +
                                          f * (0.0416657962f + f * (0.00833345205f + f * 0.00139319850f)))));
  return e * std::bit_cast<float>((static_cast<int32_t>(whole) + 127) << 23);
}

// sum over v of term(v), v in [0, count).
template <class Term>
double sum_of(int64_t count, Term term) {
  double total = 0;
  int64_t v = 0;
  while (count - v >= kLanes) {
    std::array<float, kLanes> sums{};
    const int64_t end = std::min(v + kBlock, v + (count - v) / kLanes * kLanes);
    for (; v < end; v += kLanes)
      for (int64_t lane = 0; lane < kLanes; ++lane) sums[static_cast<size_t>(lane)] += term(v + lane);
    for (const float sum : sums) total += static_cast<double>(sum);
  }
  for (; v < count; ++v) total += static_cast<double>(term(v));
  return total;
}

}  // namespace

Distribution distribution_of(const float* logits, int64_t vocab) {
  Distribution d;
  d.best = static_cast<int32_t>(std::max_element(logits, logits + vocab) - logits);
  const float most = logits[d.best];
  d.lse = static_cast<double>(most) +
          std::log(sum_of(vocab, [&](int64_t v) { return exp_of(logits[v] - most); }));
  return d;
}

void probabilities_of(const float* logits, const Distribution& d, std::span<float> p) {
  const auto lse = static_cast<float>(d.lse);
  for (size_t v = 0; v < p.size(); ++v) p[v] = exp_of(std::min(0.0f, logits[v] - lse));
}

double divergence(std::span<const float> p, const float* l, const Distribution& dl, const float* m,
                  const Distribution& dm) {
  const double difference = sum_of(static_cast<int64_t>(p.size()),
                                   [&](int64_t v) { return p[static_cast<size_t>(v)] * (l[v] - m[v]); });
  return std::max(0.0, difference - dl.lse + dm.lse);
}

}  // namespace restkv

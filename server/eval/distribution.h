// Softmax statistics of one row of logits [V], and the divergence of two rows. Written so that compilers vectorise it: a
// run of `eval` looks at tens of thousands of rows of fifty thousand values.
#pragma once

#include <cstdint>
#include <span>

namespace restkv {

struct Distribution {
  double lse = 0;    // log-sum-exp
  int32_t best = 0;  // first index of the largest logit
};
Distribution distribution_of(const float* logits, int64_t vocab);

// p [V] = softmax(logits).
void probabilities_of(const float* logits, const Distribution& d, std::span<float> p);

// KL(p || q) in nats: sum_v p_v (l_v - m_v) - lse(l) + lse(m), with l, m the logits of p and q; at least 0.
double divergence(std::span<const float> p, const float* l, const Distribution& dl, const float* m,
                  const Distribution& dm);

}  // namespace restkv

// What the tests of observe and score share: runs of both ops, and the comparison with the f64 formulas of EvictionCase.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "tests/eviction/eviction_case.h"

namespace restkv::testing {

// Instantiated in score_test.cpp.
class Score : public EvictionOps {};

// Whether the column's activations may be of 16 bits.
inline bool is_device_column(size_t index) { return device_op_cases()[index].is_device; }
// What rows may be of there, with queries of that type.
inline std::vector<DType> dtypes_of_column(size_t index) {
  if (is_device_column(index)) return {DType::kF32, DType::kBF16, DType::kF16};
  return {DType::kF32};
}

inline std::vector<float> projection_of(Backend& backend, const EvictionCase& c) {
  const int64_t cols = int64_t{c.shape_.heads} * c.shape_.dim;
  std::vector<float> r(static_cast<size_t>(cols * c.shape_.dim));
  backend.factor_projection({.weight = dense(c.w_o.data(), DType::kF32, c.shape_.model_dim, cols),
                             .num_heads = c.shape_.heads,
                             .out = dense(r.data(), DType::kF32, cols, c.shape_.dim)});
  return r;
}

inline std::vector<float> run_score(Backend& backend, const EvictionCase& c, const ScoreSpec& spec,
                                    int32_t window_rows = 0, bool in_output_space = true,
                                    const QuerySource* queries = nullptr, const ProtectedRows& protect = {},
                                    const int32_t* keep = nullptr) {
  const std::vector<float> projection = in_output_space ? projection_of(backend, c) : std::vector<float>();
  const ConstTensor r =
      in_output_space ? dense(projection.data(), DType::kF32, c.shape_.heads * c.shape_.dim, c.shape_.dim)
                      : ConstTensor{};
  const auto run = [&](bool with_logits) {
    StepMemory memory(c.attention(), spec.kind, c.shape_.queries, c.shape_.rows, with_logits);
    const QuerySource q = queries ? *queries : c.queries();
    const ObserveItem observe{.rows = c.source(),
                              .queries = q,
                              .projection = r,
                              .window_rows = window_rows,
                              .keep = keep,
                              .out = memory.observation};
    if (needs_observation(spec.kind))
      backend.observe({.shape = c.attention(), .spec = spec, .items = {&observe, 1}, .cache = c.cache});
    const ScoreItem score{.rows = c.source(),
                          .queries = q,
                          .projection = r,
                          .window_rows = window_rows,
                          .protect = protect,
                          .keep = keep,
                          .observation = memory.observation,
                          .out = memory.out};
    backend.score({.shape = c.attention(), .spec = spec, .items = {&score, 1}, .cache = c.cache});
    return memory.scores;
  };
  const std::vector<float> scores = run(false);
  if (backend.keeps_logits() && spec.kind == ScoreKind::kIndicatorQuery) {
    const std::vector<float> from_logits = run(true);
    EXPECT_EQ(std::memcmp(scores.data(), from_logits.data(), scores.size() * 4), 0)
        << "kept logits change bits";
  }
  return scores;
}

inline void expect_close(const std::vector<float>& got, const std::vector<std::vector<double>>& want,
                         double tolerance) {
  size_t i = 0;
  for (const auto& head : want) {
    const double largest = *std::max_element(head.begin(), head.end());
    for (const double expected : head) {
      EXPECT_NEAR(static_cast<double>(got[i]), expected, tolerance * (std::abs(expected) + 1e-3 * largest))
          << "value " << i;
      ++i;
    }
  }
}

}  // namespace restkv::testing

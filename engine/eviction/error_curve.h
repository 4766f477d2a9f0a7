// Budgets from error curves (restkv.md sections 5 and 9). For the rows of one KV head in the order in which they would be kept,
//   E_t(B)^2 = || sum_g 1/A_tg(B) sum_{j < B} a_tgj W_g (v_j - o_tg) ||^2 / || y_t ||^2,   A_tg(B) = sum_{j < B} a_tgj
// is the exact relative error that query t's attention output has when the first B rows stay, from one running sum. Its
// mean over queries and texts is the curve; rows go where the convex hulls of the curves fall most steeply.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/eviction/budget.h"

namespace restkv {

// Numbers of rows B at which curves are sampled: from `first`, about a tenth apart, up to `last`.
std::vector<int32_t> curve_grid(int32_t first, int32_t last);

// What one KV head and one query contribute.
struct ErrorCurveInput {
  int32_t group = 1, head_dim = 0;   // G, D
  std::span<const int32_t> order;    // [N] rows, kept first; rows the query does not see have attention 0
  std::span<const float> attention;  // [G, N]
  std::span<const float> outputs;    // [G, D] o_tg
  const float* values = nullptr;     // [N, >= D] rows v_stride apart
  int64_t v_stride = 0;
  std::span<const float> triangle;  // [G*D, G*D]: R transposed, ||R x|| = ||sum_g W_g x_g||
};
// error [grid] += E(B)^2 * weight for every B of the grid that is at most N; beyond it the error is 0.
void add_error_curve(const ErrorCurveInput& input, std::span<const int32_t> grid, double weight,
                     std::span<double> error);

// Rows of every head: `floor` and multiples of `unit` above it, together at most heads * budget, less than a unit a head
// below it; along the lower convex hulls of the curves, steepest descent first. curves [heads][grid], linear in between.
std::vector<double> allocate_rows(const std::vector<std::vector<double>>& curves,
                                  std::span<const int32_t> grid, int32_t budget, int32_t floor, int32_t unit);

}  // namespace restkv

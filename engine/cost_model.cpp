// Non-negative least squares by coordinate descent on the 3 x 3 normal equations.
#include "engine/cost_model.h"

#include <algorithm>

namespace restkv {
namespace {

constexpr double kForget = 0.98;  // weight of the past at each sample: about the last fifty count
constexpr double kRidge = 1e-9;   // keeps a feature that never varied at nothing
constexpr int kSweeps = 12;       // each starts from the last solution

}  // namespace

void LinearFit::add(const Features& features, double seconds) {
  Features x;
  for (size_t i = 0; i < x.size(); ++i) x[i] = features[i] / scale_[i];
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t j = 0; j < x.size(); ++j) products_[i][j] = kForget * products_[i][j] + x[i] * x[j];
    targets_[i] = kForget * targets_[i] + x[i] * seconds;
  }
  solve();
}

void LinearFit::solve() {
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    for (size_t i = 0; i < weights_.size(); ++i) {
      double rest = targets_[i];
      for (size_t j = 0; j < weights_.size(); ++j)
        if (j != i) rest -= products_[i][j] * weights_[j];
      weights_[i] = std::max(0.0, rest / (products_[i][i] + kRidge));
    }
  }
}

double LinearFit::predict(const Features& features) const {
  double seconds = 0;
  for (size_t i = 0; i < features.size(); ++i) seconds += weights_[i] * features[i] / scale_[i];
  return seconds;
}

double CostModel::prompt_seconds(int64_t first_row, int64_t prompt_len, int64_t max_rows) const {
  const int64_t rows = prompt_len - first_row;
  if (rows <= 0) return 0;
  const int64_t units = (rows + max_rows - 1) / max_rows;
  // The units' parts that grow with rows add up to those of one unit; each has its constant.
  const double whole = unit_seconds(first_row, rows);
  const double constant = unit_seconds(0, 0);
  return num_layers_ * (whole + constant * static_cast<double>(units - 1));
}

int32_t CostModel::unit_rows(int64_t first_row, int32_t max_rows, double seconds) const {
  int32_t low = 1, high = std::max(1, max_rows / kRowTile);  // in tiles; `low` always goes
  while (low < high) {
    const int32_t middle = (low + high + 1) / 2;
    if (unit_seconds(first_row, int64_t{middle} * kRowTile) <= seconds) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return std::min(max_rows, low * kRowTile);
}

}  // namespace restkv

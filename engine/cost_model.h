// How long a step and a prefill unit will take: linear models, fitted to a few measured ones at start-up and kept up to
// date by every later one. They only decide how the work is cut and who comes first; no answer depends on them.
//   decode step          seconds = a + b * rows + c * entries read       (entries: of all rows of one head, summed)
//   unit of one layer    seconds = a + b * rows + c * rows * mean entries before a row
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace restkv {

// seconds = x . features, x >= 0: least squares over the samples, old ones count less and less.
class LinearFit {
 public:
  using Features = std::array<double, 3>;
  // Features are divided by `scale` first, so that all count alike.
  explicit LinearFit(const Features& scale) : scale_(scale) {}
  void add(const Features& features, double seconds);
  double predict(const Features& features) const;

 private:
  void solve();

  Features scale_;
  std::array<Features, 3> products_{};  // sum of feature products
  Features targets_{};                  // sum of feature x seconds
  Features weights_{};                  // x
};

class CostModel {
 public:
  // Units that ran one behind the other and were waited for together.
  struct Units {
    LinearFit::Features features{};  // summed
    int32_t count = 0;
    void add(int64_t first_row, int64_t rows) {
      const LinearFit::Features one = unit_features(first_row, rows);
      for (size_t i = 0; i < one.size(); ++i) features[i] += one[i];
      ++count;
    }
  };

  // Rows of a unit are a multiple of this, but for the last: the products' tile.
  static constexpr int32_t kRowTile = 16;

  explicit CostModel(int32_t num_layers) : num_layers_(num_layers) {}

  void observe_step(int64_t rows, int64_t entries, double seconds) {
    step_.add(step_features(rows, entries), seconds);
  }
  void observe_unit(int64_t first_row, int64_t rows, double seconds) {
    unit_.add(unit_features(first_row, rows), seconds);
  }
  // As one unit that is their mean.
  void observe_units(const Units& units, double seconds) {
    LinearFit::Features mean = units.features;
    for (double& feature : mean) feature /= units.count;
    unit_.add(mean, seconds / units.count);
  }

  // 0 while nothing was measured.
  double step_seconds(int64_t rows, int64_t entries) const {
    return step_.predict(step_features(rows, entries));
  }
  // Rows [first_row, first_row + rows) of a prompt in one layer.
  double unit_seconds(int64_t first_row, int64_t rows) const {
    return unit_.predict(unit_features(first_row, rows));
  }
  // All layers of the rows [first_row, prompt_len), cut into units of at most `max_rows`.
  double prompt_seconds(int64_t first_row, int64_t prompt_len, int64_t max_rows) const;
  // Most rows from first_row on, at most `max_rows`, that one layer computes within `seconds`; at least a tile.
  int32_t unit_rows(int64_t first_row, int32_t max_rows, double seconds) const;

 private:
  static LinearFit::Features step_features(int64_t rows, int64_t entries) {
    return {1.0, static_cast<double>(rows), static_cast<double>(entries)};
  }
  static LinearFit::Features unit_features(int64_t first_row, int64_t rows) {
    const auto n = static_cast<double>(rows);
    return {1.0, n, n * (static_cast<double>(first_row) + 0.5 * n)};
  }

  int32_t num_layers_;
  LinearFit step_{{1.0, 16.0, 16384.0}};
  LinearFit unit_{{1.0, 64.0, 64.0 * 2048.0}};
};

}  // namespace restkv

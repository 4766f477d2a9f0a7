#include "engine/eviction/error_curve.h"

#include <algorithm>

namespace restkv {
namespace {

struct Point {
  int32_t units = 0;
  double error = 0;
};

double error_at(std::span<const double> curve, std::span<const int32_t> grid, double rows) {
  if (rows <= grid.front()) return curve.front();
  if (rows >= grid.back()) return curve.back();
  const auto i = static_cast<size_t>(std::upper_bound(grid.begin(), grid.end(), rows) - grid.begin());
  const double t = (rows - grid[i - 1]) / (grid[i] - grid[i - 1]);
  return curve[i - 1] + t * (curve[i] - curve[i - 1]);
}

// Of the errors at floor, floor + unit, ... up to the grid's last.
std::vector<Point> lower_hull(std::span<const double> curve, std::span<const int32_t> grid, int32_t floor,
                              int32_t unit) {
  std::vector<Point> hull;
  const auto slope = [](const Point& a, const Point& b) { return (b.error - a.error) / (b.units - a.units); };
  for (int32_t units = 0; units == 0 || floor + units * unit <= grid.back(); ++units) {
    const Point point = {units, error_at(curve, grid, floor + units * unit)};
    while (hull.size() >= 2 && slope(hull[hull.size() - 2], hull.back()) >= slope(hull.back(), point))
      hull.pop_back();
    hull.push_back(point);
  }
  return hull;
}

}  // namespace

std::vector<int32_t> curve_grid(int32_t first, int32_t last) {
  std::vector<int32_t> grid;
  for (int32_t b = first; b < last; b = std::max(b + 4, b + b / 10)) grid.push_back(b);
  grid.push_back(last);
  return grid;
}

void add_error_curve(const ErrorCurveInput& in, std::span<const int32_t> grid, double weight,
                     std::span<double> error) {
  const auto n = in.order.size();
  const auto d = static_cast<size_t>(in.head_dim);
  const auto g = static_cast<size_t>(in.group);
  const size_t cols = g * d;
  std::vector<double> sum(cols), mass(g);  // sum_{j < B} a (v_j - o), A(B)
  std::vector<float> x(cols);
  std::vector<float> y(cols);
  size_t taken = 0;
  for (size_t point = 0; point < grid.size(); ++point) {
    const size_t rows = std::min(n, static_cast<size_t>(grid[point]));
    if (rows == n) return;
    for (; taken < rows; ++taken) {
      const auto row = static_cast<size_t>(in.order[taken]);
      const float* v = in.values + static_cast<int64_t>(row) * in.v_stride;
      for (size_t head = 0; head < g; ++head) {
        const float a = in.attention[head * n + row];
        if (a == 0.0f) continue;
        mass[head] += static_cast<double>(a);
        const float* o = in.outputs.data() + head * d;
        for (size_t e = 0; e < d; ++e) sum[head * d + e] += static_cast<double>(a * (v[e] - o[e]));
      }
    }
    for (size_t head = 0; head < g; ++head)
      for (size_t e = 0; e < d; ++e)
        x[head * d + e] = static_cast<float>(sum[head * d + e] / std::max(mass[head], 1e-30));
    std::fill(y.begin(), y.end(), 0.0f);
    for (size_t i = 0; i < cols; ++i) {
      const float* row = in.triangle.data() + i * cols;  // column i of R: rows 0 .. i
      const float xi = x[i];
      for (size_t e = 0; e <= i; ++e) y[e] += xi * row[e];
    }
    double squares = 0;
    for (const float value : y) squares += static_cast<double>(value) * static_cast<double>(value);
    error[point] += weight * squares;
  }
}

std::vector<double> allocate_rows(const std::vector<std::vector<double>>& curves,
                                  std::span<const int32_t> grid, int32_t budget, int32_t floor,
                                  int32_t unit) {
  struct Segment {
    double slope;
    size_t head;
    int32_t units;
  };
  std::vector<double> rows(curves.size(), floor);
  std::vector<Segment> segments;
  for (size_t head = 0; head < curves.size(); ++head) {
    const std::vector<Point> hull = lower_hull(curves[head], grid, floor, unit);
    for (size_t i = 1; i < hull.size(); ++i) {
      const int32_t width = hull[i].units - hull[i - 1].units;
      segments.push_back({(hull[i].error - hull[i - 1].error) / width, head, width});
    }
  }
  std::stable_sort(segments.begin(), segments.end(),
                   [](const Segment& a, const Segment& b) { return a.slope < b.slope; });
  int64_t left = static_cast<int64_t>(curves.size()) * (budget - floor) / unit;
  for (const Segment& segment : segments) {
    const auto taken = static_cast<int32_t>(std::min<int64_t>(left, segment.units));
    rows[segment.head] += taken * unit;
    left -= taken;
  }
  // The curves end before the rows do: all alike.
  const auto heads = static_cast<int64_t>(rows.size());
  for (double& r : rows) r += static_cast<double>(left / heads * unit);
  return rows;
}

}  // namespace restkv

// Allocation of rows to heads, and what a cut leaves of them.
#include "engine/eviction/budget.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/eviction/policy.h"

namespace restkv {
namespace {

// Rows of the table at a budget C up to its largest, linear between its budgets; below the smallest: in proportion.
std::vector<double> table_rows(const AllocationTable& table, int32_t budget, size_t heads) {
  CHECK(!table.budgets.empty() && table.budgets.size() == table.rows.size())
      << table.budgets.size() << " budgets";
  const auto upper = static_cast<size_t>(
      std::lower_bound(table.budgets.begin(), table.budgets.end(), budget) - table.budgets.begin());
  std::vector<double> rows = table.rows[upper];
  CHECK(rows.size() == heads) << rows.size() << " heads in the table, " << heads << " in the model";
  if (upper == 0) {
    for (double& r : rows) r *= static_cast<double>(budget) / table.budgets[0];
    return rows;
  }
  const double t = static_cast<double>(budget - table.budgets[upper - 1]) /
                   static_cast<double>(table.budgets[upper] - table.budgets[upper - 1]);
  for (size_t i = 0; i < heads; ++i) rows[i] = t * rows[i] + (1.0 - t) * table.rows[upper - 1][i];
  return rows;
}

// Fewest rows of a head: what is protected and cut must fit.
int32_t head_floor(const CacheSettings& settings, int32_t budget) {
  if (settings.allocation == Allocation::kCalibrated) return calibrated_floor(settings, budget);
  const int32_t cut = settings.decode == DecodeMode::kGrow ? 1 : stride_of(settings, budget);
  return std::min(protected_rows(settings, budget) + cut, budget);
}

}  // namespace

int32_t calibrated_floor(const CacheSettings& settings, int32_t budget) {
  // restkv.md section 5: fewer rows starve a head, and under a hard budget it never recovers.
  constexpr int32_t kGrowFloor = 40;
  constexpr double kEvictShare = 0.7;  // of C
  const int32_t fixed = protected_rows(settings, budget);
  const bool is_grow = settings.decode == DecodeMode::kGrow;
  const int32_t least = is_grow ? std::max(kGrowFloor, fixed) : fixed + stride_of(settings, budget);
  const int32_t units = (least + kCalibratedUnit - 1) / kCalibratedUnit;
  const int32_t share = is_grow ? 0 : static_cast<int32_t>(kEvictShare * budget / kCalibratedUnit);
  return std::min(budget, kCalibratedUnit * std::max(units, share));
}

int32_t share_floor(const CacheSettings& settings, int32_t budget, bool is_grow) {
  const int32_t cut = is_grow ? 1 : stride_of(settings, budget);
  return std::min(budget, std::max((budget + 4) / 5, protected_rows(settings, budget) + cut));
}

std::vector<int32_t> round_to_sum(std::span<const double> x, int32_t floor, int64_t sum, int32_t unit) {
  const size_t n = x.size();
  const int64_t extra = (sum - static_cast<int64_t>(n) * floor) / unit;
  CHECK(sum >= static_cast<int64_t>(n) * floor) << n << " heads of at least " << floor << " rows in " << sum;
  std::vector<double> above(n);
  for (size_t i = 0; i < n; ++i) above[i] = std::max(0.0, x[i] - floor);
  double total = std::accumulate(above.begin(), above.end(), 0.0);
  if (!(total > 0.0)) {
    std::fill(above.begin(), above.end(), 1.0);
    total = static_cast<double>(n);
  }
  std::vector<int32_t> rows(n, floor);
  std::vector<std::pair<double, size_t>> remainders(n);
  int64_t given = 0;
  for (size_t i = 0; i < n; ++i) {
    const double share = above[i] / total * static_cast<double>(extra);
    const auto whole = static_cast<int64_t>(share);
    rows[i] += unit * static_cast<int32_t>(whole);
    given += whole;
    remainders[i] = {share - static_cast<double>(whole), i};
  }
  std::stable_sort(remainders.begin(), remainders.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  for (size_t i = 0; given < extra; i = (i + 1) % n, ++given) rows[remainders[i].second] += unit;
  return rows;
}

int32_t pyramid_rows(int32_t free_rows, int32_t window, int64_t prompt_len, int32_t layer,
                     int32_t num_layers) {
  constexpr int32_t kBeta = 20;
  if (prompt_len < 2 * int64_t{free_rows}) return free_rows;  // a short prompt: all layers alike
  int64_t least = free_rows / kBeta;
  int64_t most = 2 * int64_t{free_rows} - least;
  if (most >= prompt_len - window) {
    most = prompt_len - window;
    least = 2 * int64_t{free_rows} - most;
  }
  const int64_t step = num_layers > 1 ? (most - least) / (num_layers - 1) : 0;
  return static_cast<int32_t>(most - layer * step);
}

SequenceBudget plan_budget(const CacheSettings& settings, const CacheDimensions& dims,
                           const AllocationTable* table, int64_t prompt_len, int64_t max_tokens) {
  SequenceBudget out;
  out.budget = budget_for_prompt(settings, prompt_len);
  out.stride = stride_of(settings, out.budget);
  out.is_exact = settings.policy == PolicyKind::kFull || prompt_len + max_tokens <= out.budget;
  const auto num_kv_heads = static_cast<size_t>(dims.num_kv_heads);
  const auto window_of = [&](int32_t layer) {
    return dims.window.empty() ? 0 : dims.window[static_cast<size_t>(layer)];
  };
  int32_t full_layers = 0;
  for (int32_t layer = 0; layer < dims.num_layers; ++layer) full_layers += window_of(layer) == 0;

  const bool is_calibrated = !out.is_exact && settings.allocation == Allocation::kCalibrated;
  CHECK(!is_calibrated || table != nullptr) << "no allocation table";
  const bool is_in_table = is_calibrated && out.budget <= table->budgets.back();  // above it: uniform
  // What every full-attention layer and head would get, before rounding.
  std::vector<double> shares;
  if (is_in_table) {
    const std::vector<double> all =
        table_rows(*table, out.budget, static_cast<size_t>(dims.num_layers) * num_kv_heads);
    for (int32_t layer = 0; layer < dims.num_layers; ++layer) {
      if (window_of(layer) != 0) continue;
      const auto first = all.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(layer) * num_kv_heads);
      shares.insert(shares.end(), first, first + dims.num_kv_heads);
    }
  } else if (!out.is_exact && settings.allocation == Allocation::kPyramid) {
    const int32_t free_rows = std::max(0, out.budget - settings.window);
    for (int32_t i = 0; i < full_layers; ++i) {
      const double rows =
          settings.window + pyramid_rows(free_rows, settings.window, prompt_len, i, full_layers);
      shares.insert(shares.end(), num_kv_heads, std::max(0.0, rows));
    }
  } else {
    shares.assign(static_cast<size_t>(full_layers) * num_kv_heads, out.budget);
  }
  const int64_t sum = static_cast<int64_t>(shares.size()) * out.budget;
  const std::vector<int32_t> rows = shares.empty() ? std::vector<int32_t>{}
                                    : out.is_exact ? std::vector<int32_t>(shares.size(), out.budget)
                                                   : round_to_sum(shares, head_floor(settings, out.budget),
                                                                  sum, is_in_table ? kCalibratedUnit : 1);
  size_t next = 0;
  for (int32_t layer = 0; layer < dims.num_layers; ++layer) {
    const int32_t window = window_of(layer);
    for (size_t h = 0; h < num_kv_heads; ++h) {
      out.c_lh.push_back(window == 0
                             ? rows[next++]
                             : std::min<int32_t>(out.budget, static_cast<int32_t>(std::min<int64_t>(
                                                                 int64_t{window} + out.stride, INT32_MAX))));
    }
  }
  return out;
}

int32_t rows_after_cut(int32_t c_lh, int32_t stride, int64_t layer, int64_t num_layers, bool is_first) {
  const auto stagger = static_cast<int32_t>(layer * stride / num_layers);
  return c_lh - stride + (is_first ? stagger : 0);
}

}  // namespace restkv

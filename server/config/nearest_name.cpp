// Optimal string alignment distance, three rows of the table: O(n m) with n, m <= 64.
#include "server/config/nearest_name.h"

#include <algorithm>
#include <array>
#include <cstddef>

namespace restkv {
namespace {

constexpr size_t kMaxName = 64;

size_t edit_distance(std::string_view a, std::string_view b) {
  using Row = std::array<size_t, kMaxName + 1>;
  Row before_last{}, last{}, row{};
  for (size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before_last[j - 2] + 1);
      }
    }
    before_last = last;
    last = row;
  }
  return last[b.size()];
}

}  // namespace

std::string_view nearest_name(std::string_view name, std::span<const std::string_view> known) {
  if (name.empty() || name.size() > kMaxName) return {};
  size_t best_distance = std::max<size_t>(1, name.size() / 3) + 1;
  std::string_view best;
  for (const std::string_view candidate : known) {
    if (candidate.size() > kMaxName) continue;
    const size_t distance = edit_distance(name, candidate);
    if (distance < best_distance && distance < candidate.size()) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

std::string suggestion(std::string_view name, std::span<const std::string_view> known,
                       std::string_view prefix) {
  const std::string_view best = nearest_name(name, known);
  if (best.empty()) return {};
  return " (did you mean '" + std::string(prefix) + std::string(best) + "'?)";
}

}  // namespace restkv

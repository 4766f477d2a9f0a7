// Decimal text to 64-bit integers without floating point: value = (whole + fraction / 10^digits) * unit,
// exactly.
#include "server/config/quantity.h"

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <optional>

#include "server/config/logging.h"

namespace restkv {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// What stands before the unit: "-1.25" of "-1.25k".
struct Decimal {
  bool negative = false;
  int64_t whole = 0;
  int64_t fraction = 0;  // in units of 1 / scale
  int64_t scale = 1;     // 10^digits
};

// Takes a decimal number off the front of `text`. At most six digits behind the point, so that fraction *
// unit fits.
std::optional<Decimal> take_decimal(std::string_view& text) {
  Decimal number;
  if (!text.empty() && text.front() == '-') {
    number.negative = true;
    text.remove_prefix(1);
  }
  if (text.empty() || !is_digit(text.front())) return std::nullopt;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number.whole);
  if (error != std::errc{}) return std::nullopt;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  if (text.size() >= 2 && text.front() == '.' && is_digit(text[1])) {
    text.remove_prefix(1);
    for (; !text.empty() && is_digit(text.front()); text.remove_prefix(1)) {
      if (number.scale >= 1'000'000) return std::nullopt;
      number.fraction = number.fraction * 10 + (text.front() - '0');
      number.scale *= 10;
    }
  }
  return number;
}

// number * unit if that is a whole number of 64 bits.
std::optional<int64_t> scaled(const Decimal& number, int64_t unit) {
  int64_t value = 0, fraction = 0;
  if (__builtin_mul_overflow(number.whole, unit, &value)) return std::nullopt;
  if (__builtin_mul_overflow(number.fraction, unit, &fraction)) return std::nullopt;
  if (fraction % number.scale != 0) return std::nullopt;
  if (__builtin_add_overflow(value, fraction / number.scale, &value)) return std::nullopt;
  return number.negative ? -value : value;
}

std::optional<int64_t> count_unit(std::string_view suffix) {
  constexpr std::string_view kLower = "kmgt", kUpper = "KMGT";
  if (suffix.empty()) return 1;
  const bool is_binary_pair = suffix.size() == 2 && suffix[1] == 'i';
  if (suffix.size() != 1 && !is_binary_pair) return std::nullopt;
  if (const size_t i = kUpper.find(suffix[0]); i != std::string_view::npos)
    return int64_t{1} << (10 * (i + 1));
  const size_t i = kLower.find(suffix[0]);
  if (i == std::string_view::npos || is_binary_pair) return std::nullopt;
  int64_t unit = 1000;
  for (size_t n = 0; n < i; ++n) unit *= 1000;
  return unit;
}

std::optional<int64_t> size_unit(std::string_view suffix) {
  if (suffix.empty() || suffix.back() != 'B') return count_unit(suffix);
  suffix.remove_suffix(1);
  if (suffix.size() != 1) return count_unit(suffix);  // B, KiB
  const char letter =
      suffix[0] >= 'A' && suffix[0] <= 'Z' ? static_cast<char>(suffix[0] - 'A' + 'a') : suffix[0];
  return count_unit({&letter, 1});  // GB: 10^9
}

std::optional<int64_t> parse_with_unit(std::string_view text,
                                       std::optional<int64_t> (*unit_of)(std::string_view)) {
  const std::optional<Decimal> number = take_decimal(text);
  if (!number) return std::nullopt;
  const bool has_space = text.starts_with(' ');
  while (text.starts_with(' ')) text.remove_prefix(1);
  if (has_space && text.empty()) return std::nullopt;  // a space stands before a unit alone
  const std::optional<int64_t> unit = unit_of(text);
  return unit ? scaled(*number, *unit) : std::nullopt;
}

struct DurationUnit {
  std::string_view name;
  int64_t milliseconds;
};
constexpr std::array<DurationUnit, 5> kDurationUnits = {
    {{"d", 86'400'000}, {"h", 3'600'000}, {"m", 60'000}, {"s", 1000}, {"ms", 1}}};

Status not_a(std::string_view what, std::string_view text, std::string_view examples) {
  return invalid_argument(quote_text(text) + " is not " + std::string(what) +
                          " (examples: " + std::string(examples) + ")");
}

}  // namespace

Result<int64_t> parse_count(std::string_view text) {
  if (const auto value = parse_with_unit(text, count_unit)) return *value;
  return not_a("a whole number", text, "4096, 32k, 32K");
}

Result<int64_t> parse_size(std::string_view text) {
  if (const auto value = parse_with_unit(text, size_unit)) return *value;
  return not_a("a size", text, "65536, 8MiB, 16GiB");
}

Result<std::chrono::milliseconds> parse_duration(std::string_view text) {
  const Status error = not_a("a duration", text, "500ms, 30s, 10m, 1h");
  int64_t total = 0;
  bool is_first = true;
  while (is_first || !text.empty()) {
    const std::optional<Decimal> number = take_decimal(text);
    if (!number || number->negative) return error;
    size_t letters = 0;
    while (letters < text.size() && !is_digit(text[letters])) ++letters;
    const std::string_view name = text.substr(0, letters);
    text.remove_prefix(letters);
    int64_t unit = is_first && name.empty() && text.empty() ? 1000 : 0;
    for (const DurationUnit& known : kDurationUnits) {
      if (name == known.name) unit = known.milliseconds;
    }
    if (unit == 0) return error;
    const std::optional<int64_t> part = scaled(*number, unit);
    if (!part || __builtin_add_overflow(total, *part, &total)) return error;
    is_first = false;
  }
  return std::chrono::milliseconds(total);
}

Result<double> parse_number(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size() || !std::isfinite(value)) {
    return not_a("a number", text, "0, 0.5, 1e-3");
  }
  return value;
}

std::string size_text(int64_t bytes) {
  constexpr std::array<std::string_view, 4> kUnits = {"TiB", "GiB", "MiB", "KiB"};
  for (size_t i = 0; i < kUnits.size(); ++i) {
    const int64_t unit = int64_t{1} << (40 - 10 * i);
    if (bytes != 0 && bytes % unit == 0) return std::to_string(bytes / unit) + std::string(kUnits[i]);
  }
  return std::to_string(bytes);
}

std::string duration_text(std::chrono::milliseconds duration) {
  const int64_t total = duration.count();
  if (total == 0) return "0s";
  for (const DurationUnit& unit : kDurationUnits) {
    if (total % unit.milliseconds == 0)
      return std::to_string(total / unit.milliseconds) + std::string(unit.name);
  }
  return std::to_string(total) + "ms";
}

std::string shortest_text(double number) {
  std::array<char, 32> buffer;  // the shortest decimal form of a double has at most 24 characters
  const auto [end, error] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), number);
  CHECK(error == std::errc{});
  return {buffer.data(), end};
}

std::string rounded_size_text(int64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; std::abs(value) >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  std::array<char, 48> buffer;
  const int decimals = unit == 0 || std::abs(value) >= 99.95 ? 0 : 1;
  std::snprintf(buffer.data(), buffer.size(), "%.*f %s", decimals, value, kUnits[unit]);
  return buffer.data();
}

}  // namespace restkv

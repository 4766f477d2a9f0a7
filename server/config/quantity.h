// Numbers as people write them. Suffixes of counts are vLLM's: k, m, g, t are powers of 1000, K, M, G, T (and
// Ki, Mi, Gi, Ti) of 1024: 32k = 32,000, 32K = 32,768. Sizes take a B behind: 16GiB and 16G are 16 * 2^30,
// 16GB is 16 * 10^9. Durations: 500ms, 30s, 10m, 1h, 2d, 1m30s; a bare number is seconds.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/base/status.h"

namespace restkv {

// Errors say what was found and give examples; what does not fit 64 bits or is not whole ("1.5") is an error.
Result<int64_t> parse_count(std::string_view text);
Result<int64_t> parse_size(std::string_view text);
Result<std::chrono::milliseconds> parse_duration(std::string_view text);
Result<double> parse_number(std::string_view text);  // finite

// Short and exact, read back by the parsers: "16KiB", "1000", "10m", "0s", "0.5".
std::string size_text(int64_t bytes);
std::string duration_text(std::chrono::milliseconds duration);
std::string shortest_text(double number);

// About three digits for people: "93.8 MiB".
std::string rounded_size_text(int64_t bytes);

}  // namespace restkv

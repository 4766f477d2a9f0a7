// What the benchmarks share: the prose that prompts are cut from, the process's memory, quantiles.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"

namespace restkv {

std::string_view bench_text();
std::vector<std::string_view> bench_words();

// Tokens of the text in `file`, or of the built-in one. Error: it cannot be read or has none.
Result<std::vector<int32_t>> bench_tokens(const std::string& file, const Tokenizer& tokenizer);
// `count` tokens, read in a circle from `first`.
std::vector<int32_t> bench_prompt(const std::vector<int32_t>& tokens, int64_t first, int64_t count);
// Highest resident size of this process so far.
int64_t peak_rss_bytes();
// The value below which a part q of them lies, by nearest rank; `values` not empty.
double quantile(std::vector<double> values, double q);

}  // namespace restkv

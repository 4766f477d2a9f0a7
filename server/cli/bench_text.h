// What the benchmarks share: the prose that prompts are cut from, the process's memory.
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

}  // namespace restkv

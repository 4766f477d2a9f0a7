// The prose that benchmark prompts are cut from.
#pragma once

#include <string_view>
#include <vector>

namespace restkv {

std::string_view bench_text();
std::vector<std::string_view> bench_words();

}  // namespace restkv

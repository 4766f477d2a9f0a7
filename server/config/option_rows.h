// The option table's rows, a file for each part; options.cpp puts them together.
#pragma once

#include <vector>

#include "server/config/options.h"

namespace restkv {

std::vector<Option> server_option_rows();
std::vector<Option> engine_option_rows();
std::vector<Option> verb_option_rows();
std::vector<Option> cache_option_rows();  // what requests leave open, and their ceilings

inline constexpr uint32_t kAnswer = kComplete | kChat;
inline constexpr uint32_t kWithEngine =
    kServe | kComplete | kChat | kLogits | kInspect | kBench | kEval | kCalibrate;
inline constexpr double kMaxRows = 1 << 20;  // of a (layer, KV head), as in cache_settings.cpp
inline constexpr double kKiB = 1024, kGiB = 1024.0 * 1024.0 * 1024.0;
inline constexpr double kHour = 3'600'000, kDay = 24 * kHour;  // milliseconds

}  // namespace restkv

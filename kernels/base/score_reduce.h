// How the scores of several queries and of a group's heads become one (restkv.md sections 2, 4, 5). Apart from the ops, so
// that settings can name them without any tensor.
#pragma once

#include <cstdint>

namespace restkv {

enum class QueryReduce : uint8_t { kRms, kMax, kEma, kMean };
enum class GroupReduce : uint8_t { kRss, kMax, kMean };

}  // namespace restkv

// What must come out of one choice, without pages, batches, units, rings or a scheduler: lists of kept positions.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/request.h"

namespace restkv::sim {

struct Expected {
  std::vector<int32_t> tokens;
  FinishReason finish = FinishReason::kLength;
  bool is_nan = false;
  int64_t events = 0, evicted = 0;  // cuts of a layer and rows, had the answer run to its end
};

inline constexpr int32_t kLayers = 2, kHeads = 2, kVocab = 61, kEos = 2;

Expected expected_answer(const Request& request, int32_t choice);

}  // namespace restkv::sim

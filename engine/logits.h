// Logits of every position of given tokens, without an engine thread: the verb `logits` and the golden tests.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "engine/engine.h"

namespace restkv {

// Runs `tokens` as one prompt cut into `pieces` rows each (empty: in one piece; the last size repeats), and
// gives each piece's logits [rows, V] to `sink` in order. Errors: as Engine::submit.
Status compute_logits(const Model& model, const EngineOptions& options, std::span<const int32_t> tokens,
                      std::span<const int32_t> pieces,
                      const std::function<void(int64_t first_row, int64_t rows, const float* logits)>& sink);

}  // namespace restkv

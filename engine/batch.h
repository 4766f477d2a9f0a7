// What the executor is asked to do next. Pointers are borrowed from the scheduler for one call.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/sequence.h"

namespace restkv {

// One pass through all layers: rows of running sequences that append to their caches, and whole short
// prompts.
struct StepBatch {
  struct Decode {
    Sequence* sequence;
    int32_t num_rows;  // tokens [position, position + num_rows) are fed; 1 when generating
  };
  std::vector<Decode> decodes;
  std::vector<Sequence*> prompts;  // with their followers

  bool empty() const { return decodes.empty() && prompts.empty(); }
  void clear() {
    decodes.clear();
    prompts.clear();
  }
};

// One layer over some rows of a long prompt, whose residual and K/V lie in the scratch arena.
struct PrefillUnit {
  Sequence* sequence = nullptr;
  int32_t layer = 0;
  int32_t row_begin = 0;
  int32_t num_rows = 0;
};

}  // namespace restkv

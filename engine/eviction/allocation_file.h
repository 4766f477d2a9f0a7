// The calibrated allocation of a model as a file (interfaces.md): rows of every (layer, KV head) for a ladder of budgets,
// for both decode modes. `restkv calibrate` writes it, loading a model looks for it.
//   {"version": 1, "fingerprint": {"arch", "L", "K", "H", "D", "M", "V"}, "decode": "evict", "budgets": [C...],
//    "rows": [[[K rows] x L] x budgets], "grow": {"budgets", "rows"}, "texts", "settings"}
#pragma once

#include <string>
#include <string_view>

#include "engine/eviction/budget.h"
#include "engine/model/model_config.h"
#include "kernels/base/status.h"

namespace restkv {

struct AllocationTables {
  AllocationTable evict, grow;
  const AllocationTable& of(DecodeMode mode) const { return mode == DecodeMode::kGrow ? grow : evict; }
};

// Strict: version, fingerprint, sizes and bounds must be those of the model. Without "grow" both modes take the one table.
Result<AllocationTables> parse_allocation(std::string_view json, const ModelConfig& config);

// How the tables came about, for people: number and length of the texts, the settings whose order was measured.
struct CalibrationNotes {
  int64_t num_texts = 0, text_len = 0;
  CacheSettings settings;
};
std::string allocation_json(const AllocationTables& tables, const ModelConfig& config,
                            const CalibrationNotes& notes);

}  // namespace restkv

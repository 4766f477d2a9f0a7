// How many rows each (layer, KV head) may hold, and when it is cut. Pure functions of a sequence's own numbers.
//   kv_len:  grows by one a token | == C_lh: cut to C_lh - stride (the first time + the layer's stagger) | never above C_lh
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/eviction/cache_settings.h"

namespace restkv {

// Rows measured to be best for each (layer, KV head), for a ladder of budgets (restkv calibrate).
struct AllocationTable {
  DecodeMode decode = DecodeMode::kEvict;
  std::vector<int32_t> budgets;           // ascending
  std::vector<std::vector<double>> rows;  // [budgets][L*K]
};

struct CacheDimensions {
  int32_t num_layers = 0;           // L
  int32_t num_kv_heads = 0;         // K
  std::span<const int32_t> window;  // [L] of windowed layers, 0: full attention; may be empty
};

struct SequenceBudget {
  int32_t budget = 0;  // C
  int32_t stride = 0;
  bool is_exact = false;      // prompt + max_tokens <= C: nothing is ever cut
  std::vector<int32_t> c_lh;  // [L*K]
};

// Calibrated rows are multiples of it, so that uneven heads fill the pages that they hold (16 slots on the CPU, a multiple
// on a card): measured, page ends took 14 % of the rows at C = 64 and 8 % at 128.
inline constexpr int32_t kCalibratedUnit = 16;

// Fewest rows of a head under calibrated budgets, a multiple of kCalibratedUnit; the budget itself where that leaves nothing
// to share out.
int32_t calibrated_floor(const CacheSettings& settings, int32_t budget);

// C_lh of every head. Full-attention layers: their sum is (their number) * K * C, whatever the allocation (largest
// remainder, ties to the lower layer and head; calibrated: less than a unit below it), and does not depend on the page
// size. Windowed layers hold min(C, window + stride). `ada` gives C to every head: its shares are known after the first selection.
// Precondition: settings are resolved; `table` where they ask for calibrated.
SequenceBudget plan_budget(const CacheSettings& settings, const CacheDimensions& dims,
                           const AllocationTable* table, int64_t prompt_len, int64_t max_tokens);

// Fewest rows of a head where the heads share their layer (ada): 0.2 C, and what is protected and cut must fit. is_grow: the
// layer is not cut in decode (a windowed one is, whatever the mode).
int32_t share_floor(const CacheSettings& settings, int32_t budget, bool is_grow);

// Rows that a layer of the published pyramid keeps beside its window (b = C - w free rows, n the prompt's length).
int32_t pyramid_rows(int32_t free_rows, int32_t window, int64_t prompt_len, int32_t layer,
                     int32_t num_layers);

// x [n] >= 0 to whole numbers with the given sum, each at least `floor` (n * floor <= sum): what is above the floor is
// scaled, largest remainders get the odd rows, ties the lower index. With a unit above 1: to the floor and multiples of the
// unit, the sum less than a unit below the given one.
std::vector<int32_t> round_to_sum(std::span<const double> x, int32_t floor, int64_t sum, int32_t unit = 1);

// Entries that a cut leaves of a (layer, KV head) that holds C_lh, in mode evict: C_lh - stride, the first time the layer's
// stagger more (layer * stride / num_layers), so that layers take turns with their later cuts.
int32_t rows_after_cut(int32_t c_lh, int32_t stride, int64_t layer, int64_t num_layers, bool is_first);

}  // namespace restkv

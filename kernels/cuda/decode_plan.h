// Into how many spans of entries the blocks of decode_attention split their rows: numbers of the host alone. Few units are split until
// they fill the card; in a list of launches (context.h) the grid has room for every plan of the steps that share it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace restkv::cuda {

inline constexpr int32_t kMinSplit = 64, kFixedSplit = 256;  // entries
inline constexpr int64_t kMostSplits = 4;                    // of units that fill the places
// Of a split, where there are more of them than places: its start and its merge cost something.
inline constexpr int64_t kWorthwhileSpans = 8;

struct DecodePlan {
  int32_t num_splits = 1;
  int32_t split_entries = 0;
};

// `places`: blocks that run at once. Few units are split until they fill the places; more than fill them, so far that the last
// round of blocks is not nearly empty. Spans are whole multiples of 64 entries.
inline DecodePlan plan_decode(int64_t units, int64_t longest, int64_t places, bool is_deterministic) {
  const int64_t least = is_deterministic ? kFixedSplit : kMinSplit;
  const int64_t spans = std::max<int64_t>(1, (longest + least - 1) / least);
  if (is_deterministic) return {static_cast<int32_t>(spans), kFixedSplit};
  int64_t wanted = std::clamp<int64_t>(places / units, 1, spans);
  if (units > places / 2) {
    double best = 0;
    for (int64_t splits = 1; splits <= kMostSplits; ++splits) {
      if (splits > 1 && spans / splits < kWorthwhileSpans) break;
      const int64_t rounds = (units * splits + places - 1) / places;
      const double share = static_cast<double>(units * splits) / static_cast<double>(rounds * places);
      if (share > best + 0.05) {
        best = share;
        wanted = splits;
      }
    }
  }
  const int64_t spans_each = (spans + wanted - 1) / wanted;
  return {static_cast<int32_t>((spans + spans_each - 1) / spans_each),
          static_cast<int32_t>(spans_each * least)};
}

// Splits that a launch of a list has room for, where `plan` has one of few numbers of them: its own up to kMostSplits, or powers of two
// up to what the fewest units that share the list are split into.
inline int32_t listed_splits(const DecodePlan& plan, int64_t fewest_units, int64_t places,
                             bool is_deterministic) {
  if (plan.num_splits <= kMostSplits) return plan.num_splits;
  int64_t splits = 2 * kMostSplits;
  while (splits < plan.num_splits) splits *= 2;
  const int64_t most = is_deterministic ? splits : std::min(splits, places / fewest_units);
  return static_cast<int32_t>(std::max<int64_t>(most, plan.num_splits));
}

}  // namespace restkv::cuda

// lacache (arXiv 2507.14204): a ladder. The rows between the first and the newest are cut into ranges; each range belongs
// to `span` neighbouring layers, which keep it before newer rows. No scores from attention.
#include <algorithm>

#include "engine/eviction/policy.h"

namespace restkv {

PolicyRecipe lacache_recipe(const CacheSettings& settings, int32_t num_layers) {
  // span 16 as published for 32 layers; at most half of the layers, or there would be no ladder.
  const int32_t span = std::clamp(num_layers / 2, 1, 16);
  return {.name = "lacache",
          .score = {.kind = ScoreKind::kLadder, .ladder_span = span, .num_layers = num_layers},
          .sinks = 4,
          .recent = settings.window};
}

}  // namespace restkv

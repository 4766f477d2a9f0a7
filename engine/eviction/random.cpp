// random: rows by a hash of (layer, head, position), which makes repeated cuts a uniform sample. The floor of comparisons.
#include "engine/eviction/policy.h"

namespace restkv {

PolicyRecipe random_recipe(const CacheSettings& settings) {
  return {.name = "random",
          .score = {.kind = ScoreKind::kHash},
          .sinks = settings.sinks,
          .recent = settings.window};
}

}  // namespace restkv

// h2o (arXiv 2306.14048): attention summed over all queries so far; half of the budget for the most recent rows.
#include <algorithm>

#include "engine/eviction/policy.h"

namespace restkv {

PolicyRecipe h2o_recipe(int32_t budget) {
  return {.name = "h2o",
          .queries = QueryNeed::kAll,
          .score = {.kind = ScoreKind::kAttention},
          .recent = std::max(1, budget / 2)};
}

}  // namespace restkv

// tova (arXiv 2401.06104): attention of the last query, mean over all heads; one set of rows for the layer.
#include "engine/eviction/policy.h"

namespace restkv {

PolicyRecipe tova_recipe() {
  return {.name = "tova",
          .queries = QueryNeed::kNewest,
          .score = {.kind = ScoreKind::kAttention},
          .scope = SelectScope::kLayer,
          .recent = 1};
}

}  // namespace restkv

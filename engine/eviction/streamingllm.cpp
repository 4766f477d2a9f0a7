// streamingllm (arXiv 2309.17453): the first 4 rows and the most recent ones. Keys keep their true positions.
#include "engine/eviction/policy.h"

namespace restkv {

PolicyRecipe streamingllm_recipe() {
  return {.name = "streamingllm", .score = {.kind = ScoreKind::kRecency}, .sinks = 4, .recent = 1};
}

}  // namespace restkv

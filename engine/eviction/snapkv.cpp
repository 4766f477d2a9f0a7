// snapkv (arXiv 2404.14469): attention summed over the window's queries, mean over the group, pooled around each row after
// prefill; the window stays.
#include "engine/eviction/policy.h"

namespace restkv {

PolicyRecipe snapkv_recipe(const CacheSettings& settings, int32_t) {
  PoolKind pool = PoolKind::kAvg;
  if (settings.pool == PoolMode::kMax) pool = PoolKind::kMax;
  if (settings.pool == PoolMode::kNone) pool = PoolKind::kNone;
  return {.name = "snapkv",
          .queries = QueryNeed::kWindow,
          .score = {.kind = ScoreKind::kAttention},
          .recent = settings.window,
          .pool = pool,
          .kernel = settings.kernel.value_or(5)};
}

}  // namespace restkv

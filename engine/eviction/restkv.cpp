// restkv (arXiv 2605.08840): rows whose removal hurts the layer's output most. Two presets: `paper` is what the published
// code computes, `default` what was measured to be better (README.md).
#include <algorithm>

#include "engine/eviction/policy.h"

namespace restkv {
namespace {

// Forward pooling reaches 7 rows where C < 128, else 13, at most a quarter of the free rows; from C, not C_lh.
int32_t forward_kernel(const CacheSettings& settings, int32_t budget) {
  const int32_t free_rows = budget - settings.sinks - settings.window;
  return std::clamp(budget < 128 ? 7 : 13, 1, std::max(1, free_rows / 4));
}

}  // namespace

PolicyRecipe restkv_recipe(const CacheSettings& settings, int32_t budget) {
  PolicyRecipe recipe;
  recipe.name = "restkv";
  recipe.queries = QueryNeed::kWindow;
  recipe.score = {.kind = settings.indicator == Indicator::kQuery ? ScoreKind::kIndicatorQuery
                                                                  : ScoreKind::kIndicatorAfter,
                  .reduce = settings.reduce,
                  .group = settings.group,
                  .alpha = settings.alpha,
                  .tau = settings.tau,
                  .normalize = settings.normalize};
  recipe.sinks = settings.sinks;
  recipe.recent = settings.window;
  recipe.uses_projection = settings.output_projection;
  recipe.scale = settings.scale;
  recipe.takes_probe = true;
  recipe.kernel = settings.kernel.value_or(5);
  switch (settings.pool) {
    case PoolMode::kNone: recipe.pool = PoolKind::kNone; break;
    case PoolMode::kAvg: recipe.pool = PoolKind::kAvg; break;
    case PoolMode::kMax: recipe.pool = PoolKind::kMax; break;
    case PoolMode::kAdaptive:
      recipe.pool = PoolKind::kAdaptive;
      recipe.needs_drift = true;
      break;
    case PoolMode::kHalfForward: recipe.interleave = true; [[fallthrough]];
    case PoolMode::kForward:
      recipe.pool = PoolKind::kForward;
      recipe.kernel = settings.kernel.value_or(forward_kernel(settings, budget));
      break;
  }
  return recipe;
}

}  // namespace restkv

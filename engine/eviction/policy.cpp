// From settings to recipe, and what the recipes protect.
#include "engine/eviction/policy.h"

#include <algorithm>

namespace restkv {

PolicyRecipe make_recipe(const CacheSettings& settings, int32_t budget, int32_t num_layers) {
  PolicyRecipe recipe;
  switch (settings.policy) {
    case PolicyKind::kFull: recipe = full_recipe(); break;
    case PolicyKind::kRestkv: recipe = restkv_recipe(settings, budget); break;
    case PolicyKind::kSnapkv: recipe = snapkv_recipe(settings, budget); break;
    case PolicyKind::kStreamingllm: recipe = streamingllm_recipe(); break;
    case PolicyKind::kH2o: recipe = h2o_recipe(budget); break;
    case PolicyKind::kTova: recipe = tova_recipe(); break;
    case PolicyKind::kPyramidkv: recipe = pyramidkv_recipe(settings, budget); break;
    case PolicyKind::kAdakv: recipe = adakv_recipe(settings, budget); break;
    case PolicyKind::kLacache: recipe = lacache_recipe(settings, num_layers); break;
    case PolicyKind::kRandom: recipe = random_recipe(settings); break;
  }
  if (settings.allocation == Allocation::kAda) recipe.scope = SelectScope::kShare;
  return recipe;
}

int32_t protected_rows(const CacheSettings& settings, int32_t budget) {
  const PolicyRecipe recipe = make_recipe(settings, budget, 1);
  if (!recipe.evicts) return 0;
  // Rows pinned at the prompt's beginning contain the sinks.
  return std::max(recipe.sinks, settings.pin_head) + settings.pin_tail + recipe.recent +
         pin_rows(settings, budget);
}

}  // namespace restkv

// pyramidkv (arXiv 2406.02069): snapkv with budgets that fall linearly from the first layer to the last (budget.h).
#include "engine/eviction/policy.h"

namespace restkv {

PolicyRecipe pyramidkv_recipe(const CacheSettings& settings, int32_t budget) {
  PolicyRecipe recipe = snapkv_recipe(settings, budget);
  recipe.name = "pyramidkv";
  return recipe;
}

}  // namespace restkv

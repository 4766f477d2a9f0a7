// adakv (arXiv 2407.11550): snapkv's pooled scores share the layer's budget out among its heads, each head at least 0.2 C.
#include "engine/eviction/policy.h"

namespace restkv {

PolicyRecipe adakv_recipe(const CacheSettings& settings, int32_t budget) {
  PolicyRecipe recipe = snapkv_recipe(settings, budget);
  recipe.name = "adakv";
  return recipe;
}

}  // namespace restkv

// full: everything stays.
#include "engine/eviction/policy.h"

namespace restkv {

PolicyRecipe full_recipe() { return {.name = "full", .evicts = false}; }

}  // namespace restkv

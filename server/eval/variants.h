// Policies as evaluation names them: a policy, its preset, and fields of the cache object.
//   restkv,restkv:paper,snapkv[kernel=7],restkv[pool=none,pin=0]
//   list := variant {"," variant}    variant := policy [":" preset] ["[" field "=" value {"," field "=" value} "]"]
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/eviction/cache_settings.h"

namespace restkv {

struct PolicyVariant {
  std::string name;      // as written
  CacheRequest request;  // without budget
};

// Fields are those of the request's object `cache`, checked by its table. Errors say which variant and what is wrong.
Result<std::vector<PolicyVariant>> parse_variants(std::string_view list);

}  // namespace restkv

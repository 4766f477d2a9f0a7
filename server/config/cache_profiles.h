// cache.profiles: named settings that requests ask for, or that are chosen by API key, model or the prompt's length.
//   request fields over the profile's over the defaults of section cache
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/eviction/cache_settings.h"

namespace restkv {

struct CacheProfile {
  std::string name;
  CacheRequest cache;
  // Who gets it; empty and unbounded: whoever names it, nobody else.
  std::vector<std::string> api_keys;  // names of keys; others may not name it either
  std::vector<std::string> models;
  int64_t min_prompt = 0, max_prompt = std::numeric_limits<int64_t>::max();  // tokens
  std::vector<std::pair<std::string, std::string>> given;  // YAML keys and values, for `config show`

  bool has_conditions() const {
    return !api_keys.empty() || !models.empty() || min_prompt > 0 ||
           max_prompt < std::numeric_limits<int64_t>::max();
  }
};

using CacheProfiles = std::vector<CacheProfile>;

struct PromptOrigin {
  std::string_view owner;                     // name of the API key
  const CacheProfile* key_profile = nullptr;  // that the key file gives it; null: none
  std::string_view model;
  int64_t prompt_len = 0;
};

// The profile that was named, else the key's, else the first one whose conditions all hold; null: none. Error: no such profile
// for this owner.
Result<const CacheProfile*> choose_profile(std::span<const CacheProfile> profiles,
                                           const std::optional<std::string>& named,
                                           const PromptOrigin& origin);

// Settings of one prompt: `request` over its profile over `defaults`.
Result<CacheSettings> settings_of_prompt(const CacheRequest& request, const CacheRequest& defaults,
                                         std::span<const CacheProfile> profiles, const CacheLimits& limits,
                                         const PromptOrigin& origin);

// Every profile over the defaults is legal. Error: which one is not, and why.
Status check_profiles(std::span<const CacheProfile> profiles, const CacheRequest& defaults,
                      const CacheLimits& limits);

}  // namespace restkv

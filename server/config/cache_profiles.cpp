// The first profile that fits, in the order of the file.
#include "server/config/cache_profiles.h"

#include <algorithm>

namespace restkv {
namespace {

bool is_one_of(std::string_view name, const std::vector<std::string>& names) {
  return names.empty() || std::find(names.begin(), names.end(), name) != names.end();
}

bool fits(const CacheProfile& profile, const PromptOrigin& origin) {
  return is_one_of(origin.owner, profile.api_keys) && is_one_of(origin.model, profile.models) &&
         origin.prompt_len >= profile.min_prompt && origin.prompt_len <= profile.max_prompt;
}

}  // namespace

Result<const CacheProfile*> choose_profile(std::span<const CacheProfile> profiles,
                                           const std::optional<std::string>& named,
                                           const PromptOrigin& origin) {
  if (!named) {
    if (origin.key_profile) return origin.key_profile;
    for (const CacheProfile& profile : profiles)
      if (profile.has_conditions() && fits(profile, origin)) return &profile;
    return static_cast<const CacheProfile*>(nullptr);
  }
  std::string names;
  for (const CacheProfile& profile : profiles) {
    if (!is_one_of(origin.owner, profile.api_keys)) continue;
    if (profile.name == *named) return &profile;
    names += (names.empty() ? "" : ", ") + profile.name;
  }
  return invalid_argument("cache.profile: '" + named->substr(0, 64) +
                          "' is not one of this server's profiles" +
                          (names.empty() ? ": there are none" : " (" + names + ")"))
      .with_param("cache.profile");
}

Result<CacheSettings> settings_of_prompt(const CacheRequest& request, const CacheRequest& defaults,
                                         std::span<const CacheProfile> profiles, const CacheLimits& limits,
                                         const PromptOrigin& origin) {
  const Result<const CacheProfile*> profile = choose_profile(profiles, request.profile, origin);
  if (!profile.ok()) return profile.status();
  const CacheRequest base = *profile ? overlay(defaults, (*profile)->cache) : defaults;
  return resolve_cache_settings(overlay(base, request), limits);
}

Status check_profiles(std::span<const CacheProfile> profiles, const CacheRequest& defaults,
                      const CacheLimits& limits) {
  for (const CacheProfile& profile : profiles) {
    const Status status = resolve_cache_settings(overlay(defaults, profile.cache), limits).status();
    if (!status.ok()) return invalid_argument("cache.profiles." + profile.name + ": " + status.message());
  }
  return {};
}

}  // namespace restkv

// Who may use the server and how much: the keys of a file or an environment variable, compared in constant time over all of
// them; reloaded as a whole or not at all. Without a source everybody may (the settings bound where that listens).
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "server/access/key_file.h"
#include "server/access/rate_limit.h"
#include "server/config/cache_profiles.h"
#include "server/config/file_version.h"

namespace restkv {

// Who sent a request. Made by AccessControl alone, so what takes one is behind the check.
class Caller {
 public:
  const std::string& name() const { return key_->name; }  // empty: there are no keys
  const ApiKey& key() const { return *key_; }
  RateLimit& rate() const { return *rate_; }
  // Cache settings under its requests' own; null: the key has none.
  const std::shared_ptr<const CacheProfile>& profile() const { return profile_; }

 private:
  friend class AccessControl;
  Caller() = default;
  std::shared_ptr<const ApiKey> key_;
  std::shared_ptr<RateLimit> rate_;
  std::shared_ptr<const CacheProfile> profile_;
};

class AccessControl {
 public:
  // `source`: a file's path, "env:NAME" or "" (no keys). load() reads it.
  explicit AccessControl(std::string source);

  // The first reading and every later one; keys may name `profiles` (null: there are none). Errors (with places, never a key):
  // the keys before stay, each with the profile it had.
  std::vector<std::string> load(const std::shared_ptr<const CacheProfiles>& profiles = nullptr);
  // Whether the file is not the one that was read last.
  bool has_changed() const;
  bool has_keys() const { return !source_.empty(); }
  size_t num_keys() const;

  // `credentials`: the value of an Authorization header, "Bearer KEY", or the key alone. Error: UNAUTHENTICATED.
  Result<Caller> authorize(std::string_view credentials) const;

 private:
  using Table = std::vector<Caller>;
  FileVersion version() const;
  Result<std::string> read_source() const;
  std::shared_ptr<const Table> table() const;

  const std::string source_;
  mutable std::mutex mutex_;  // guards what follows
  std::shared_ptr<const Table> table_;
  FileVersion loaded_;
  std::map<std::string, std::shared_ptr<RateLimit>> rates_;  // by name: a reload forgets no use
};

// What a setting `api_key` may be: a readable file or env:NAME with a value. The error names both and never the value, which
// may be a key that does not belong there.
Status check_key_source(const std::string& source);

}  // namespace restkv

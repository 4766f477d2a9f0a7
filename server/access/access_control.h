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

namespace restkv {

// Who sent a request. Made by AccessControl alone, so what takes one is behind the check.
class Caller {
 public:
  const std::string& name() const { return key_->name; }  // empty: there are no keys
  const ApiKey& key() const { return *key_; }
  RateLimit& rate() const { return *rate_; }

 private:
  friend class AccessControl;
  Caller(std::shared_ptr<const ApiKey> key, std::shared_ptr<RateLimit> rate)
      : key_(std::move(key)), rate_(std::move(rate)) {}
  std::shared_ptr<const ApiKey> key_;
  std::shared_ptr<RateLimit> rate_;
};

class AccessControl {
 public:
  // `source`: a file's path, "env:NAME" or "" (no keys). load() reads it.
  explicit AccessControl(std::string source);

  // The first reading and every later one. Errors (with places, never a key): the keys before stay.
  std::vector<std::string> load();
  // Whether the file is not the one that was read last.
  bool has_changed() const;
  bool has_keys() const { return !source_.empty(); }
  size_t num_keys() const;

  // `credentials`: the value of an Authorization header, "Bearer KEY", or the key alone. Error: UNAUTHENTICATED.
  Result<Caller> authorize(std::string_view credentials) const;

 private:
  struct Entry {
    std::shared_ptr<const ApiKey> key;
    std::shared_ptr<RateLimit> rate;
  };
  using Table = std::vector<Entry>;
  struct FileState {
    int64_t mtime_ns = -1, size = -1;
    uint64_t inode = 0;
    bool operator==(const FileState&) const = default;
  };
  FileState file_state() const;
  Result<std::string> read_source() const;
  std::shared_ptr<const Table> table() const;

  const std::string source_;
  mutable std::mutex mutex_;  // guards what follows
  std::shared_ptr<const Table> table_;
  FileState loaded_;
  std::map<std::string, std::shared_ptr<RateLimit>> rates_;  // by name: a reload forgets no use
};

// What a setting `api_key` may be: a readable file or env:NAME with a value. The error names both and never the value, which
// may be a key that does not belong there.
Status check_key_source(const std::string& source);

}  // namespace restkv

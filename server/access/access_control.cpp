// Reading, comparing, reloading.
#include "server/access/access_control.h"

#include <openssl/crypto.h>
#include <sys/stat.h>

#include <cstdlib>
#include <fstream>

#include "server/config/yaml_tree.h"

namespace restkv {
namespace {

constexpr std::string_view kEnvironment = "env:";
constexpr std::string_view kBearer = "bearer ";

bool is_environment(const std::string& source) { return source.starts_with(kEnvironment); }

std::string_view without_scheme(std::string_view credentials) {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; };
  bool is_bearer = credentials.size() > kBearer.size();
  for (size_t i = 0; is_bearer && i < kBearer.size(); ++i) is_bearer = lower(credentials[i]) == kBearer[i];
  if (is_bearer) credentials.remove_prefix(kBearer.size());
  while (credentials.starts_with(' ')) credentials.remove_prefix(1);
  return credentials;
}

// What a request of the key that names this profile would get; null: it has none.
Result<const CacheProfile*> profile_of(const ApiKey& key, const CacheProfiles* profiles) {
  if (key.profile.empty()) return static_cast<const CacheProfile*>(nullptr);
  std::span<const CacheProfile> known;
  if (profiles) known = *profiles;
  return choose_profile(known, key.profile, {.owner = key.name, .model = {}});
}

}  // namespace

AccessControl::AccessControl(std::string source) : source_(std::move(source)) {
  auto table = std::make_shared<Table>();
  if (source_.empty()) {
    Caller anybody;
    anybody.key_ = std::make_shared<ApiKey>();
    anybody.rate_ = std::make_shared<RateLimit>();
    table->push_back(std::move(anybody));
  }
  table_ = std::move(table);
}

FileVersion AccessControl::version() const {
  return is_environment(source_) ? FileVersion() : file_version(source_);
}

bool AccessControl::has_changed() const {
  const FileVersion now = version();
  const std::lock_guard lock(mutex_);
  return now != loaded_;
}

Result<std::string> AccessControl::read_source() const {
  if (Status status = check_key_source(source_); !status.ok()) return status;
  if (is_environment(source_)) return std::string(std::getenv(source_.c_str() + kEnvironment.size()));
  std::ifstream file(source_, std::ios::binary);
  std::string text(kMaxYamlBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad()) return invalid_argument(source_ + ": cannot read this key file");
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMaxYamlBytes) return invalid_argument(source_ + ": a key file has at most 1 MiB");
  return text;
}

std::vector<std::string> AccessControl::load(const std::shared_ptr<const CacheProfiles>& profiles) {
  if (source_.empty()) return {};
  const FileVersion read_version = version();
  std::vector<std::string> errors;
  std::vector<ApiKey> keys;
  const Result<std::string> text = read_source();
  if (!text.ok()) {
    errors.push_back(text.status().message());
  } else {
    keys = parse_keys(*text, source_, errors);
  }
  std::vector<std::shared_ptr<const CacheProfile>> profiles_of_keys;
  for (const ApiKey& key : keys) {
    const Result<const CacheProfile*> profile = profile_of(key, profiles.get());
    if (!profile.ok())
      errors.push_back(source_ + ": the key '" + key.name + "': " + profile.status().message());
    profiles_of_keys.emplace_back(profiles, profile.ok() ? *profile : nullptr);
  }
  const std::lock_guard lock(mutex_);
  loaded_ = read_version;  // a file with errors is not read again until it changes
  if (!errors.empty()) return errors;
  auto table = std::make_shared<Table>();
  std::map<std::string, std::shared_ptr<RateLimit>> rates;
  for (size_t i = 0; i < keys.size(); ++i) {
    ApiKey& key = keys[i];
    std::shared_ptr<RateLimit>& rate = rates[key.name];
    const auto before = rates_.find(key.name);
    rate = before == rates_.end() ? std::make_shared<RateLimit>() : before->second;
    rate->set_limits(key.requests_per_minute, key.tokens_per_minute);
    Caller caller;
    caller.key_ = std::make_shared<const ApiKey>(std::move(key));
    caller.rate_ = rate;
    caller.profile_ = std::move(profiles_of_keys[i]);
    table->push_back(std::move(caller));
  }
  rates_.swap(rates);
  table_ = std::move(table);
  return {};
}

std::shared_ptr<const AccessControl::Table> AccessControl::table() const {
  const std::lock_guard lock(mutex_);
  return table_;
}

size_t AccessControl::num_keys() const { return has_keys() ? table()->size() : 0; }

Result<Caller> AccessControl::authorize(std::string_view credentials) const {
  const std::shared_ptr<const Table> keys = table();
  if (!has_keys()) return keys->front();
  const std::string_view key = without_scheme(credentials);
  if (key.empty()) {
    return Status(StatusCode::kUnauthenticated, "an API key is needed: Authorization: Bearer KEY")
        .with_reason("invalid_api_key");
  }
  const KeyHash hash = hash_of_key(key.substr(0, kMaxKeyBytes + 1));
  const Caller* found = nullptr;
  for (const Caller& entry : *keys) {  // all of them, whichever matches
    if (CRYPTO_memcmp(entry.key().hash.data(), hash.data(), hash.size()) == 0) found = &entry;
  }
  if (found) return *found;
  return Status(StatusCode::kUnauthenticated, "this server does not know the API key that was sent")
      .with_reason("invalid_api_key");
}

Status check_key_source(const std::string& source) {
  if (source.empty()) return {};
  if (is_environment(source)) {
    const char* value = std::getenv(source.c_str() + kEnvironment.size());
    if (value && *value) return {};
    return invalid_argument("api_key: the environment variable after env: is not set");
  }
  struct stat info {};
  if (::stat(source.c_str(), &info) == 0 && S_ISREG(info.st_mode) && std::ifstream(source)) return {};
  return invalid_argument(
      "api_key: names no file that can be read. It takes a key file or env:NAME, never a key itself: command "
      "lines and "
      "settings are seen by others");
}

}  // namespace restkv

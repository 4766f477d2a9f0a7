// API keys as a file or an environment variable gives them. What is kept of a key is its SHA-256.
//   YAML:  keys:
//            - name: alice
//              key: sk-...                  # or sha256: 64 hexadecimal digits
//              requests_per_minute: 60      # all of these are optional
//              tokens_per_minute: 100k
//              max_concurrent: 4
//              priority: -1
//              profile: small
//   plain: one key a line (# comments), named key1, key2, ...
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace restkv {

using KeyHash = std::array<uint8_t, 32>;  // SHA-256

struct ApiKey {
  std::string name;
  KeyHash hash{};
  int64_t requests_per_minute = 0;  // 0: no limit
  int64_t tokens_per_minute = 0;    // prompt and answer; 0: no limit
  int32_t max_concurrent = 0;       // requests in flight; 0: the server's own limit
  std::optional<int32_t> priority;  // of its requests; nothing: what they say
  std::string profile;              // of the cache settings; empty: the server's defaults
};

inline constexpr size_t kMaxKeys = 2000;
inline constexpr size_t kMinKeyBytes = 8, kMaxKeyBytes = 512;

KeyHash hash_of_key(std::string_view key);

// Errors have a place, "keys.yaml:3:5: ...", and never a key. No key at all is an error.
std::vector<ApiKey> parse_keys(std::string_view text, const std::string& name,
                               std::vector<std::string>& errors);

}  // namespace restkv

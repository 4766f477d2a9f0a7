// What the hub says a repository holds: GET /api/models/ORG/REPO/revision/REV?blobs=true. Nothing is fetched that is not
// in it, nothing longer than it says, nothing with another hash.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace restkv {

struct RepoFile {
  std::string name;    // path inside the repository, checked
  int64_t size = 0;    // bytes
  std::string digest;  // SHA-256 of the content (64 digits), of small files git's SHA-1 (40 digits)
};

struct RepoListing {
  std::string commit;           // 40 hexadecimal digits
  std::vector<RepoFile> files;  // sorted by name, no name twice
  const RepoFile* find(std::string_view name) const;
  std::vector<std::string> names() const;
};

inline constexpr int64_t kMaxListingBytes = 32 << 20;

// Error: what is wrong with the hub's answer.
Result<RepoListing> parse_repo_listing(std::string_view json);

}  // namespace restkv

// Names that come from users and from the hub: ORG/REPO[:QUANT], revisions, commits, files of a repository. Everything
// that becomes part of a path goes through the checks here first.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "kernels/base/status.h"

namespace restkv {

struct RepoName {
  std::string org, repo;
  std::string
      quant;  // what stands behind ':': a GGUF type such as Q4_K_M, or the name of a .gguf file; may be empty

  std::string full() const { return org + "/" + repo; }
  std::string text() const { return quant.empty() ? full() : full() + ":" + quant; }
  std::string folder() const { return "models--" + org + "--" + repo; }  // in the hub's cache
};

// "org/repo" or "org/repo:QUANT", by the hub's rules: letters, digits, '-', '_' and '.', neither "--" nor "..", no part
// begins or ends with '-' or '.', 96 characters at most. A name that ends in .gguf is a path.
Result<RepoName> parse_repo_name(std::string_view text);
// The name of such a folder of the cache; nothing: it is no model's.
std::optional<RepoName> repo_of_folder(std::string_view folder);

// A path inside a repository: relative, '/' between its parts. Refused: empty parts, "." and "..", a leading '/',
// backslashes, control characters, NUL, parts beyond 255 bytes.
Status check_file_name(std::string_view name);
// A branch, a tag or a commit: a file name by the rules above, of letters, digits and "._/-".
Status check_revision(std::string_view revision);
bool is_commit(std::string_view text);  // 40 lower-case hexadecimal digits
// The name of a blob: SHA-1 of git (40 digits) or SHA-256 (64 digits), lower case.
bool is_digest(std::string_view text);

}  // namespace restkv

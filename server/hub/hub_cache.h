// The cache of Hugging Face's tools on disk, shared with them:
//   CACHE/models--ORG--REPO/blobs/DIGEST             the bytes, once; DIGEST.incomplete while they come in
//                          /snapshots/COMMIT/NAME    a relative link to ../../blobs/DIGEST
//                          /refs/REVISION            the commit of a branch or tag
//   CACHE/.locks/models--ORG--REPO/DIGEST.lock       flock while one process downloads that blob
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "server/hub/repo_listing.h"
#include "server/hub/repo_name.h"

namespace restkv {

struct CachedSnapshot {
  RepoName name = {};
  std::string commit = {};
  std::vector<std::string> refs = {};   // branches and tags that stand for it
  std::vector<std::string> files = {};  // complete ones, sorted
  int64_t size = 0;                     // bytes of those files
  std::filesystem::path path = {};
};

struct CacheRemoval {
  std::vector<std::filesystem::path> paths;  // what goes
  int64_t size = 0;                          // bytes of the blobs among them
  int64_t num_snapshots = 0;
};

class HubCache {
 public:
  explicit HubCache(std::filesystem::path root) : root_(std::move(root)) {}

  const std::filesystem::path& root() const { return root_; }
  std::filesystem::path repo_path(const RepoName& name) const { return root_ / name.folder(); }
  std::filesystem::path blob_path(const RepoName& name, const std::string& digest) const;
  std::filesystem::path lock_path(const RepoName& name, const std::string& digest) const;
  std::filesystem::path snapshot_path(const RepoName& name, const std::string& commit) const;

  // Makes the folders that a download needs.
  Status prepare(const RepoName& name) const;
  // The file in the snapshot, as a link to its blob; one that is there is replaced in one step.
  Status link(const RepoName& name, const std::string& commit, const RepoFile& file) const;
  Status write_ref(const RepoName& name, const std::string& revision, const std::string& commit) const;
  // The commit of a branch, tag or commit as the cache knows it; empty: not there.
  std::string find_commit(const RepoName& name, const std::string& revision) const;
  // The complete files of a snapshot, sorted; empty: there is none.
  std::vector<std::string> files_of(const RepoName& name, const std::string& commit) const;

  std::vector<CachedSnapshot> list() const;  // sorted by name
  // What removing `name` means: with `revision` that snapshot alone, with name.quant its GGUF files alone, and the blobs
  // that no other file of a snapshot needs. Error: it is not there.
  Result<CacheRemoval> plan_removal(const RepoName& name, const std::string& revision) const;
  Status remove(const RepoName& name, const CacheRemoval& removal) const;

 private:
  std::filesystem::path root_;
};

}  // namespace restkv

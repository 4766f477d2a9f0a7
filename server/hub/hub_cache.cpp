// Everything below the cache may have been written by other programs: links are looked at, never followed out of the
// repository's folder, and folders with names that are no repository's are left alone.
#include "server/hub/hub_cache.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "server/config/logging.h"
#include "server/hub/file_choice.h"

namespace restkv {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxRefBytes = 64;

Status failed(const std::string& what, const fs::path& path, const std::error_code& error) {
  return Status(StatusCode::kFailedPrecondition,
                "cannot " + what + " " + escape_text(path.string()) + ": " + error.message());
}

// Unique beside `path`: a rename within one folder is one step.
fs::path temporary_beside(const fs::path& path) {
  return path.string() + ".tmp-" + std::to_string(::getpid());
}

fs::path link_target(const RepoFile& file) {
  fs::path target = "../..";
  for (const char c : file.name) {
    if (c == '/') target /= "..";
  }
  return target / "blobs" / file.digest;
}

// Every entry below `folder`, without following links.
std::vector<fs::path> entries_below(const fs::path& folder) {
  std::vector<fs::path> found;
  std::error_code error;
  for (auto it = fs::recursive_directory_iterator(folder, error);
       !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    std::error_code ignored;
    if (!it->is_directory(ignored) || it->is_symlink(ignored)) found.push_back(it->path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<fs::path> folders_in(const fs::path& folder) {
  std::vector<fs::path> found;
  std::error_code error;
  for (auto it = fs::directory_iterator(folder, error); !error && it != fs::directory_iterator();
       it.increment(error)) {
    std::error_code ignored;
    if (it->is_directory(ignored) && !it->is_symlink(ignored)) found.push_back(it->path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

// The digest that a snapshot's file links to; empty: it is no link into blobs/.
std::string blob_of(const fs::path& file) {
  std::error_code error;
  const fs::path target = fs::read_symlink(file, error);
  if (error || target.parent_path().filename() != "blobs") return {};
  const std::string digest = target.filename().string();
  return is_digest(digest) ? digest : std::string();
}

int64_t size_of(const fs::path& path) {
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  return error ? 0 : static_cast<int64_t>(size);
}

std::string read_ref(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxRefBytes, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.pop_back();
  return is_commit(text) ? text : std::string();
}

// (branch or tag, commit) of every ref.
std::vector<std::pair<std::string, std::string>> refs_of(const fs::path& repo) {
  std::vector<std::pair<std::string, std::string>> refs;
  for (const fs::path& path : entries_below(repo / "refs")) {
    const std::string commit = read_ref(path);
    if (!commit.empty()) refs.emplace_back(path.lexically_relative(repo / "refs").string(), commit);
  }
  return refs;
}

}  // namespace

fs::path HubCache::blob_path(const RepoName& name, const std::string& digest) const {
  return repo_path(name) / "blobs" / digest;
}

fs::path HubCache::lock_path(const RepoName& name, const std::string& digest) const {
  return root_ / ".locks" / name.folder() / (digest + ".lock");
}

fs::path HubCache::snapshot_path(const RepoName& name, const std::string& commit) const {
  return repo_path(name) / "snapshots" / commit;
}

Status HubCache::prepare(const RepoName& name) const {
  for (const fs::path& folder : {repo_path(name) / "blobs", repo_path(name) / "refs",
                                 repo_path(name) / "snapshots", lock_path(name, "x").parent_path()}) {
    std::error_code error;
    fs::create_directories(folder, error);
    if (error) return failed("make the folder", folder, error);
  }
  return {};
}

Status HubCache::link(const RepoName& name, const std::string& commit, const RepoFile& file) const {
  const fs::path path = snapshot_path(name, commit) / file.name;
  const fs::path target = link_target(file);
  std::error_code error;
  if (fs::read_symlink(path, error) == target) return {};
  fs::create_directories(path.parent_path(), error);
  if (error) return failed("make the folder", path.parent_path(), error);
  const fs::path temporary = temporary_beside(path);
  fs::remove(temporary, error);
  fs::create_symlink(target, temporary, error);
  if (error) return failed("make the link", path, error);
  fs::rename(temporary, path, error);
  if (error) return failed("make the link", path, error);
  return {};
}

Status HubCache::write_ref(const RepoName& name, const std::string& revision,
                           const std::string& commit) const {
  if (is_commit(revision)) return {};
  const fs::path path = repo_path(name) / "refs" / revision;
  if (read_ref(path) == commit) return {};
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (error) return failed("make the folder", path.parent_path(), error);
  const fs::path temporary = temporary_beside(path);
  if (std::ofstream file(temporary, std::ios::binary); !(file << commit).flush())
    return failed("write", temporary, std::make_error_code(std::errc::io_error));
  fs::rename(temporary, path, error);
  if (error) return failed("write", path, error);
  return {};
}

std::string HubCache::find_commit(const RepoName& name, const std::string& revision) const {
  std::error_code error;
  const std::string commit = is_commit(revision) ? revision : read_ref(repo_path(name) / "refs" / revision);
  return !commit.empty() && fs::is_directory(snapshot_path(name, commit), error) ? commit : std::string();
}

std::vector<std::string> HubCache::files_of(const RepoName& name, const std::string& commit) const {
  const fs::path folder = snapshot_path(name, commit);
  std::vector<std::string> files;
  for (const fs::path& path : entries_below(folder)) {
    std::error_code error;
    if (fs::is_regular_file(path, error)) files.push_back(path.lexically_relative(folder).string());
  }
  return files;
}

std::vector<CachedSnapshot> HubCache::list() const {
  std::vector<CachedSnapshot> snapshots;
  for (const fs::path& repo : folders_in(root_)) {
    const std::optional<RepoName> name = repo_of_folder(repo.filename().string());
    if (!name) continue;
    const auto refs = refs_of(repo);
    for (const fs::path& folder : folders_in(repo / "snapshots")) {
      CachedSnapshot snapshot{.name = *name, .commit = folder.filename().string(), .path = folder};
      if (!is_commit(snapshot.commit)) continue;
      for (const auto& [ref, commit] : refs) {
        if (commit == snapshot.commit) snapshot.refs.push_back(ref);
      }
      snapshot.files = files_of(*name, snapshot.commit);
      for (const std::string& file : snapshot.files) snapshot.size += size_of(folder / file);
      snapshots.push_back(std::move(snapshot));
    }
  }
  return snapshots;
}

Result<CacheRemoval> HubCache::plan_removal(const RepoName& name, const std::string& revision) const {
  const fs::path repo = repo_path(name);
  std::error_code error;
  const Status absent = not_found(name.full() + (revision.empty() ? "" : " at " + escape_text(revision)) +
                                  " is not in the cache " + escape_text(root_.string()));
  if (!fs::is_directory(repo, error)) return absent;
  CacheRemoval removal;
  if (revision.empty() && name.quant.empty()) {
    removal.paths = {repo};
    for (const fs::path& blob : entries_below(repo / "blobs")) removal.size += size_of(blob);
    removal.num_snapshots = static_cast<int64_t>(folders_in(repo / "snapshots").size());
    return removal;
  }
  const std::string commit = revision.empty() ? std::string() : find_commit(name, revision);
  if (!revision.empty() && commit.empty()) return absent;
  std::set<std::string> needed, dropped;
  for (const fs::path& folder : folders_in(repo / "snapshots")) {
    const bool is_meant = commit.empty() || folder.filename() == commit;
    for (const fs::path& file : entries_below(folder)) {
      const std::string relative = file.lexically_relative(folder).string();
      const bool is_chosen = name.quant.empty() || relative == name.quant ||
                             (relative.ends_with(".gguf") && !quant_of_file(relative).empty() &&
                              quant_of_file(relative) == quant_of_file(name.quant + ".gguf"));
      const bool goes = is_meant && is_chosen;
      if (const std::string digest = blob_of(file); !digest.empty()) (goes ? dropped : needed).insert(digest);
      if (goes && !name.quant.empty()) removal.paths.push_back(file);
    }
    if (is_meant && name.quant.empty()) {
      removal.paths.push_back(folder);
      ++removal.num_snapshots;
    }
  }
  if (removal.paths.empty())
    return not_found(name.text() + " is not in the cache " + escape_text(root_.string()));
  for (const auto& [ref, target] : refs_of(repo)) {
    if (name.quant.empty() && target == commit) removal.paths.push_back(repo / "refs" / ref);
  }
  for (const std::string& digest : dropped) {
    if (needed.contains(digest)) continue;
    removal.paths.push_back(blob_path(name, digest));
    removal.size += size_of(removal.paths.back());
  }
  return removal;
}

Status HubCache::remove(const RepoName& name, const CacheRemoval& removal) const {
  for (const fs::path& path : removal.paths) {
    std::error_code error;
    fs::remove_all(path, error);  // a link itself, not what it points to
    if (error) return failed("remove", path, error);
  }
  // A snapshot without files goes, and the last snapshot takes the folder with it.
  std::error_code error;
  for (const fs::path& snapshot : folders_in(repo_path(name) / "snapshots")) {
    if (entries_below(snapshot).empty()) fs::remove_all(snapshot, error);
  }
  if (fs::is_directory(repo_path(name), error) && folders_in(repo_path(name) / "snapshots").empty())
    fs::remove_all(repo_path(name), error);
  if (!fs::exists(repo_path(name), error)) fs::remove_all(root_ / ".locks" / name.folder(), error);
  return {};
}

}  // namespace restkv

// {"sha": "...", "siblings": [{"rfilename": "x", "size": 1, "blobId": "...", "lfs": {"sha256": "...", "size": 1}}]}
#include "server/hub/repo_listing.h"

#include <algorithm>

#include "engine/model/json_reader.h"
#include "server/hub/repo_name.h"

namespace restkv {
namespace {

using nlohmann::json;

constexpr JsonLimits kListingLimits{.max_depth = 64, .max_keys = 2'000'000};
constexpr int64_t kMaxFileBytes = int64_t{1} << 44;

Status bad_answer(const std::string& what) { return invalid_argument("the hub's answer: " + what); }

const json* member(const json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::string text_member(const json& object, const char* key) {
  const json* value = member(object, key);
  return value != nullptr && value->is_string() ? value->get<std::string>() : std::string();
}

// -1: absent, not a whole number, or beyond any file.
int64_t size_member(const json& object) {
  const json* value = member(object, "size");
  if (value == nullptr || !value->is_number_unsigned()) return -1;
  const uint64_t size = value->get<uint64_t>();
  return size <= static_cast<uint64_t>(kMaxFileBytes) ? static_cast<int64_t>(size) : -1;
}

Result<RepoFile> read_file(const json& entry) {
  RepoFile file;
  file.name = text_member(entry, "rfilename");
  if (Status status = check_file_name(file.name); !status.ok()) return bad_answer(status.message());
  const json* lfs = member(entry, "lfs");
  file.size = size_member(lfs ? *lfs : entry);
  file.digest = lfs ? text_member(*lfs, "sha256") : text_member(entry, "blobId");
  const size_t digits = lfs ? 64 : 40;
  if (file.size < 0) return bad_answer("no usable size of '" + file.name + "'");
  if (!is_digest(file.digest) || file.digest.size() != digits)
    return bad_answer("no usable hash of '" + file.name + "'");
  return file;
}

}  // namespace

const RepoFile* RepoListing::find(std::string_view name) const {
  const auto found =
      std::lower_bound(files.begin(), files.end(), name,
                       [](const RepoFile& file, std::string_view key) { return file.name < key; });
  return found != files.end() && found->name == name ? &*found : nullptr;
}

std::vector<std::string> RepoListing::names() const {
  std::vector<std::string> names;
  for (const RepoFile& file : files) names.push_back(file.name);
  return names;
}

Result<RepoListing> parse_repo_listing(std::string_view text) {
  const Result<json> root = parse_json(text, kListingLimits);
  if (!root.ok()) return bad_answer(root.status().message());
  RepoListing listing;
  listing.commit = text_member(*root, "sha");
  if (!is_commit(listing.commit)) return bad_answer("no commit in 'sha'");
  const json* siblings = member(*root, "siblings");
  if (siblings == nullptr || !siblings->is_array()) return bad_answer("no list of files in 'siblings'");
  for (const json& entry : *siblings) {
    Result<RepoFile> file = read_file(entry);
    if (!file.ok()) return file.status();
    listing.files.push_back(*std::move(file));
  }
  const auto by_name = [](const RepoFile& a, const RepoFile& b) { return a.name < b.name; };
  std::sort(listing.files.begin(), listing.files.end(), by_name);
  const auto twice =
      std::adjacent_find(listing.files.begin(), listing.files.end(),
                         [](const RepoFile& a, const RepoFile& b) { return a.name == b.name; });
  if (twice != listing.files.end()) return bad_answer("the file '" + twice->name + "' is there twice");
  return listing;
}

}  // namespace restkv

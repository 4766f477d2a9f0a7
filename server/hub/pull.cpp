// Order on disk: blobs, links, then the ref, so that a ref never names a snapshot that is less than whole.
#include "server/hub/pull.h"

#include <algorithm>
#include <atomic>
#include <fstream>
#include <iterator>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "server/config/logging.h"
#include "server/hub/blob_download.h"
#include "server/hub/file_choice.h"
#include "server/hub/hub_cache.h"
#include "server/hub/hub_client.h"

namespace restkv {
namespace {

constexpr const char* kDefaultRevision = "main";
constexpr int64_t kMaxIndexBytes = 64 << 20;
constexpr int kListingTries = 3;

Result<RepoListing> fetch_listing(HubClient& client, const RepoName& name, const std::string& revision,
                                  const StopFlag& is_stopped) {
  const std::string path =
      "/api/models/" + name.full() + "/revision/" + escape_path(revision) + "?blobs=true";
  Status last;
  for (int attempt = 0; attempt < kListingTries && !is_stopped(); ++attempt) {
    if (attempt > 0) std::this_thread::sleep_for(std::chrono::milliseconds(500 * attempt));
    std::string body;
    bool is_too_long = false;
    const Result<HubReply> reply = client.get(
        path, 0,
        [&](const HubReply&, std::span<const char> bytes) {
          is_too_long = static_cast<int64_t>(body.size() + bytes.size()) > kMaxListingBytes;
          if (!is_too_long) body.append(bytes.data(), bytes.size());
          return !is_too_long;
        },
        is_stopped);
    if (is_too_long) return invalid_argument("the hub's answer about " + name.full() + " is too long");
    if (reply.ok() && reply->status == 200) return parse_repo_listing(body);
    last = reply.ok() ? hub_refusal(*reply, name,
                                    name.full() + (revision == kDefaultRevision ? "" : " at " + revision),
                                    client.settings())
                      : reply.status();
    const bool is_worth_it = last.code() == StatusCode::kUnavailable && last.reason() != "no_connection";
    if (!is_worth_it) break;
  }
  if (last.ok()) return Status(StatusCode::kCancelled, "the download was stopped");
  if (last.code() != StatusCode::kUnavailable) return last;
  return Status(StatusCode::kUnavailable, "the hub cannot be reached: " + last.message());
}

Result<std::string> read_index(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::file_size(path, error) > static_cast<uintmax_t>(kMaxIndexBytes) || error)
    return invalid_argument(std::string(kShardIndex) + " cannot be read or is too long");
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

std::string model_path(const std::filesystem::path& snapshot, const FileChoice& choice) {
  return choice.gguf.empty() ? snapshot.string() : (snapshot / choice.gguf).string();
}

Status with_name(const RepoName& name, const Status& status) {
  return Status(status.code(), name.text() + ": " + status.message());
}

// Downloads every file on `max_workers` threads; the first error stops the others.
Status download_all(const HubSettings& settings, const HubCache& cache, const RepoName& name,
                    const std::string& commit, std::span<const RepoFile> files, PullObserver& observer,
                    const StopFlag& is_stopped) {
  std::mutex mutex;  // of observer and first_error
  Status first_error;
  std::atomic<size_t> next{0};
  std::atomic<bool> ends{false};
  const StopFlag stops = [&] { return ends || is_stopped(); };
  const auto work = [&] {
    HubClient client(settings);
    for (size_t i = next++; i < files.size() && !stops(); i = next++) {
      BlobEvents events;
      events.on_bytes = [&, i](int64_t done) {
        const std::lock_guard<std::mutex> lock(mutex);
        observer.on_bytes(i, done);
      };
      events.on_message = [&](const std::string& line) {
        const std::lock_guard<std::mutex> lock(mutex);
        observer.on_message(line);
      };
      const Status status = download_blob(client, cache, {name, commit, files[i]}, events, stops);
      const std::lock_guard<std::mutex> lock(mutex);
      if (status.ok()) {
        observer.on_file_done(i);
      } else if (first_error.ok()) {
        first_error = status;
        ends = true;
      }
    }
  };
  const auto count = std::min<size_t>(files.size(), static_cast<size_t>(settings.max_workers));
  std::vector<std::jthread> workers;
  for (size_t i = 0; i < count; ++i) workers.emplace_back(work);
  workers.clear();  // joins
  if (first_error.ok() && is_stopped()) return Status(StatusCode::kCancelled, "the download was stopped");
  return first_error;
}

Status download_missing(const HubSettings& settings, const HubCache& cache, const RepoName& name,
                        const RepoListing& listing, std::span<const std::string> names,
                        PullObserver& observer, const StopFlag& is_stopped) {
  std::vector<RepoFile> missing;
  std::set<std::string_view> digests;  // of `missing`, in `listing`
  for (const std::string& file_name : names) {
    const RepoFile& file = *listing.find(file_name);
    if (!has_blob(cache, name, file) && digests.insert(file.digest).second) missing.push_back(file);
  }
  if (!missing.empty()) {
    // Large files first: the small ones fill the gaps.
    std::stable_sort(missing.begin(), missing.end(),
                     [](const RepoFile& a, const RepoFile& b) { return a.size > b.size; });
    observer.on_plan(name, missing);
    if (Status status = download_all(settings, cache, name, listing.commit, missing, observer, is_stopped);
        !status.ok())
      return status;
  }
  for (const std::string& file_name : names) {
    if (Status status = cache.link(name, listing.commit, *listing.find(file_name)); !status.ok())
      return status;
  }
  return {};
}

}  // namespace

Result<PulledModel> pull_model(const HubSettings& settings, const RepoName& name,
                               const std::string& revision_or_empty, PullObserver& observer,
                               const StopFlag& is_stopped) {
  const std::string revision = revision_or_empty.empty() ? kDefaultRevision : revision_or_empty;
  if (Status status = check_revision(revision); !status.ok()) return status;
  if (settings.offline)
    return Status(StatusCode::kFailedPrecondition, "HF_HUB_OFFLINE is set: nothing is downloaded");
  HubClient client(settings);
  Result<RepoListing> listing = fetch_listing(client, name, revision, is_stopped);
  if (!listing.ok()) return listing.status();
  const std::vector<std::string> all = listing->names();
  Result<FileChoice> choice = choose_files(all, name.quant);
  if (!choice.ok()) return with_name(name, choice.status());

  const HubCache cache(settings.cache);
  if (Status status = cache.prepare(name); !status.ok()) return status;
  if (choice->has_shard_index) {
    const RepoFile& index = *listing->find(kShardIndex);
    if (index.size > kMaxIndexBytes)
      return with_name(name, invalid_argument(std::string(kShardIndex) + " is too long"));
    const BlobEvents events{[](int64_t) {}, [&](const std::string& line) { observer.on_message(line); }};
    if (Status status = download_blob(client, cache, {name, listing->commit, index}, events, is_stopped);
        !status.ok())
      return status;
    const Result<std::string> text = read_index(cache.blob_path(name, index.digest));
    if (!text.ok()) return with_name(name, text.status());
    const Result<std::vector<std::string>> shards = shards_of_index(*text, all);
    if (!shards.ok()) return with_name(name, shards.status());
    choice->names.insert(choice->names.end(), shards->begin(), shards->end());
  }
  if (Status status = download_missing(settings, cache, name, *listing, choice->names, observer, is_stopped);
      !status.ok())
    return status;
  if (Status status = cache.write_ref(name, revision, listing->commit); !status.ok()) return status;
  PulledModel model{model_path(cache.snapshot_path(name, listing->commit), *choice), listing->commit, 0};
  for (const std::string& file : choice->names) model.size += listing->find(file)->size;
  return model;
}

Result<PulledModel> find_pulled_model(const HubSettings& settings, const RepoName& name,
                                      const std::string& revision_or_empty) {
  const std::string revision = revision_or_empty.empty() ? kDefaultRevision : revision_or_empty;
  if (Status status = check_revision(revision); !status.ok()) return status;
  const HubCache cache(settings.cache);
  const std::string commit = cache.find_commit(name, revision);
  const std::string what_to_do = "; get it with: restkv pull " + name.text() +
                                 (revision == kDefaultRevision ? "" : " --revision " + revision);
  if (commit.empty()) {
    return not_found(name.full() + " at " + revision + " is not in the cache " +
                     escape_text(settings.cache.string()) + what_to_do);
  }
  const std::vector<std::string> files = cache.files_of(name, commit);
  const std::filesystem::path snapshot = cache.snapshot_path(name, commit);
  Result<FileChoice> choice = choose_files(files, name.quant);
  Status status = choice.status();
  if (choice.ok() && choice->has_shard_index) {
    const Result<std::string> text = read_index(snapshot / kShardIndex);
    const Result<std::vector<std::string>> shards =
        text.ok() ? shards_of_index(*text, files) : Result<std::vector<std::string>>(text.status());
    status = shards.status();
    if (shards.ok()) choice->names.insert(choice->names.end(), shards->begin(), shards->end());
  }
  if (!status.ok())
    return Status(status.code(),
                  name.text() + ", as far as it is in the cache: " + status.message() + what_to_do);
  PulledModel model{model_path(snapshot, *choice), commit, 0};
  std::error_code error;
  for (const std::string& file : choice->names)
    model.size += static_cast<int64_t>(std::filesystem::file_size(snapshot / file, error));
  return model;
}

Result<PulledModel> pull_or_find_model(const HubSettings& settings, const RepoName& name,
                                       const std::string& revision, PullObserver& observer,
                                       const StopFlag& is_stopped) {
  if (settings.offline) return find_pulled_model(settings, name, revision);
  Result<PulledModel> pulled = pull_model(settings, name, revision, observer, is_stopped);
  if (pulled.ok() || pulled.status().code() != StatusCode::kUnavailable) return pulled;
  Result<PulledModel> found = find_pulled_model(settings, name, revision);
  if (!found.ok())
    return Status(pulled.status().code(), pulled.status().message() + "; and " + found.status().message());
  observer.on_message(pulled.status().message() + "; taking what is in the cache");
  return found;
}

}  // namespace restkv

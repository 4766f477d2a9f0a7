// DIGEST.incomplete grows by appending; [0, size) of it is hashed anew when a download is resumed.
#include "server/hub/blob_download.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "server/config/logging.h"
#include "server/hub/content_hash.h"

namespace restkv {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

constexpr int kMaxTries = 5;  // in a row without one new byte
constexpr milliseconds kFirstPause{500};
constexpr milliseconds kLongestPause{30'000};
constexpr size_t kCopyBytes = 1 << 20;

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

Status io_error(const std::string& what, const fs::path& path) {
  const int number = errno;
  return Status(StatusCode::kFailedPrecondition,
                "cannot " + what + " " + escape_text(path.string()) + ": " + std::strerror(number));
}

void pause(milliseconds duration, const StopFlag& is_stopped) {
  const auto end = std::chrono::steady_clock::now() + duration;
  while (!is_stopped() && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(milliseconds(50));
}

Status wait_for_lock(int lock, const std::string& file, const BlobEvents& events,
                     const StopFlag& is_stopped) {
  bool is_told = false;
  while (::flock(lock, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return {};  // a file system without locks
    if (is_stopped()) return Status(StatusCode::kCancelled, "the download was stopped");
    if (!is_told) events.on_message(file + ": another program downloads it, waiting");
    is_told = true;
    std::this_thread::sleep_for(milliseconds(100));
  }
  return {};
}

class Download {
 public:
  Download(HubClient& client, const BlobRequest& request, const BlobEvents& events,
           const StopFlag& is_stopped, fs::path path, int descriptor)
      : client_(client),
        request_(request),
        events_(events),
        is_stopped_(is_stopped),
        path_(std::move(path)),
        descriptor_(descriptor) {}

  Status run(const HubSettings& settings) {
    if (Status status = take_up(); !status.ok()) return status;
    const bool was_resumed = done_ > 0;
    Status status = fetch_rest(settings);
    if (!status.ok()) return status;
    status = check_hash();
    if (status.ok() || !was_resumed) return status;
    events_.on_message(name() + ": what was there from an earlier try was wrong, starting over");
    if (status = start_over(); !status.ok()) return status;
    if (status = fetch_rest(settings); !status.ok()) return status;
    return check_hash();
  }

  // Nothing of a file with a wrong hash is worth keeping: which byte is wrong is unknown.
  bool is_worthless() const { return has_wrong_hash_; }

 private:
  const RepoFile& file() const { return request_.file; }
  std::string name() const { return request_.name.full() + "/" + file().name; }

  Status start_over() {
    if (::ftruncate(descriptor_, 0) != 0) return io_error("shorten", path_);
    hash_.emplace(file().digest, file().size);
    done_ = 0;
    events_.on_bytes(0);
    return {};
  }

  // Hashes what an earlier try left.
  Status take_up() {
    if (Status status = check_space(); !status.ok()) return status;
    const off_t size = ::lseek(descriptor_, 0, SEEK_END);
    if (size < 0) return io_error("read", path_);
    if (size > file().size) return start_over();
    hash_.emplace(file().digest, file().size);
    std::vector<char> buffer(kCopyBytes);
    while (done_ < size && !is_stopped_()) {
      const ssize_t count = ::pread(descriptor_, buffer.data(), buffer.size(), done_);
      if (count <= 0) return io_error("read", path_);
      hash_->append({buffer.data(), static_cast<size_t>(count)});
      done_ += count;
    }
    events_.on_bytes(done_);
    return {};
  }

  Status check_space() const {
    std::error_code error;
    const fs::space_info space = fs::space(path_.parent_path(), error);
    const off_t there = std::max<off_t>(0, ::lseek(descriptor_, 0, SEEK_END));
    if (error || file().size - there <= static_cast<int64_t>(space.available)) return {};
    return Status(StatusCode::kFailedPrecondition,
                  name() + " needs " + std::to_string((file().size - there) >> 20) + " MiB and " +
                      std::to_string(space.available >> 20) + " MiB are free in " +
                      escape_text(path_.parent_path().string()) +
                      "; free some space (restkv rm), or choose another place with HF_HUB_CACHE");
  }

  // Appends one piece of the body; an error ends the transfer.
  Status append(const HubReply& reply, std::span<const char> bytes) {
    if (is_first_piece_) {
      is_first_piece_ = false;
      // 200 instead of 206: the server sends the whole file again.
      if (reply.status != 206 && done_ > 0) {
        if (Status status = start_over(); !status.ok()) return status;
      }
      const bool is_other_size = reply.total_size >= 0 && reply.total_size != file().size;
      if (reply.status == 206 && (reply.first_byte != done_ || is_other_size))
        return Status(StatusCode::kFailedPrecondition,
                      name() + ": the server sent another part than the one asked for");
    }
    if (static_cast<int64_t>(bytes.size()) > file().size - done_) {
      return Status(StatusCode::kFailedPrecondition, name() + ": the server sent more than the " +
                                                         std::to_string(file().size) +
                                                         " bytes that the hub's list says");
    }
    for (std::span<const char> rest = bytes; !rest.empty();) {
      const ssize_t count = ::pwrite(descriptor_, rest.data(), rest.size(), done_);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return io_error("write", path_);
      hash_->append(rest.first(static_cast<size_t>(count)));
      rest = rest.subspan(static_cast<size_t>(count));
      done_ += count;
    }
    events_.on_bytes(done_);
    return {};
  }

  Status fetch_rest(const HubSettings& settings) {
    const std::string path =
        "/" + request_.name.full() + "/resolve/" + request_.commit + "/" + escape_path(file().name);
    int tries = 0;
    milliseconds wait = kFirstPause;
    int64_t most =
        done_;  // ever: a server without ranges begins anew each time, and that alone is no progress
    while (done_ < file().size || (file().size == 0 && tries == 0)) {
      if (is_stopped_()) return Status(StatusCode::kCancelled, "the download was stopped");
      Status failure;
      is_first_piece_ = true;
      const Result<HubReply> reply = client_.get(
          path, done_,
          [&](const HubReply& head, std::span<const char> bytes) {
            failure = append(head, bytes);
            return failure.ok();
          },
          is_stopped_);
      if (!failure.ok()) return failure;
      if (!reply.ok() && reply.status().code() != StatusCode::kUnavailable) return reply.status();
      std::string why;
      milliseconds asked{0};
      if (reply.ok()) {
        const bool is_well = reply->status >= 200 && reply->status <= 299;
        if (is_well && done_ == file().size) break;
        if (reply->status == 416) {  // the server has less than it said: nothing of ours can be right
          if (has_seen_416_)
            return Status(StatusCode::kFailedPrecondition, name() + ": the server has no such part of it");
          has_seen_416_ = true;
          if (Status status = start_over(); !status.ok()) return status;
          continue;
        }
        if (!is_well && reply->status != 429 && reply->status < 500)
          return hub_refusal(*reply, request_.name, name(), settings);
        why = is_well ? "the server ended after " + std::to_string(done_) + " of " +
                            std::to_string(file().size) + " bytes"
                      : "the server answered " + std::to_string(reply->status);
        asked = milliseconds(1000) * std::min<int64_t>(reply->retry_after, 60);
      } else {
        why = reply.status().message();
      }
      const bool has_progress = done_ > most;
      most = std::max(most, done_);
      if (has_progress) {
        tries = 0;
        wait = kFirstPause;
      }
      if (++tries >= kMaxTries) {
        return Status(StatusCode::kUnavailable, name() + ": " + why + "; given up after " +
                                                    std::to_string(kMaxTries) +
                                                    " tries, what came is kept: run it again to go on");
      }
      events_.on_message(name() + ": " + why + ", trying again");
      pause(std::max(asked, has_progress ? milliseconds(100) : wait), is_stopped_);
      wait = std::min(wait * 2, kLongestPause);
    }
    return {};
  }

  Status check_hash() {
    const std::string digest = hash_->finish();
    hash_.reset();
    has_wrong_hash_ = digest != file().digest;
    if (!has_wrong_hash_) return {};
    return Status(StatusCode::kFailedPrecondition,
                  name() + ": the content does not have the hash that the hub's list says (" +
                      digest.substr(0, 12) + " instead of " + file().digest.substr(0, 12) +
                      "); it was thrown away: run it again");
  }

  HubClient& client_;
  const BlobRequest& request_;
  const BlobEvents& events_;
  const StopFlag& is_stopped_;
  fs::path path_;
  int descriptor_;
  std::optional<ContentHash> hash_;  // of [0, done_)
  int64_t done_ = 0;                 // bytes in the file
  bool is_first_piece_ = true;
  bool has_seen_416_ = false;
  bool has_wrong_hash_ = false;
};

}  // namespace

bool has_blob(const HubCache& cache, const RepoName& name, const RepoFile& file) {
  std::error_code error;
  const fs::path path = cache.blob_path(name, file.digest);
  return fs::is_regular_file(path, error) && static_cast<int64_t>(fs::file_size(path, error)) == file.size;
}

Status download_blob(HubClient& client, const HubCache& cache, const BlobRequest& request,
                     const BlobEvents& events, const StopFlag& is_stopped) {
  const fs::path lock_path = cache.lock_path(request.name, request.file.digest);
  const Descriptor lock(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (lock.get() < 0) return io_error("open", lock_path);
  if (Status status =
          wait_for_lock(lock.get(), request.name.full() + "/" + request.file.name, events, is_stopped);
      !status.ok()) {
    return status;
  }
  if (has_blob(cache, request.name, request.file)) {
    events.on_bytes(request.file.size);
    return {};
  }
  const fs::path blob = cache.blob_path(request.name, request.file.digest);
  const fs::path incomplete = blob.string() + ".incomplete";
  const Descriptor file(::open(incomplete.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (file.get() < 0) return io_error("open", incomplete);
  Download download(client, request, events, is_stopped, incomplete, file.get());
  if (Status status = download.run(client.settings()); !status.ok()) {
    if (download.is_worthless()) ::unlink(incomplete.c_str());
    return status;
  }
  if (::fsync(file.get()) != 0) return io_error("write", incomplete);
  if (::rename(incomplete.c_str(), blob.c_str()) != 0) return io_error("rename", incomplete);
  return {};
}

Status hub_refusal(const HubReply& reply, const RepoName& name, const std::string& what,
                   const HubSettings& settings) {
  const std::string page = settings.endpoint + "/" + name.full();
  const std::string login =
      "log in: put a token of " + settings.endpoint + "/settings/tokens in HF_TOKEN, or run 'hf auth login'";
  const std::string said = reply.error_message.empty() ? "" : " (" + reply.error_message + ")";
  const bool has_token = !settings.token.empty();
  if (reply.error_code == "GatedRepo" || reply.status == 403) {
    return Status(StatusCode::kPermissionDenied,
                  what + " is gated or closed to " + (has_token ? "this token" : "who is not logged in") +
                      said + ": ask for access at " + page +
                      (has_token ? ", with the account of the token in HF_TOKEN" : ", then " + login));
  }
  if (reply.error_code == "RevisionNotFound")
    return not_found(what + ": there is no such revision; see " + page + "/tree/main");
  if (reply.error_code == "EntryNotFound") return not_found(what + ": there is no such file" + said);
  if (reply.status == 401) {
    return Status(StatusCode::kUnauthenticated,
                  "there is no " + what + " at " + settings.endpoint + ", or it is private" + said +
                      ": check the name; if it is private, " +
                      (has_token ? "the token in HF_TOKEN (or the token file) has no access to it" : login));
  }
  if (reply.status == 404)
    return not_found("there is no " + what + " at " + settings.endpoint + said + ": check the name");
  return Status(StatusCode::kUnavailable,
                settings.endpoint + " answered " + std::to_string(reply.status) + " for " + what + said);
}

}  // namespace restkv

// One file of a repository into the cache's blobs/: resumed where an earlier try ended, bounded by the size that the hub
// said, in place under its name only when size and hash are right.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "kernels/base/status.h"
#include "server/hub/hub_cache.h"
#include "server/hub/hub_client.h"

namespace restkv {

struct BlobRequest {
  RepoName name;
  std::string commit;
  RepoFile file;
};

struct BlobEvents {
  std::function<void(int64_t)> on_bytes;               // bytes of the file that are there so far
  std::function<void(const std::string&)> on_message;  // "...: trying again": one line for people
};

// Waits for another process that downloads the same blob. Error: which file, and what to do.
Status download_blob(HubClient& client, const HubCache& cache, const BlobRequest& request,
                     const BlobEvents& events, const StopFlag& is_stopped);
bool has_blob(const HubCache& cache, const RepoName& name, const RepoFile& file);

// What an answer that is no 2xx means to the user, by status and X-Error-Code; `what`: "org/repo" or a file of it.
Status hub_refusal(const HubReply& reply, const RepoName& name, const std::string& what,
                   const HubSettings& settings);

}  // namespace restkv

// ORG/REPO[:QUANT] -> files on disk: asked of the hub, chosen, downloaded where they are missing, linked into a snapshot.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "server/hub/hub_client.h"
#include "server/hub/hub_settings.h"
#include "server/hub/repo_listing.h"
#include "server/hub/repo_name.h"

namespace restkv {

// What a pull tells while it runs; called from its threads, one call at a time.
class PullObserver {
 public:
  virtual ~PullObserver() = default;
  // The files that are missing, before the first is downloaded.
  virtual void on_plan(const RepoName& name, std::span<const RepoFile> files) = 0;
  virtual void on_bytes(size_t file, int64_t done) = 0;  // of the plan's file
  virtual void on_file_done(size_t file) = 0;
  virtual void on_message(const std::string& line) = 0;
};

struct PulledModel {
  std::string path;  // a snapshot's folder, or the .gguf file in it: what load_model takes
  std::string commit;
  int64_t size = 0;  // bytes of the model's files
};

// With the hub's help. `revision`: a branch, tag or commit; empty: main. A true `is_stopped` ends it (kCancelled); what came is
// kept for the next time. kUnavailable: the hub cannot be reached.
Result<PulledModel> pull_model(const HubSettings& settings, const RepoName& name, const std::string& revision,
                               PullObserver& observer, const StopFlag& is_stopped);

// From the cache alone. Error: what is missing.
Result<PulledModel> find_pulled_model(const HubSettings& settings, const RepoName& name,
                                      const std::string& revision);

// What a verb with a MODEL does: from the cache alone when offline; else pulled, and from the cache with a message where
// the hub cannot be reached.
Result<PulledModel> pull_or_find_model(const HubSettings& settings, const RepoName& name,
                                       const std::string& revision, PullObserver& observer,
                                       const StopFlag& is_stopped);

}  // namespace restkv

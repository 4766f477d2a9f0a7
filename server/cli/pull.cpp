// restkv pull ORG/REPO[:QUANT]: the path of the model on stdout, all else on stderr.
#include <cstdio>

#include "server/cli/download_view.h"
#include "server/cli/terminal.h"
#include "server/cli/verbs.h"
#include "server/config/quantity.h"
#include "server/hub/pull.h"

namespace restkv {

int run_pull(const Invocation& invocation) {
  const Settings& settings = invocation.settings();
  const Result<RepoName> name = parse_repo_name(invocation.arguments[0]);
  if (!name.ok()) return fail(name.status().message(), kExitUsage);
  Result<HubSettings> hub = read_hub_settings(process_environment(), settings.model.download_dir);
  if (!hub.ok()) return fail(hub.status());
  hub->max_workers = settings.hub.max_workers;

  const InterruptGuard guard;
  Result<PulledModel> pulled = Status(StatusCode::kInternal, "nothing was pulled");
  {
    DownloadView view;
    pulled = pull_model(*hub, *name, settings.model.revision, view, InterruptGuard::is_interrupted);
  }
  if (!pulled.ok()) {
    const int code = fail(pulled.status());
    return InterruptGuard::is_interrupted() ? kExitInterrupted : code;
  }
  std::fprintf(stderr, "%s is complete: %s, commit %.8s\n", name->text().c_str(),
               rounded_size_text(pulled->size).c_str(), pulled->commit.c_str());
  std::printf("%s\n", pulled->path.c_str());
  return kExitOk;
}

}  // namespace restkv

// restkv rm ORG/REPO[:QUANT]: says what goes, asks on a terminal, removes.
#include <unistd.h>

#include <cstdio>
#include <iostream>

#include "server/cli/verbs.h"
#include "server/config/logging.h"
#include "server/config/quantity.h"
#include "server/hub/hub_cache.h"
#include "server/hub/hub_settings.h"

namespace restkv {
namespace {

bool confirms() {
  std::fputs("Remove it? [y/N] ", stderr);
  std::string answer;
  std::getline(std::cin, answer);
  return answer == "y" || answer == "Y" || answer == "yes";
}

}  // namespace

int run_rm(const Invocation& invocation) {
  const Settings& settings = invocation.settings();
  const Result<RepoName> name = parse_repo_name(invocation.arguments[0]);
  if (!name.ok()) return fail(name.status().message(), kExitUsage);
  const std::string& revision = settings.model.revision;
  if (!revision.empty()) {
    if (Status status = check_revision(revision); !status.ok()) return fail(status.message(), kExitUsage);
  }
  const Result<HubSettings> hub = read_hub_settings(process_environment(), settings.model.download_dir);
  if (!hub.ok()) return fail(hub.status());
  const HubCache cache(hub->cache);
  const Result<CacheRemoval> removal = cache.plan_removal(*name, revision);
  if (!removal.ok()) return fail(removal.status());

  const std::string what =
      name->text() + (revision.empty() ? "" : " at " + revision) + ", " + rounded_size_text(removal->size);
  if (!settings.hub.yes) {
    if (::isatty(STDIN_FILENO) != 1) return fail("nothing was removed (" + what + "): say --yes", kExitUsage);
    std::fprintf(stderr, "%s in %s\n", what.c_str(), escape_text(cache.repo_path(*name).string()).c_str());
    if (!confirms()) return fail("nothing was removed");
  }
  if (Status status = cache.remove(*name, *removal); !status.ok()) return fail(status);
  std::fprintf(stderr, "removed %s\n", what.c_str());
  return kExitOk;
}

}  // namespace restkv

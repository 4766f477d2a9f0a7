// restkv healthcheck [URL]: GET /health/ready of a server, for containers without curl. Exit 0: ready, 1: not.
#include <cstdio>

#include "server/cli/verbs.h"
#include "server/config/logging.h"
#include "server/hub/hub_client.h"

namespace restkv {
namespace {

constexpr std::chrono::seconds kTimeout{5};

// Where the configured server is reached from this machine: an address that stands for all is reached by loopback.
std::string url_of(const ServerSettings& server) {
  std::string host = server.host;
  if (host == "0.0.0.0") host = "127.0.0.1";
  if (host == "::") host = "::1";
  if (host.find(':') != std::string::npos) host = "[" + host + "]";
  return "http://" + host + ":" + std::to_string(server.port);
}

}  // namespace

int run_healthcheck(const Invocation& invocation) {
  HubSettings settings;
  settings.endpoint =
      invocation.arguments.empty() ? url_of(invocation.settings().server) : invocation.arguments[0];
  settings.stall_timeout = kTimeout;
  settings.uses_proxy = false;
  if (!settings.endpoint.starts_with("http://") && !settings.endpoint.starts_with("https://"))
    return fail("'" + escape_text(settings.endpoint) + "' is not a URL such as http://127.0.0.1:8000",
                kExitUsage);
  while (settings.endpoint.ends_with('/')) settings.endpoint.pop_back();
  HubClient client(settings);
  const Result<HubReply> reply = client.get(
      "/health/ready", 0, [](const HubReply&, std::span<const char>) { return true; }, [] { return false; });
  if (!reply.ok()) return fail("not ready: " + reply.status().message());
  if (reply->status != 200)
    return fail("not ready: " + settings.endpoint + " answered " + std::to_string(reply->status));
  std::puts("ready");
  return kExitOk;
}

}  // namespace restkv

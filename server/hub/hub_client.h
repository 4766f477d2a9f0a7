// HTTP to the hub, through libcurl, one connection at a time: one client per thread. Redirects are followed here and not
// by libcurl: the token goes only to the endpoint it was made for (same scheme, host and port), never from https to http,
// and never over plain http to another machine. Messages name hosts, not addresses with their query: those of a store
// are signed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "kernels/base/status.h"
#include "server/hub/hub_settings.h"

namespace restkv {

// True: whoever asked wants no more. Called often, from any thread.
using StopFlag = std::function<bool()>;

struct HubReply {
  int status = 0;
  int64_t first_byte = 0;     // of the body in the file: 206 and its Content-Range; 0 with 200
  int64_t total_size = -1;    // of the file by Content-Range; -1: not said
  std::string error_code;     // X-Error-Code: RepoNotFound, RevisionNotFound, EntryNotFound, GatedRepo
  std::string error_message;  // X-Error-Message, escaped
  int64_t retry_after = 0;    // seconds; 0: not said
};

class HubClient {
 public:
  explicit HubClient(const HubSettings& settings);
  ~HubClient();
  HubClient(const HubClient&) = delete;
  HubClient& operator=(const HubClient&) = delete;

  const HubSettings& settings() const { return settings_; }

  // Gets the body of a 2xx answer; false: enough, the rest is not read. `reply` is complete but for the body.
  using Sink = std::function<bool(const HubReply& reply, std::span<const char> bytes)>;
  // GET of endpoint + `path` from byte `offset` on. An answer of any status is a result; kUnavailable is a connection
  // that failed, stalled or was cut: what came before it went to `sink`. kCancelled: `sink` or `is_stopped` ended it.
  Result<HubReply> get(const std::string& path, int64_t offset, const Sink& sink, const StopFlag& is_stopped);

 private:
  struct Connection;
  std::unique_ptr<Connection> connection_;
  const HubSettings& settings_;
};

// "a/b c" -> "a/b%20c": the parts of a path in an address.
std::string escape_path(std::string_view path);

}  // namespace restkv

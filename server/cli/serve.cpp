// restkv serve MODEL: load, listen, wait for a signal, drain. This thread only waits; SIGINT and SIGTERM are blocked in
// all threads and taken here.
//   SIGHUP, or a file that changed: API keys and cache.profiles are read again, both or neither
//   first signal: no new work, running requests get drain-timeout, then an error -> exit 0
//   second signal: exit at once, 128 + signal
//   engine broken: the streams have their error, exit 1
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <optional>
#include <sstream>

#include "engine/device_name.h"
#include "engine/model/gguf_parts.h"
#include "server/cli/allocation_path.h"
#include "server/cli/machine_checks.h"
#include "server/cli/model_loading.h"
#include "server/cli/service_notify.h"
#include "server/cli/verbs.h"
#include "server/config/build_info.h"
#include "server/config/logging.h"
#include "server/config/quantity.h"
#include "server/grpc/grpc_server.h"
#include "server/http/loading_server.h"
#include "server/http/server.h"
#include "server/hub/repo_name.h"

namespace restkv {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kPollInterval{20};
constexpr milliseconds kLookInterval{1'000};  // whether a file has changed
constexpr milliseconds kErrorGrace{2'000};    // for the errors of what is ended early to reach their clients

sigset_t handled_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGHUP);
  return set;
}

void end_while_loading(int number) {
  std::signal(number, SIG_DFL);
  ::raise(number);  // ends as by the signal: whoever sent it sees no failure
  ::_exit(128 + number);
}

// Until the signals are blocked: SIGINT and SIGTERM end the program, as nobody waits for an answer yet, and SIGHUP asks for what
// is about to be read anyway. By handlers, because this is process 1 of a container, to which the kernel does not deliver what
// nobody handles.
void take_signals_while_loading() {
  struct sigaction action {};
  action.sa_flags = SA_RESTART | SA_NODEFER;
  action.sa_handler = end_while_loading;
  for (const int number : {SIGINT, SIGTERM}) ::sigaction(number, &action, nullptr);
  action.sa_handler = [](int) {};
  ::sigaction(SIGHUP, &action, nullptr);
}

// Shells and service managers give 1,024 files and allow more; a connection takes one.
void allow_open_files(int64_t max_connections) {
  rlimit limit{};
  const auto wanted = static_cast<rlim_t>(max_connections + kSpareFiles);
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) return;
  limit.rlim_cur = std::min(wanted, limit.rlim_max);
  ::setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur >= wanted) return;
  log_event(LogLevel::kWarning,
            "fewer files may be open than max_connections needs: further connections will wait",
            {{"open_files", limit.rlim_cur}, {"max_connections", max_connections}});
}

// The next signal, or nothing after kPollInterval.
std::optional<int> poll_signal() {
  const sigset_t set = handled_signals();
  const timespec interval{0, std::chrono::nanoseconds(kPollInterval).count()};
  const int signal = ::sigtimedwait(&set, nullptr, &interval);
  return signal > 0 ? std::optional(signal) : std::nullopt;
}

// Clients see no path of this machine: the default id is `demo`, ORG/REPO as given, or the last part of the path.
std::string served_name(const Settings& settings, const Model& model) {
  if (!settings.model.served_name.empty()) return settings.model.served_name;
  if (settings.model.path == "demo") return "demo";
  std::error_code error;
  const bool is_path = std::filesystem::exists(settings.model.path, error);
  if (!is_path && parse_repo_name(settings.model.path).ok()) return settings.model.path;
  const std::filesystem::path path = std::filesystem::path(model.path).lexically_normal();
  if (path.extension() == ".gguf") return gguf_model_name(path.string());
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

std::string address_text(const std::string& host, uint16_t port) {
  const bool is_v6 = host.find(':') != std::string::npos;
  return (is_v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

// What becomes of long sequences unless a request says otherwise.
std::string cache_message(const CacheSettings& cache, const std::string& allocation_file) {
  if (cache.policy == PolicyKind::kFull)
    return "policy full: the cache grows with each sequence, nothing is evicted; change with --policy, "
           "--budget";
  const std::string budget = std::to_string(cache.budget);
  std::string text = "policy " + std::string(policy_name(cache.policy));
  if (cache.fraction) {
    text += ", budget " + shortest_text(*cache.fraction) + " of the prompt, at most " + budget;
  } else {
    text += ", budget " + budget + ": answers are exact while prompt + max_tokens <= " + budget;
  }
  text += "; change with --budget / --policy full";
  if (cache.policy == PolicyKind::kRestkv && cache.allocation == Allocation::kUniform)
    text += allocation_file.empty() ? "; no calibrated allocation for this model, budgets are uniform"
                                    : "; budgets are uniform";
  if (cache.allocation == Allocation::kCalibrated) text += "; budgets calibrated by " + allocation_file;
  return text;
}

// Null: off. A default port that is taken does not keep HTTP from serving; one that was asked for does.
Result<std::unique_ptr<GrpcServer>> start_grpc(const std::shared_ptr<Serving>& serving) {
  const GrpcSettings& grpc = serving->settings.grpc;
  if (!grpc.enabled) return std::unique_ptr<GrpcServer>();
  const int64_t port =
      grpc.port.value_or(serving->settings.server.port == 0 ? 0 : GrpcSettings::kDefaultPort);
  Result<std::unique_ptr<GrpcServer>> server = GrpcServer::start(serving, static_cast<uint16_t>(port));
  if (server.ok() || grpc.port) return server;
  log_event(LogLevel::kWarning, "no gRPC: " + server.status().message());
  return std::unique_ptr<GrpcServer>();
}

// Both protocols of this process.
struct Servers {
  std::unique_ptr<HttpServer> http;
  std::unique_ptr<GrpcServer> grpc;  // null: off
  bool is_idle() const { return http->is_idle() && (!grpc || grpc->is_idle()); }
  void drain() {
    http->drain();
    if (grpc) grpc->drain();
  }
  void stop() {
    http->stop();
    if (grpc) grpc->stop();
  }
};

bool load_access(Serving& serving, CacheProfiles profiles) {
  const size_t num_profiles = profiles.size();
  const std::vector<std::string> errors = serving.load_access(std::move(profiles));
  for (const std::string& error : errors) log_event(LogLevel::kError, "API keys and profiles: " + error);
  if (errors.empty() && (serving.access.has_keys() || num_profiles > 0)) {
    log_event(LogLevel::kInfo, "API keys loaded",
              {{"keys", serving.access.num_keys()}, {"profiles", num_profiles}});
  }
  return errors.empty();
}

// What a reload reads: the key file and the YAML.
class Reloader {
 public:
  Reloader(Serving& serving, const Invocation& invocation)
      : serving_(serving), invocation_(invocation), loaded_(version()) {}

  bool has_changed() const { return serving_.access.has_changed() || version() != loaded_; }

  // All or nothing: with an error the keys and profiles before stay.
  void reload() {
    loaded_ = version();  // a file with errors is not read again until it changes
    LoadedSettings now = load_settings(kServe, invocation_.flags, process_environment());
    for (const std::string& error : now.errors) log_event(LogLevel::kError, "configuration: " + error);
    if (!now.errors.empty() || !load_access(serving_, std::move(now.settings.cache.profiles))) {
      log_event(LogLevel::kError, "nothing was changed: the API keys and profiles before stay");
      return;
    }
    std::string others;
    for (const Option& option : option_table()) {
      if (option.section.empty() ||
          option_text(option, now.settings) == option_text(option, invocation_.settings()))
        continue;
      others += (others.empty() ? "" : ", ") + std::string(option.section) + "." + std::string(option.key);
    }
    if (!others.empty()) {
      log_event(LogLevel::kWarning,
                "a reload changes API keys and cache.profiles alone; this needs a restart",
                {{"settings", others}});
    }
  }

 private:
  FileVersion version() const { return file_version(invocation_.settings().config_file); }

  Serving& serving_;
  const Invocation& invocation_;
  FileVersion loaded_;
};

// Waits until no request runs. A second signal ends the program here.
void wait_until_idle(const Servers& server, milliseconds timeout) {
  const Clock::time_point deadline = Clock::now() + timeout;
  while (!server.is_idle() && Clock::now() < deadline) {
    const std::optional<int> signal = poll_signal();
    if (signal && *signal != SIGHUP && !server.is_idle()) {
      log_event(LogLevel::kWarning, "second signal: stopped at once");
      std::_Exit(128 + *signal);
    }
  }
}

// Those who have not finished in time get an error that says so, a 503 or the last event of their stream.
void drain(Servers& server, Engine& engine, milliseconds timeout) {
  log_event(LogLevel::kInfo, "draining: running requests may finish, a second signal stops at once",
            {{"timeout", duration_text(timeout)}});
  server.drain();
  notify_service_manager("STOPPING=1");
  wait_until_idle(server, timeout);
  if (server.is_idle()) return;
  log_event(LogLevel::kWarning, "drain timeout: requests that still run are cancelled");
  engine.cancel_all();
  wait_until_idle(server, kErrorGrace);
}

}  // namespace

int run_serve(const Invocation& invocation) {
  Settings settings = invocation.settings();
  std::signal(SIGPIPE, SIG_IGN);  // whoever reads the log may go
  std::signal(SIGXFSZ, SIG_IGN);  // its file may reach its limit
  take_signals_while_loading();
  set_up_logging(settings.logging);
  log_event(LogLevel::kInfo, "restkv", {{"version", build_version()}, {"commit", build_commit()}});
  if (Status status = check_key_source(settings.server.api_key); !status.ok())
    return fail(status.message(), kExitUsage);
  allow_open_files(settings.server.max_connections);
  const Clock::time_point start = Clock::now();
  Result<std::unique_ptr<LoadingServer>> loading = LoadingServer::start(settings.server);
  if (!loading.ok()) return fail(loading.status());
  log_event(LogLevel::kInfo, "loading the model: the port answers, /health/ready is 503 until it is there",
            {{"port", (*loading)->port()}});
  Result<LoadedModel> loaded = load_model_and_tokenizer(settings);
  if (!loaded.ok()) return fail(loaded.status());
  if (Status status = apply_allocation(*loaded->model, settings); !status.ok()) return fail(status);

  const sigset_t signals = handled_signals();  // before the first thread, so that all inherit it
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  Result<std::unique_ptr<Engine>> started = Engine::start(loaded->model, settings.engine);
  if (!started.ok()) return fail(started.status());
  const std::shared_ptr<Engine> engine = *std::move(started);
  const ServedModel model{served_name(settings, *loaded->model), engine, loaded->tokenizer,
                          loaded->chat_format};

  const MemoryPlan& plan = engine->memory_plan();
  log_event(LogLevel::kInfo, "model loaded",
            {{"id", model.name},
             {"path", loaded->model->path},
             {"device", device_text(settings.engine)},
             {"seconds", std::chrono::duration<double>(Clock::now() - start).count()}});
  log_event(LogLevel::kInfo, "memory plan",
            {{"weights", rounded_size_text(plan.weights)},
             {"workspace", rounded_size_text(plan.workspace)},
             {"scratch", rounded_size_text(plan.scratch)},
             {"cache", rounded_size_text(plan.pool)},
             {"pages", plan.pages},
             {"sequences", plan.max_sequences},
             {"tokens_each", plan.max_model_len}});
  log_event(LogLevel::kInfo, cache_message(settings.engine.cache, settings.cache.allocation_in_use));
  if (const Status status = loaded->chat_format->status(); !status.ok()) {
    log_event(LogLevel::kWarning, "no chat: " + status.message());
  } else {
    log_event(LogLevel::kInfo, "chat template", {{"from", loaded->chat_format->origin()}});
  }

  const auto serving = std::make_shared<Serving>(settings, model);
  Reloader reloader(*serving, invocation);
  if (!load_access(*serving, settings.cache.profiles))
    return fail("the API keys and profiles could not be loaded", kExitUsage);
  Result<std::unique_ptr<HttpServer>> listening = HttpServer::start(serving, (*loading)->release());
  if (!listening.ok()) return fail(listening.status());
  Result<std::unique_ptr<GrpcServer>> grpc = start_grpc(serving);
  if (!grpc.ok()) return fail(grpc.status());
  Servers server{*std::move(listening), *std::move(grpc)};
  if (server.grpc) {
    log_event(LogLevel::kInfo, "gRPC on " + address_text(settings.grpc.host, server.grpc->port()));
  }
  const std::string url = "http://" + address_text(settings.server.host, server.http->port());
  log_event(LogLevel::kInfo, "Listening on " + url, {{"model", model.name}});
  if (!notify_service_manager("READY=1\nSTATUS=" + url))
    log_event(LogLevel::kWarning,
              "NOTIFY_SOCKET is set and cannot be reached: nobody was told that the server is ready");

  Clock::time_point next_look = Clock::now() + kLookInterval;
  while (engine->is_healthy()) {
    const std::optional<int> signal = poll_signal();
    if (signal == SIGHUP || (Clock::now() >= next_look && reloader.has_changed())) reloader.reload();
    if (Clock::now() >= next_look) next_look = Clock::now() + kLookInterval;
    if (!signal || signal == SIGHUP) continue;
    drain(server, *engine, settings.server.drain_timeout);
    server.stop();
    log_event(LogLevel::kInfo, "stopped");
    return kExitOk;
  }
  log_event(LogLevel::kError, "the engine is broken: the server ends");
  // What the last turns did: numbers only.
  std::istringstream trace(engine->fault_trace());
  for (std::string line; std::getline(trace, line);) log_event(LogLevel::kError, "engine trace: " + line);
  drain(server, *engine, std::min(settings.server.drain_timeout, kErrorGrace));
  server.stop();
  return kExitFailure;
}

}  // namespace restkv

// What the server costs beside the engine: a fake engine gives every stream one token a step, clients in another process read.
//   server_bench sse [streams] [tokens] [step_us]    tokens/s, CPU of this process but the fake engine's, /health meanwhile
//   server_bench grpc [streams] [tokens] [step_us]   messages/s and the same
//   server_bench idle [connections]                  resident memory of a connection that waits
//   server_bench queue [requests]                    from the client's send to the engine's queue, one request at a time
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "server/config/logging.h"
#include "server/grpc/grpc_server.h"
#include "server/http/server.h"
#include "tests/bench/grpc_reader.h"
#include "tests/bench/sse_reader.h"
#include "tests/server/fake_engine.h"
#include "tests/server/raw_client.h"

namespace {

using namespace restkv;

// The fake engine, which also notes when a request reaches its queue.
class TimedEngine final : public Engine {
 public:
  explicit TimedEngine(FakeEngineOptions options) : engine_(std::move(options)) {}
  Status submit(const std::shared_ptr<RequestHandle>& handle) override {
    submitted_ = Clock::now().time_since_epoch().count();
    return engine_.submit(handle);
  }
  int64_t submitted() const { return submitted_; }
  void drain() override { engine_.drain(); }
  bool is_idle() const override { return engine_.is_idle(); }
  bool is_healthy() const override { return engine_.is_healthy(); }
  std::vector<RequestInfo> requests(std::string_view owner) const override { return engine_.requests(owner); }
  bool cancel(std::string_view id, std::string_view owner) override { return engine_.cancel(id, owner); }
  void cancel_all() override { engine_.cancel_all(); }
  EngineStats stats() const override { return engine_.stats(); }
  Histograms histograms() const override { return engine_.histograms(); }
  std::string fault_trace() const override { return engine_.fault_trace(); }
  TraceStore& traces() override { return engine_.traces(); }
  const Model& model() const override { return engine_.model(); }
  const MemoryPlan& memory_plan() const override { return engine_.memory_plan(); }
  const EngineOptions& options() const override { return engine_.options(); }

 private:
  FakeEngine engine_;
  std::atomic<int64_t> submitted_{0};
};

std::vector<pid_t> threads() {
  std::vector<pid_t> ids;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task"))
    ids.push_back(static_cast<pid_t>(std::stol(entry.path().filename().string())));
  return ids;
}

// CPU time of this process's threads, without those of `excluded`.
double cpu_seconds(const std::vector<pid_t>& excluded) {
  double sum = 0;
  for (const pid_t thread : threads()) {
    if (std::find(excluded.begin(), excluded.end(), thread) != excluded.end()) continue;
    constexpr unsigned kThreadSchedulerClock = 6;  // Linux: how a thread's id names its CPU clock
    timespec time{};
    ::clock_gettime(static_cast<clockid_t>(~static_cast<unsigned>(thread) << 3 | kThreadSchedulerClock),
                    &time);
    sum += static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  }
  return sum;
}

int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  int64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

double percentile(std::vector<double>& values, double part) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<size_t>(part * static_cast<double>(values.size())))];
}

struct ServerUnderTest {
  std::shared_ptr<TimedEngine> engine;
  std::vector<pid_t> engine_threads;  // and the main one, which waits
  std::unique_ptr<HttpServer> http;
  std::unique_ptr<GrpcServer> grpc;

  explicit ServerUnderTest(int step_us) {
    Settings settings;
    settings.server.port = 0;
    settings.server.max_connections = 100'000;
    settings.server.idle_timeout = std::chrono::hours(1);
    settings.server.header_timeout = std::chrono::hours(1);
    settings.logging.level = LogLevel::kError;
    set_up_logging(settings.logging);
    FakeEngineOptions options;
    options.answer = "The quick brown fox jumps over the lazy dog. ";
    options.step = std::chrono::microseconds(step_us);
    options.max_model_len = 1 << 30;
    options.max_queue = 1 << 20;
    engine = std::make_shared<TimedEngine>(options);
    engine_threads = threads();
    const auto serving =
        std::make_shared<Serving>(settings, ServedModel{"model", engine, std::make_shared<ByteTokenizer>()});
    Result<std::unique_ptr<HttpServer>> started = HttpServer::start(serving);
    CHECK(started.ok()) << started.status().message();
    http = *std::move(started);
    Result<std::unique_ptr<GrpcServer>> grpc_started = GrpcServer::start(serving, 0);
    CHECK(grpc_started.ok()) << grpc_started.status().message();
    grpc = *std::move(grpc_started);
  }
};

struct Ports {
  uint16_t http = 0, grpc = 0;
};

std::string post(const std::string& body) {
  return "POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: " +
         std::to_string(body.size()) + "\r\n\r\n" + body;
}

int read_sse(uint16_t port, int num_streams, int num_tokens) {
  return read_event_streams(port, num_streams,
                            post("{\"prompt\":\"a\",\"ignore_eos\":true,\"stream\":true,\"max_tokens\":" +
                                 std::to_string(num_tokens) + "}"));
}

// /health every 5 ms until told to stop; prints the percentiles.
void time_health(uint16_t port, const std::atomic<bool>& stops) {
  RawClient client(port);
  std::vector<double> ms;
  while (!stops) {
    const auto begin = Clock::now();
    client.send("GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    client.receive_until("\"ok\"}");
    ms.push_back(std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  std::printf("health: %zu requests | p50 %.2f ms | p99 %.2f ms | max %.2f ms\n", ms.size(),
              percentile(ms, 0.5), percentile(ms, 0.99), percentile(ms, 1.0));
}

// In the child: the clients. Prints messages read (gRPC) and the health figures; the exit code counts failed streams.
int run_clients(bool is_grpc, Ports ports, int num_streams, int num_tokens) {
  std::atomic<bool> stops{false};
  std::thread health([&] { time_health(ports.http, stops); });
  const auto begin = Clock::now();
  GrpcReading reading;
  int failures = 0;
  if (is_grpc) {
    reading = read_grpc(ports.grpc, num_streams, num_tokens);
    failures = reading.failures;
  } else {
    failures = read_sse(ports.http, num_streams, num_tokens);
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  stops = true;
  health.join();
  if (is_grpc)
    std::printf("gRPC: %lld messages | %.0f messages/s\n", static_cast<long long>(reading.messages),
                static_cast<double>(reading.messages) / seconds);
  std::fflush(stdout);
  return std::min(failures, 100);
}

int bench_streams(bool is_grpc, int num_streams, int num_tokens, int step_us) {
  int port_pipe[2];
  if (::pipe(port_pipe) != 0) return 1;
  const pid_t child = ::fork();  // before there are threads
  if (child == 0) {
    Ports ports;
    if (::read(port_pipe[0], &ports, sizeof ports) != sizeof ports) ::_exit(100);
    ::_exit(run_clients(is_grpc, ports, num_streams, num_tokens));
  }
  ServerUnderTest server(step_us);
  const Ports ports{server.http->port(), server.grpc->port()};
  const double cpu_begin = cpu_seconds(server.engine_threads);
  const auto begin = Clock::now();
  if (::write(port_pipe[1], &ports, sizeof ports) != sizeof ports) return 1;
  int status = 0;
  ::waitpid(child, &status, 0);
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  const double cpu = cpu_seconds(server.engine_threads) - cpu_begin;
  const double tokens = static_cast<double>(num_streams) * num_tokens;
  std::printf(
      "%s: streams %d | tokens %.0f | %.0f tokens/s | %.2f us CPU a token (%.0f tokens/s a core) | failed "
      "streams %d\n",
      is_grpc ? "gRPC" : "SSE", num_streams, tokens, tokens / seconds, cpu * 1e6 / tokens, tokens / cpu,
      WEXITSTATUS(status));
  return WEXITSTATUS(status) == 0 ? 0 : 1;
}

int bench_idle(int num_connections) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  int port_pipe[2], ready_pipe[2];
  if (::pipe(port_pipe) != 0 || ::pipe(ready_pipe) != 0) return 1;
  const pid_t child = ::fork();
  if (child == 0) {
    uint16_t port = 0;
    if (::read(port_pipe[0], &port, sizeof port) != sizeof port) ::_exit(1);
    std::vector<std::unique_ptr<RawClient>> clients;
    for (int i = 0; i < num_connections; ++i) {  // each had a request
      clients.push_back(std::make_unique<RawClient>(port));
      clients.back()->send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n");
      clients.back()->receive_until("\"ok\"}");
    }
    const char ready = 1;
    if (::write(ready_pipe[1], &ready, 1) != 1) ::_exit(1);
    char go = 0;
    ::_exit(::read(port_pipe[0], &go, 1) == 1 ? 0 : 1);
  }
  ServerUnderTest server(1000);
  const int64_t before = resident_bytes();
  const uint16_t port = server.http->port();
  char ready = 0;
  if (::write(port_pipe[1], &port, sizeof port) != sizeof port || ::read(ready_pipe[0], &ready, 1) != 1)
    return 1;
  const int64_t after = resident_bytes();
  std::printf("idle: %d connections | %.1f KiB resident each | %.1f MiB before, %.1f MiB with them\n",
              num_connections, static_cast<double>(after - before) / 1024 / num_connections,
              static_cast<double>(before) / (1 << 20), static_cast<double>(after) / (1 << 20));
  if (::write(port_pipe[1], &ready, 1) != 1) return 1;
  ::waitpid(child, nullptr, 0);
  return 0;
}

int bench_queue(int num_requests) {
  ServerUnderTest server(50);
  std::vector<double> us;
  const std::string request =
      post("{\"prompt\":\"Once upon a time there was a little girl\",\"max_tokens\":2}");
  for (int i = 0; i < num_requests; ++i) {
    RawClient client(server.http->port());
    const int64_t before = server.engine->submitted();
    const auto begin = Clock::now();
    client.send(request);
    client.receive_until("timings");
    const int64_t submitted = server.engine->submitted();
    if (submitted == before) return std::fprintf(stderr, "a request did not reach the engine\n"), 1;
    us.push_back(static_cast<double>(submitted - begin.time_since_epoch().count()) / 1e3);
  }
  std::printf("queue: %d requests | POST to queue p50 %.0f us | p99 %.0f us | max %.0f us\n", num_requests,
              percentile(us, 0.5), percentile(us, 0.99), percentile(us, 1.0));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  const auto number = [&](int at, int otherwise) { return argc > at ? std::atoi(argv[at]) : otherwise; };
  if (what == "sse") return bench_streams(false, number(2, 256), number(3, 2000), number(4, 1000));
  if (what == "grpc") return bench_streams(true, number(2, 64), number(3, 4000), number(4, 1000));
  if (what == "idle") return bench_idle(number(2, 5000));
  if (what == "queue") return bench_queue(number(2, 5000));
  std::fprintf(
      stderr, "server_bench sse|grpc [streams] [tokens] [step_us] | idle [connections] | queue [requests]\n");
  return 2;
}

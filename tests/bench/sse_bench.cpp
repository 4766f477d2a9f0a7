// What a streamed token costs the server beside the engine: a fake engine gives every stream one token a step, clients in
// another process read, and the CPU time of this process's threads but the fake engine's is divided by the tokens.
//   sse_bench [streams] [tokens] [step_us]      prints one line: streams, tokens/s, CPU microseconds a token
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "server/config/logging.h"
#include "server/http/server.h"
#include "tests/server/fake_engine.h"
#include "tests/server/raw_client.h"

namespace {

using namespace restkv;

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

int read_streams(uint16_t port, int num_streams, int num_tokens) {
  const std::string body =
      "{\"prompt\":\"a\",\"ignore_eos\":true,\"stream\":true,\"max_tokens\":" + std::to_string(num_tokens) +
      "}";
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < num_streams; ++i) {
    clients.push_back(std::make_unique<RawClient>(port));
    clients.back()->send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: " +
                         std::to_string(body.size()) + "\r\n\r\n" + body);
  }
  int failures = 0;
  for (const auto& client : clients) {
    failures +=
        !client->receive_until("data: [DONE]", 600).ends_with("\r\n0\r\n\r\n") && !client->is_closed();
  }
  return failures;
}

}  // namespace

int main(int argc, char** argv) {
  const int num_streams = argc > 1 ? std::atoi(argv[1]) : 32;
  const int num_tokens = argc > 2 ? std::atoi(argv[2]) : 2000;
  const int step_us = argc > 3 ? std::atoi(argv[3]) : 1000;
  int port_pipe[2];
  if (::pipe(port_pipe) != 0) return 1;
  const pid_t child = ::fork();  // before there are threads
  if (child == 0) {
    uint16_t port = 0;
    if (::read(port_pipe[0], &port, sizeof port) != sizeof port) return 1;
    return read_streams(port, num_streams, num_tokens);
  }

  Settings settings;
  settings.server.port = 0;
  settings.logging.level = LogLevel::kError;
  set_up_logging(settings.logging);
  FakeEngineOptions options;
  options.answer = "The quick brown fox jumps over the lazy dog. ";
  options.step = std::chrono::microseconds(step_us);
  options.max_model_len = 1 << 30;
  options.max_queue = 1 << 20;
  const auto engine = std::make_shared<FakeEngine>(options);
  const std::vector<pid_t> engine_threads = threads();  // and this one, which waits
  auto server = HttpServer::start(settings, {"model", engine, std::make_shared<ByteTokenizer>()});
  if (!server.ok()) return std::fprintf(stderr, "%s\n", server.status().message().c_str()), 1;
  const uint16_t port = (*server)->port();
  const double cpu_begin = cpu_seconds(engine_threads);
  const auto begin = std::chrono::steady_clock::now();
  if (::write(port_pipe[1], &port, sizeof port) != sizeof port) return 1;
  int status = 0;
  ::waitpid(child, &status, 0);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const double cpu = cpu_seconds(engine_threads) - cpu_begin;
  const double tokens = static_cast<double>(num_streams) * num_tokens;
  std::printf("streams %d | tokens %.0f | %.0f tokens/s | %.2f us CPU a token | failed streams %d\n",
              num_streams, tokens, tokens / seconds, cpu * 1e6 / tokens, WEXITSTATUS(status));
  return WEXITSTATUS(status) == 0 ? 0 : 1;
}

// What the HTTP and the gRPC server of one process share: the model, the settings, the workers, ids and seeds. Written
// before the first request, except for the atomics and what the mutex guards.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_set>

#include "server/access/access_control.h"
#include "server/config/settings.h"
#include "server/openai/completion_job.h"
#include "server/serving/response_counts.h"
#include "server/serving/served_model.h"

namespace boost::asio {
class thread_pool;
}

namespace restkv {

struct Serving {
  Serving(const Settings& settings, ServedModel model);
  ~Serving();  // waits for the workers

  // "cmpl-" and 24 random letters and digits.
  std::string new_id(std::string_view prefix);
  // Of an answer: "chatcmpl-" or "cmpl-" and the request's own id, or a new one.
  std::string answer_id(const CompletionJob& job);
  uint64_t new_seed();
  // One warning a name, so that a client cannot fill the log.
  void warn_unknown_fields(const std::vector<std::string>& names);
  // New work is refused from now on; what runs goes on.
  void drain();
  // Why new work is refused before it is read: shutting down, or the queue is full.
  Status check_room() const;
  // The same for what needs a worker and not the engine: as many may wait for one as for the engine.
  Status check_workers() const;
  bool is_ready() const { return !is_draining && model.engine->is_healthy(); }
  CompletionContext completion_context(const Caller& caller) const;
  // API keys and cache.profiles, both or neither: with errors what was in force stays. Requests that run go on with what they
  // came with. The first time: before the first request.
  std::vector<std::string> load_access(CacheProfiles profiles);
  // Runs `make`, from a request's body to its job, and counts its time for /metrics.
  Result<CompletionJob> time_job(const std::function<Result<CompletionJob>()>& make);
  // Runs `work` on a worker thread: parsing large bodies, tokenising.
  void post(std::function<void()> work);

  const Settings settings;
  const ServedModel model;
  AccessControl access;                   // load_access() loads it
  const int64_t created;                  // Unix seconds
  const size_t max_token_bytes;           // of the vocabulary's longest token
  const SamplingParams sampling;          // what requests leave open, as the model's files say
  const std::vector<int32_t> end_tokens;  // of the tokenizer, those that the model has
  std::atomic<bool> is_draining{false};
  std::atomic<int64_t> num_jobs{0};  // waiting for or running on the workers
  // For /metrics.
  std::atomic<int64_t> num_slow_clients{0};  // that took nothing for write_timeout
  std::atomic<int64_t> num_tokenized{0}, tokenize_ns{0};
  ResponseCounts responses;

 private:
  const uint64_t random_key_;
  std::atomic<uint64_t> counter_{0};
  mutable std::mutex mutex_;  // guards what follows
  std::unordered_set<std::string> warned_fields_;
  std::shared_ptr<const CacheProfiles> profiles_;
  std::unique_ptr<boost::asio::thread_pool> workers_;  // last: its jobs use the others
};

}  // namespace restkv

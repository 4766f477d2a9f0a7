// An engine that answers with a given text, a byte a token: for tests of the server alone.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "tests/server/byte_tokenizer.h"

namespace restkv {

struct FakeEngineOptions {
  std::string answer = "hello world";  // byte by byte, then the end token (or again, with ignore_eos)
  std::chrono::microseconds step{0};   // between two tokens
  int64_t max_model_len = 256;
  int32_t max_queue = 64;
  int32_t nan_at = -1;  // the token index at which the request ends with an error
};

class FakeEngine final : public Engine {
 public:
  explicit FakeEngine(FakeEngineOptions options);
  ~FakeEngine() override;

  Status submit(const std::shared_ptr<RequestHandle>& handle) override;
  void drain() override { is_draining_ = true; }
  bool is_idle() const override;
  bool is_healthy() const override { return is_healthy_ && !is_draining_; }
  std::vector<RequestInfo> requests(std::string_view owner) const override;
  bool cancel(std::string_view id, std::string_view owner) override;
  void cancel_all() override;
  EngineStats stats() const override;
  Histograms histograms() const override { return {}; }
  std::string fault_trace() const override { return {}; }
  TraceStore& traces() override { return traces_; }
  const Model& model() const override { return model_; }
  const MemoryPlan& memory_plan() const override { return plan_; }
  const EngineOptions& options() const override { return engine_options_; }

  void hold(bool on);  // while on, nothing runs
  void fail() { is_healthy_ = false; }
  int64_t num_cancelled() const { return num_cancelled_; }
  int64_t num_choices_cancelled() const { return num_choices_cancelled_; }
  int64_t num_tokens() const { return num_tokens_; }
  Request last_request() const;

 private:
  struct Running {
    std::shared_ptr<RequestHandle> handle;
    int32_t choice = 0;
    int32_t generated = 0;
  };
  void run();
  bool step(Running& running);  // false: it ended
  void finish(Running& running, FinishReason reason, int32_t token, Status error = {});

  TraceStore traces_{TraceStore::Limits{}};
  const FakeEngineOptions options_;
  Model model_;
  MemoryPlan plan_;
  EngineOptions engine_options_;
  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::deque<Running> queue_;
  std::vector<std::weak_ptr<RequestHandle>> handles_;  // of all that was submitted and is held by somebody
  int64_t num_open_ = 0;                               // choices queued or running
  Request last_request_;
  bool is_stopping_ = false, is_held_ = false;
  std::atomic<bool> is_draining_{false}, is_healthy_{true};
  std::atomic<int64_t> num_cancelled_{0}, num_choices_cancelled_{0}, num_tokens_{0};
  std::thread thread_;
};

}  // namespace restkv

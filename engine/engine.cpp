// The engine thread around EngineCore: the inbox, the registry of requests in flight, limits and snapshots for other
// threads. Clients' threads come here; the core belongs to the engine thread.
#include "engine/engine.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <tuple>
#include <unordered_map>

#include "engine/device.h"
#include "engine/engine_core.h"

namespace restkv {
namespace {

// The sums of the pages are looked at after every turn; each page is in the sanitizers' builds alone.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kWalksPages = true;
#else
constexpr bool kWalksPages = false;
#endif

class LocalEngine final : public Engine {
 public:
  LocalEngine(std::shared_ptr<const Model> model, const EngineOptions& options, const MemoryPlan& plan,
              std::unique_ptr<Backend> backend)
      : model_(std::move(model)),
        options_(options),
        plan_(plan),
        backend_(std::move(backend)),
        core_(*model_, options_, plan_, *backend_, &Clock::now) {}

  // Before the first request. Throws DeviceError.
  void begin() {
    core_.fit_costs();
    stats_ = core_.stats();
    thread_ = std::thread([this] { run(); });
  }

  ~LocalEngine() override {
    if (!thread_.joinable()) return;
    {
      const std::lock_guard lock(mutex_);
      is_stopping_ = true;
    }
    work_.notify_one();
    thread_.join();
  }

  Status submit(const std::shared_ptr<RequestHandle>& handle) override;
  std::vector<RequestInfo> requests(std::string_view owner) const override;
  bool cancel(std::string_view id, std::string_view owner) override;
  void cancel_all() override;

  void drain() override {
    const std::lock_guard lock(mutex_);
    is_draining_ = true;
  }
  bool is_idle() const override {
    const std::lock_guard lock(mutex_);
    return registry_.empty();
  }
  bool is_healthy() const override {
    const std::lock_guard lock(mutex_);
    return !is_broken_ && !is_draining_;
  }
  EngineStats stats() const override {
    const std::lock_guard lock(mutex_);
    return stats_;
  }
  Histograms histograms() const override {
    const std::lock_guard lock(mutex_);
    return histograms_;
  }
  TraceStore& traces() override { return core_.traces(); }
  std::string fault_trace() const override {
    const std::lock_guard lock(mutex_);
    return fault_trace_;
  }
  const Model& model() const override { return *model_; }
  const MemoryPlan& memory_plan() const override { return plan_; }
  const EngineOptions& options() const override { return options_; }

 private:
  void run();
  void take_inbox();
  void publish();

  const std::shared_ptr<const Model> model_;
  const EngineOptions options_;
  const MemoryPlan plan_;
  const std::unique_ptr<Backend> backend_;
  EngineCore core_;  // engine thread, but for check()

  mutable std::mutex mutex_;  // everything below
  std::condition_variable work_;
  std::deque<std::shared_ptr<RequestHandle>> inbox_;
  int64_t inbox_choices_ = 0, inbox_tokens_ = 0;
  std::unordered_multimap<std::string, std::shared_ptr<RequestHandle>> registry_;  // in flight, by id
  std::unordered_map<std::string, int32_t> num_by_owner_;                          // in flight
  EngineStats stats_;  // of the last turn; waiting counts are exact at submit
  Histograms histograms_;
  std::string fault_trace_;
  bool is_stopping_ = false, is_draining_ = false, is_broken_ = false;

  std::thread thread_;  // last: it uses all of the above
};

Status LocalEngine::submit(const std::shared_ptr<RequestHandle>& handle) {
  const Request& request = handle->request;
  if (Status s = core_.check(request); !s.ok()) return s;
  const auto choices = static_cast<size_t>(request.num_choices);
  // Room for every record the request can produce: the engine never waits for its reader and never allocates
  // for it.
  handle->stream.reserve(choices * (static_cast<size_t>(request.max_tokens) + 1) +
                         (request.prompt_logprobs >= 0 ? choices * request.prompt.size() : 0));
  handle->cancels = core_.cancels();
  {
    const std::lock_guard lock(mutex_);
    if (is_broken_) return {StatusCode::kUnavailable, "the engine failed; see the log"};
    if (is_draining_ || is_stopping_)
      return Status(StatusCode::kUnavailable, "the server is shutting down").with_reason("draining");
    const auto tokens = static_cast<int64_t>(choices * request.prompt.size());
    if (Status s = core_.check_queue(request, stats_.waiting, stats_.waiting_tokens); !s.ok()) return s;
    const int32_t limit =
        request.max_owner_requests > 0 ? request.max_owner_requests : options_.max_owner_requests;
    int32_t& num_of_owner = num_by_owner_[request.owner];
    if (limit > 0 && num_of_owner >= limit) {
      return Status(StatusCode::kResourceExhausted, "this API key has " + std::to_string(num_of_owner) +
                                                        " requests in flight and may have " +
                                                        std::to_string(limit) + "; try again later")
          .with_reason("concurrency_limit");
    }
    ++num_of_owner;
    registry_.emplace(request.id, handle);
    inbox_choices_ += request.num_choices;
    inbox_tokens_ += tokens;
    stats_.waiting += request.num_choices;
    stats_.waiting_tokens += tokens;
    inbox_.push_back(handle);
  }
  work_.notify_one();
  return {};
}

std::vector<RequestInfo> LocalEngine::requests(std::string_view owner) const {
  const Clock::time_point now = Clock::now();
  std::vector<RequestInfo> list;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, handle] : registry_) {
      const Request& request = handle->request;
      if (request.owner != owner) continue;
      list.push_back({.id = id,
                      .phase = handle->phase.load(std::memory_order_relaxed),
                      .prompt_tokens = static_cast<int64_t>(request.prompt.size()),
                      .generated_tokens = handle->num_generated.load(std::memory_order_relaxed),
                      .max_tokens = request.max_tokens,
                      .num_choices = request.num_choices,
                      .priority = request.priority,
                      .age_seconds = seconds_between(request.arrival, now)});
    }
  }
  std::sort(list.begin(), list.end(), [](const RequestInfo& a, const RequestInfo& b) {
    return std::tie(b.age_seconds, a.id) < std::tie(a.age_seconds, b.id);
  });
  return list;
}

bool LocalEngine::cancel(std::string_view id, std::string_view owner) {
  const std::lock_guard lock(mutex_);
  const auto [begin, end] = registry_.equal_range(std::string(id));
  bool found = false;
  for (auto it = begin; it != end; ++it) {
    if (it->second->request.owner != owner) continue;
    it->second->cancel();
    found = true;
  }
  return found;
}

void LocalEngine::cancel_all() {
  const std::lock_guard lock(mutex_);
  for (const auto& [id, handle] : registry_) handle->cancel();
}

void LocalEngine::run() {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      if (inbox_.empty() && core_.is_empty()) {
        lock.unlock();
        if (!core_.check_pages(kWalksPages)) publish();
        lock.lock();
        work_.wait(lock, [this] { return is_stopping_ || !inbox_.empty(); });
      }
      if (is_stopping_) break;
    }
    take_inbox();
    core_.turn();
    core_.check_pages(kWalksPages);
    core_.flush();
    publish();
    if (!core_.is_healthy()) {
      // Nothing is admitted any more: what waits would wait for ever.
      take_inbox();
      core_.fail_all({StatusCode::kUnavailable, "the engine failed; see the log"});
      core_.flush();
      publish();
    }
  }
  take_inbox();
  core_.fail_all({StatusCode::kCancelled, "the server stopped"});
  core_.flush();
  publish();
}

void LocalEngine::take_inbox() {
  std::deque<std::shared_ptr<RequestHandle>> arrived;
  {
    const std::lock_guard lock(mutex_);
    arrived.swap(inbox_);
    inbox_choices_ = inbox_tokens_ = 0;
  }
  for (const auto& handle : arrived) core_.accept(handle);
}

void LocalEngine::publish() {
  const EngineStats& stats = core_.stats();
  const std::lock_guard lock(mutex_);
  stats_ = stats;
  histograms_ = core_.histograms();
  stats_.waiting += inbox_choices_;
  stats_.waiting_tokens += inbox_tokens_;
  if (!core_.is_healthy() && !is_broken_) {
    is_broken_ = true;  // readiness goes false
    fault_trace_ = core_.fault_trace();
  }
  for (const auto& handle : core_.finished()) {
    const auto [begin, end] = registry_.equal_range(handle->request.id);
    for (auto it = begin; it != end; ++it) {
      if (it->second != handle) continue;
      registry_.erase(it);
      break;
    }
    const auto owner = num_by_owner_.find(handle->request.owner);
    if (--owner->second == 0) num_by_owner_.erase(owner);
  }
  core_.finished().clear();
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::start(std::shared_ptr<const Model> model,
                                              const EngineOptions& asked) {
  try {
    Result<std::unique_ptr<Backend>> backend = make_backend(asked);
    if (!backend.ok()) return backend.status();
    const EngineOptions options = fit_options(asked, **backend);
    Result<MemoryPlan> plan = Executor::plan(*model, **backend, options, available_memory(**backend));
    if (!plan.ok()) return plan.status();
    auto engine = std::make_unique<LocalEngine>(std::move(model), options, *plan, std::move(*backend));
    engine->begin();
    return std::unique_ptr<Engine>(std::move(engine));
  } catch (const DeviceError& error) {
    return status_of(error);
  }
}

}  // namespace restkv

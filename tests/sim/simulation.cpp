// One world for each seed: its settings, its clients, its clock.
#include "tests/sim/simulation.h"

#include <algorithm>
#include <random>
#include <stdexcept>
#include <unordered_map>
#include <vector>

#include "engine/engine_core.h"
#include "kernels/base/device_error.h"
#include "tests/engine/tiny_model.h"
#include "tests/sim/fake_backend.h"
#include "tests/sim/naive_model.h"

namespace restkv::sim {
namespace {

constexpr int32_t kMaxLen = 640;  // three blocks of scratch
// Longer than any request waits and runs here.
constexpr int64_t kMaxTurns = 40'000;

const std::shared_ptr<const Model>& model() {
  static const std::shared_ptr<const Model> tiny = testing::make_tiny_model({.layers = kLayers,
                                                                             .hidden = 4,
                                                                             .heads = kHeads,
                                                                             .kv_heads = kHeads,
                                                                             .head_dim = 4,
                                                                             .ffn = 4,
                                                                             .vocab = kVocab,
                                                                             .context = kMaxLen});
  return tiny;
}

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

class World {
 public:
  World(uint64_t seed, Coverage& coverage)
      : random_(seed),
        coverage_(coverage),
        backend_(*model(), seed % 2 == 0, [this](int64_t rows) { tick(rows); }),
        options_(make_options()),
        plan_(make_plan()),
        core_(*model(), options_, plan_, backend_, [this] { return now_; }) {
    core_.fit_costs();
    for (std::vector<int32_t>& document : documents_)
      for (int32_t i = 0; i < kMaxLen; ++i) document.push_back(token());
  }

  void run(int64_t steps) {
    for (turn_ = 0; turn_ < steps && core_.is_healthy(); ++turn_) {
      faults_ = true;
      if (turn_ % 256 == 0) load_ = static_cast<int32_t>(pick(0, 5));
      arrive();
      interfere();
      step();
    }
    // What is left ends in a bounded number of turns.
    faults_ = false;
    const int64_t limit = turn_ + kMaxTurns;
    for (; core_.is_healthy() && !core_.is_empty(); ++turn_) {
      if (turn_ > limit) fail("requests do not end");
      step();
    }
    if (!core_.is_healthy()) {
      core_.fail_all({StatusCode::kUnavailable, "broken"});
      take_records();
    }
    if (!clients_.empty()) fail("a request has no end");
    const PrefixCache& prefixes = core_.executor().prefixes();
    coverage_["prefix_hit"] += core_.stats().prefix_hits;
    coverage_["step_ahead"] += core_.stats().steps_ahead;
    coverage_["prefix_evicted"] += prefixes.num_evicted();
    core_.executor().clear_prefixes();
    const PagePool& pool = core_.executor().pool();
    if (pool.owned() != 0 || pool.cached() != 0 || prefixes.num_pages() != 0)
      fail("pages are owned by nobody");
  }

 private:
  struct Client {
    std::shared_ptr<RequestHandle> handle;
    std::vector<std::vector<int32_t>> tokens;  // by choice
    int32_t num_open = 0;
    int64_t arrived = 0;
  };

  int64_t pick(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }
  bool chance(int64_t one_in) { return pick(1, one_in) == 1; }
  int32_t token() { return static_cast<int32_t>(pick(3, kVocab - 1)); }
  void saw(const char* what) { ++coverage_[what]; }

  void tick(int64_t rows) {
    now_ += std::chrono::microseconds(20 + 3 * rows + pick(0, 10));
    if (!faults_ || !chance(40'000)) return;
    const bool is_sticky = chance(10);
    saw(is_sticky ? "fault_sticky" : "fault");
    throw DeviceError("simulated", is_sticky);
  }

  EngineOptions make_options() {
    EngineOptions options;
    options.threads = 1;
    options.max_num_seqs = static_cast<int32_t>(pick(2, 8));
    options.max_num_batched_tokens = options.max_num_seqs + static_cast<int32_t>(pick(1, 48));
    options.max_model_len = kMaxLen;
    options.max_queue_requests = static_cast<int32_t>(pick(3, 24));
    options.max_queue_tokens = pick(200, 2000);
    options.scheduling = static_cast<SchedulingPolicy>(pick(0, 2));
    options.cache = CacheSettings::full();
    options.prefix_fraction = 0.2 * static_cast<double>(pick(0, 3));
    options.prefix_max_tokens = pick(0, 3) * 30;
    return options;
  }

  MemoryPlan make_plan() {
    Result<MemoryPlan> plan = Executor::plan(*model(), backend_, options_, int64_t{1} << 34);
    if (!plan.ok()) fail(plan.status().message());
    plan->pages = pick(100, 600);  // a sequence of 100 tokens takes 100
    plan->pool = plan->pages * plan->page_bytes;
    return *plan;
  }

  CacheSettings cache_settings() {
    CacheSettings cache = CacheSettings::full();
    const int64_t policy = pick(0, 4);
    if (policy == 0) return cache;
    cache.policy = policy == 1   ? PolicyKind::kStreamingllm
                   : policy == 2 ? PolicyKind::kSnapkv
                                 : PolicyKind::kRestkv;
    cache.budget = static_cast<int32_t>(pick(16, 60));
    cache.window = static_cast<int32_t>(pick(1, 6));
    cache.sinks = static_cast<int32_t>(pick(0, 3));
    cache.stride = static_cast<int32_t>(pick(1, 5));
    cache.pool = PoolMode::kNone;
    cache.pin = 0;
    cache.output_projection = false;  // R_g is arithmetic
    if (chance(6)) cache.decode = DecodeMode::kGrow;
    return cache;
  }

  Request make_request() {
    Request request;
    request.id = std::to_string(num_requests_++);
    request.owner = chance(2) ? "a" : "b";
    if (chance(10)) request.cache_salt = "salt";
    const std::vector<int32_t>& document = documents_[static_cast<size_t>(pick(0, 2))];
    // A part of a document that ends at a page's end, one before or one behind, and a tail of its own.
    const int64_t shared = std::max<int64_t>(0, pick(0, 20) * FakeBackend::kSlots + pick(-1, 1));
    request.prompt.assign(document.begin(), document.begin() + shared);
    for (int64_t i = pick(shared == 0 ? 1 : 0, chance(20) ? 300 : chance(3) ? 40 : 6); i > 0; --i)
      request.prompt.push_back(token());
    if (request.prompt.empty()) request.prompt.push_back(token());
    request.max_tokens = static_cast<int32_t>(std::min<int64_t>(
        pick(0, chance(4) ? 60 : 12), kMaxLen - static_cast<int64_t>(request.prompt.size())));
    request.num_choices = chance(5) ? static_cast<int32_t>(pick(1, std::min(4, options_.max_num_seqs))) : 1;
    request.priority = static_cast<int32_t>(pick(-2, 2));
    request.sampling.seed = static_cast<uint64_t>(pick(0, 1000));
    request.ignore_eos = chance(2);
    request.cache = cache_settings();
    request.arrival = now_;
    if (chance(8)) request.timeout = std::chrono::microseconds(pick(1, 20'000));
    return request;
  }

  void arrive() {
    static constexpr int32_t kOneIn[] = {1, 3, 6, 12, 40, 200};
    if (!chance(kOneIn[load_])) return;
    for (int64_t i = load_ == 0 ? pick(1, 3) : 1; i > 0; --i) {
      auto handle = std::make_shared<RequestHandle>(make_request(), nullptr);
      const Request& request = handle->request;
      if (const Status status = core_.check(request); !status.ok()) {
        if (status.code() != StatusCode::kInvalidArgument) fail("refused: " + status.message());
        saw("never_fits");
        continue;
      }
      const EngineStats& stats = core_.stats();
      if (!core_.check_queue(request, stats.waiting, stats.waiting_tokens).ok()) {
        saw("queue_full");
        continue;
      }
      handle->cancels = core_.cancels();
      if (chance(60)) handle->cancel();  // before the engine knows it
      Client& client = clients_[handle.get()];
      client.handle = handle;
      client.tokens.resize(static_cast<size_t>(request.num_choices));
      client.num_open = request.num_choices;
      client.arrived = turn_;
      core_.accept(handle);
    }
  }

  // Clients that go, or that have read enough of one choice.
  void interfere() {
    if (clients_.empty() || !chance(30)) return;
    auto it = clients_.begin();
    std::advance(it, pick(0, static_cast<int64_t>(clients_.size()) - 1));
    RequestHandle& handle = *it->second.handle;
    switch (handle.phase.load()) {
      case RequestPhase::kQueued: saw("cancel_queued"); break;
      case RequestPhase::kPrefill: saw("cancel_prefill"); break;
      case RequestPhase::kDecode: saw("cancel_decode"); break;
      case RequestPhase::kFinished: saw("cancel_flushing"); break;
    }
    if (handle.request.num_choices > 1 && chance(2)) {
      handle.cancel_choice(static_cast<int32_t>(pick(0, handle.request.num_choices - 1)));
      saw("cancel_choice");
    } else {
      handle.cancel();
    }
  }

  void step() {
    const int64_t waiting = core_.scheduler().num_waiting();
    const int64_t ahead = core_.stats().steps_ahead, stopped = core_.stats().finished_stop;
    core_.turn();
    if (core_.stats().steps_ahead > ahead && core_.stats().finished_stop > stopped) saw("stop_ahead");
    look_at_queue(waiting);
    take_records();
    check_books();
    for (auto& [key, client] : clients_) {
      if (turn_ - client.arrived > kMaxTurns) fail("request " + client.handle->request.id + " never ends");
    }
  }

  // Nobody that waits comes before one that was admitted in this turn.
  void look_at_queue(int64_t waiting) {
    const Scheduler& scheduler = core_.scheduler();
    if (scheduler.num_waiting() == 0) return;
    if (scheduler.num_waiting() == waiting &&
        static_cast<int32_t>(scheduler.running().size()) < options_.max_num_seqs)
      saw("admission_refused");
    const Sequence* first = nullptr;
    scheduler.for_each_queued([&](const Sequence& sequence) {
      if (!first || sequence.key < first->key) first = &sequence;
    });
    int64_t num_units = 0;
    for (const auto& sequence : scheduler.running()) {
      num_units += sequence->in_units && sequence->phase == SequencePhase::kPrefill;
      if (sequence->admitted >= last_turn_ && first->key < sequence->key && first->queued < last_turn_)
        fail("the head of the queue was passed");
    }
    if (num_units > 1) saw("shared_scratch");
    last_turn_ = now_;
  }

  void take_records() {
    std::vector<TokenRecord> records;
    for (const auto& handle : core_.finished()) finished_.push_back(handle);
    core_.finished().clear();
    core_.flush();
    for (auto it = clients_.begin(); it != clients_.end();) {
      Client& client = it->second;
      client.handle->stream.take(records);
      for (const TokenRecord& record : records) {
        auto& tokens = client.tokens[static_cast<size_t>(record.choice)];
        if (record.kind == TokenRecord::Kind::kToken) {
          tokens.push_back(record.token);
        } else {
          check_end(client, record, tokens);
          --client.num_open;
        }
      }
      it = client.num_open == 0 ? clients_.erase(it) : std::next(it);
    }
    for (const auto& handle : finished_)
      if (clients_.contains(handle.get())) fail("a request is finished and has an open choice");
    finished_.clear();
  }

  void check_end(const Client& client, const TokenRecord& record, const std::vector<int32_t>& tokens) {
    const Request& request = client.handle->request;
    const std::string who = "request " + request.id + " choice " + std::to_string(record.choice);
    const Expected expected = expected_answer(request, record.choice);
    const auto length = std::min(tokens.size(), expected.tokens.size());
    if (tokens.size() > expected.tokens.size() ||
        !std::equal(tokens.begin(), tokens.end(), expected.tokens.begin())) {
      size_t at = 0;
      while (at < length && tokens[at] == expected.tokens[at]) ++at;
      fail(who + ": token " + std::to_string(at) + " is wrong; prompt " +
           std::to_string(request.prompt.size()) + ", policy " +
           std::string(policy_name(request.cache.policy)) + ", budget " +
           std::to_string(request.cache.budget));
    }
    const bool is_whole = record.finish == FinishReason::kLength || record.finish == FinishReason::kStop;
    const bool is_nan = record.finish == FinishReason::kError && record.error.reason() == "nan_logits";
    if (is_nan) saw("nan_row");
    if (record.finish == FinishReason::kError && record.error.code() == StatusCode::kDeadlineExceeded)
      saw(client.handle->num_generated.load() > 0 ? "deadline_decode" : "deadline_before");
    if (is_whole && record.finish != expected.finish) fail(who + " ended for another reason");
    if (is_nan && !expected.is_nan) fail(who + " met a NaN that is not there");
    if ((is_whole || is_nan) && tokens.size() != expected.tokens.size()) fail(who + " is too short");
    if (!is_whole && !is_nan) return;
    const CacheCounters& cache = record.counters.cache;
    if (request.max_tokens > 0 && (cache.events != expected.events || cache.evicted != expected.evicted))
      fail(who + ": " + std::to_string(cache.events) + " cuts of " + std::to_string(cache.evicted) +
           " rows, expected " + std::to_string(expected.events) + " of " + std::to_string(expected.evicted));
    if (expected.events > kLayers) saw("cut_in_answer");
    if (request.num_choices > 1) saw("choices");
    saw("answers");
  }

  void check_books() {
    if (!core_.check_pages(/*by_page=*/true)) fail(core_.fault_trace());
    const PagePool& pool = core_.executor().pool();
    holders_.assign(static_cast<size_t>(pool.total()), nullptr);
    int64_t owned = 0;
    for (const auto& sequence : core_.scheduler().running()) {
      const SequenceMemory& memory = *sequence->memory;
      for (const int32_t page : memory.cache.owned) {
        const RequestHandle*& holder = holders_[static_cast<size_t>(page)];
        owned += holder == nullptr;
        // Choices of one request share whole pages of their prompt.
        if (holder && (holder != sequence->handle.get() || !memory.may_share))
          fail("page " + std::to_string(page) + " has two owners");
        holder = sequence->handle.get();
      }
      const bool is_bounded = memory.settings.decode == DecodeMode::kEvict;
      for (size_t i = 0; i < memory.cache.kv_len.size() && is_bounded; ++i)
        if (memory.cache.kv_len[i] > memory.budget.c_lh[i]) fail("a head holds more than its budget");
    }
    if (owned != pool.owned()) fail("pages are owned by nobody");
    if (pool.cached() != core_.executor().prefixes().num_pages()) fail("cached pages are miscounted");
  }

  std::mt19937_64 random_;
  Coverage& coverage_;
  Clock::time_point now_{std::chrono::seconds(1)};
  Clock::time_point last_turn_{};
  bool faults_ = false;
  FakeBackend backend_;
  const EngineOptions options_;
  const MemoryPlan plan_;
  EngineCore core_;
  std::array<std::vector<int32_t>, 3> documents_;
  std::map<const RequestHandle*, Client> clients_;
  std::vector<std::shared_ptr<RequestHandle>> finished_;
  std::vector<const RequestHandle*> holders_;
  int64_t turn_ = 0, num_requests_ = 0;
  int32_t load_ = 0;
};

}  // namespace

const std::map<std::string, std::string>& must_happen() {
  static const std::map<std::string, std::string> names = {
      {"answers", "answers that ran to their end"},
      {"admission_refused", "turns in which the first in line had no room"},
      {"queue_full", "requests refused by a full queue"},
      {"never_fits", "requests refused for ever"},
      {"cancel_queued", "cancels of a queued request"},
      {"cancel_prefill", "cancels in the middle of a prefill"},
      {"cancel_decode", "cancels of a request that generates"},
      {"cancel_choice", "cancels of one choice"},
      {"deadline_before", "deadlines before the first token"},
      {"deadline_decode", "deadlines of a request that generates"},
      {"fault", "device faults that pass"},
      {"fault_sticky", "device faults that stay"},
      {"nan_row", "NaN rows"},
      {"cut_in_answer", "answers that reached their budget and were cut again"},
      {"choices", "answers among several choices"},
      {"step_ahead", "steps enqueued behind one in flight"},
      {"stop_ahead", "stop tokens seen when the next step was in flight"},
      {"prefix_hit", "prompt tokens read from the prefix cache"},
      {"prefix_evicted", "blocks evicted from the prefix cache"},
      {"shared_scratch", "turns with several long prompts in work"},
  };
  return names;
}

void simulate(uint64_t seed, int64_t steps, Coverage& coverage) {
  // A world ends with a sticky fault; the seed's next one goes on.
  for (uint64_t world = 0; steps > 0; ++world) {
    constexpr int64_t kTurns = 4096;
    World(seed * 1'000'003 + world, coverage).run(std::min(steps, kTurns));
    steps -= kTurns;
  }
}

}  // namespace restkv::sim

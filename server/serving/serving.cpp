// Ids, seeds, warnings, the first refusals.
#include "server/serving/serving.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <random>

#include "server/config/logging.h"

namespace restkv {
namespace {

constexpr size_t kNumWorkers = 2;
constexpr size_t kMaxWarnedFields = 256;

size_t longest_token(const Tokenizer& tokenizer) {
  size_t longest = 1;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    longest = std::max(longest, tokenizer.token_bytes(id).size());
  return longest;
}

uint64_t random_bits() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

// Splitmix64's finaliser: neighbouring counters give unrelated numbers.
uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

Status queue_full() {
  return Status(StatusCode::kResourceExhausted, "the queue is full; try again later")
      .with_reason("queue_full");
}

int64_t unix_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace

Serving::Serving(const Settings& settings, ServedModel model)
    : settings(settings),
      model(std::move(model)),
      access(settings.server.api_key),
      created(unix_seconds()),
      max_token_bytes(longest_token(*this->model.tokenizer)),
      sampling(default_sampling(this->model.engine->model().config.sampling)),
      end_tokens(end_tokens_of(*this->model.tokenizer, this->model.engine->model().config.vocab_size)),
      random_key_(random_bits()),
      profiles_(std::make_shared<const CacheProfiles>(settings.cache.profiles)),
      workers_(std::make_unique<boost::asio::thread_pool>(kNumWorkers)) {}

Serving::~Serving() { workers_->join(); }

void Serving::post(std::function<void()> work) {
  ++num_jobs;
  boost::asio::post(*workers_, [this, work = std::move(work)] {
    work();
    --num_jobs;
  });
}

uint64_t Serving::new_seed() { return mix(random_key_ ^ mix(counter_.fetch_add(1))); }

std::string Serving::new_id(std::string_view prefix) {
  constexpr std::string_view kLetters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  constexpr size_t kLen = 24, kLettersPerNumber = 8;
  std::string id(prefix);
  uint64_t bits = 0;
  for (size_t i = 0; i < kLen; ++i) {
    if (i % kLettersPerNumber == 0) bits = new_seed();
    id += kLetters[bits % kLetters.size()];
    bits /= kLetters.size();
  }
  return id;
}

std::string Serving::answer_id(const CompletionJob& job) {
  const std::string prefix = job.api == CompletionApi::kChat ? "chatcmpl-" : "cmpl-";
  return job.request_id.empty() ? new_id(prefix) : prefix + job.request_id;
}

void Serving::drain() {
  if (!is_draining.exchange(true)) model.engine->drain();
}

Status Serving::check_room() const {
  if (is_draining)
    return Status(StatusCode::kUnavailable, "the server is shutting down").with_reason("draining");
  if (model.engine->stats().waiting < model.engine->options().max_queue_requests) return check_workers();
  return queue_full();
}

Status Serving::check_workers() const {
  return num_jobs < model.engine->options().max_queue_requests ? Status() : queue_full();
}

CompletionContext Serving::completion_context(const Caller& caller) const {
  std::shared_ptr<const CacheProfiles> profiles;
  {
    const std::lock_guard lock(mutex_);
    profiles = profiles_;
  }
  return {.tokenizer = model.tokenizer.get(),
          .served_name = model.name,
          .max_model_len = model.engine->memory_plan().max_model_len,
          .max_token_bytes = max_token_bytes,
          .default_max_tokens = settings.server.default_max_tokens,
          .strict_params = settings.server.strict_params,
          .sampling = sampling,
          .end_tokens = end_tokens,
          .chat_format = model.chat_format.get(),
          .cache = settings.cache.defaults,
          .cache_limits = settings.cache.limits(),
          .cache_profiles = std::move(profiles),
          .owner = caller.name(),
          .key_profile = caller.profile()};
}

Result<CompletionJob> Serving::time_job(const std::function<Result<CompletionJob>()>& make) {
  const Clock::time_point begin = Clock::now();
  Result<CompletionJob> job = make();
  ++num_tokenized;
  tokenize_ns += std::chrono::nanoseconds(Clock::now() - begin).count();
  return job;
}

std::vector<std::string> Serving::load_access(CacheProfiles profiles) {
  const auto loaded = std::make_shared<const CacheProfiles>(std::move(profiles));
  const Status status = check_profiles(*loaded, settings.cache.defaults, settings.cache.limits());
  if (!status.ok()) return {status.message()};
  std::vector<std::string> errors = access.load(loaded);
  if (!errors.empty()) return errors;
  const std::lock_guard lock(mutex_);
  profiles_ = loaded;
  return {};
}

void Serving::warn_unknown_fields(const std::vector<std::string>& names) {
  if (names.empty()) return;
  const std::lock_guard lock(mutex_);
  for (const std::string& name : names) {
    if (warned_fields_.size() >= kMaxWarnedFields) return;
    const std::string shown = name.substr(0, 64);
    if (!warned_fields_.insert(shown).second) continue;
    log_event(LogLevel::kWarning, "unknown request field ignored", {{"field", shown}});
  }
}

}  // namespace restkv

// Ids, seeds and warnings of a server.
#include "server/http/server_state.h"

#include <algorithm>
#include <random>

#include "server/config/logging.h"
#include "server/openai/completion_job.h"

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

// A tokenizer may have more tokens than the model has rows (a padding token added later).
std::vector<int32_t> end_tokens_of(const ServedModel& model) {
  std::vector<int32_t> ids = model.tokenizer->eos_ids();
  const int64_t num_rows = model.engine->model().config.vocab_size;
  std::erase_if(ids, [&](int32_t id) { return id >= num_rows; });
  return ids;
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

int64_t unix_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace

ServerState::ServerState(const Settings& settings, ServedModel model)
    : settings(settings),
      model(std::move(model)),
      limits(http_limits(settings.server, this->model.engine->memory_plan().max_model_len)),
      created(unix_seconds()),
      max_token_bytes(longest_token(*this->model.tokenizer)),
      sampling(default_sampling(this->model.engine->model().config.sampling)),
      end_tokens(end_tokens_of(this->model)),
      workers(kNumWorkers),
      random_key_(random_bits()) {}

uint64_t ServerState::new_seed() { return mix(random_key_ ^ mix(counter_.fetch_add(1))); }

std::string ServerState::new_id(std::string_view prefix) {
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

void ServerState::warn_unknown_fields(const std::vector<std::string>& names) {
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

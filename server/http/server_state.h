// What all connections of a server share. Written before the first connection, except for the atomics and what the mutex
// guards.
#pragma once

#include <atomic>
#include <boost/asio/thread_pool.hpp>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_set>

#include "server/http/limits.h"
#include "server/http/served_model.h"

namespace restkv {

struct ServerState {
  ServerState(const Settings& settings, ServedModel model);

  // "cmpl-" and 24 random letters and digits.
  std::string new_id(std::string_view prefix);
  uint64_t new_seed();
  // One warning a name, so that a client cannot fill the log.
  void warn_unknown_fields(const std::vector<std::string>& names);

  const Settings settings;
  const ServedModel model;
  const HttpLimits limits;
  const int64_t created;                  // Unix seconds
  const size_t max_token_bytes;           // of the vocabulary's longest token
  const SamplingParams sampling;          // what requests leave open, as the model's files say
  const std::vector<int32_t> end_tokens;  // of the tokenizer, those that the model has
  std::atomic<bool> is_draining{false};
  std::atomic<int64_t> num_connections{0};
  std::atomic<int64_t> num_active{0};  // requests between their last byte and the end of their answer
  std::atomic<int64_t> num_jobs{0};    // waiting for or running on the workers

  boost::asio::thread_pool workers;  // large bodies, tokenising

 private:
  const uint64_t random_key_;
  std::atomic<uint64_t> counter_{0};
  std::mutex mutex_;
  std::unordered_set<std::string> warned_fields_;
};

}  // namespace restkv

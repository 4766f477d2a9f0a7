// Everything that can be configured, as plain data. The defaults stand here (and in EngineOptions) and
// nowhere else; the option table (options.h) says how each field is reached from flags, YAML and the
// environment, and its bounds. A field exists only if something reads it.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "server/config/cache_profiles.h"

namespace restkv {

using std::chrono::milliseconds;

struct ServerSettings {
  std::string host = "127.0.0.1";  // an address, not a name
  int32_t port = 8000;             // 0: any free one; the server says which
  bool insecure = false;           // allows an address other than loopback without an API key
  std::string api_key;             // a key file or env:NAME; empty: no keys. Never a key itself
  bool strict_params = false;      // unknown request fields are a 400 instead of a warning
  int32_t io_threads = 1;          // each with its own io_context
  int32_t max_connections = 4096;
  int64_t max_body_size = 0;            // bytes; 0: max(8 MiB, 8 x max_model_len)
  int64_t max_body_memory = 256 << 20;  // bytes of all request bodies of more than 64 KiB together
  int64_t max_request_line = 8 << 10;   // bytes
  int64_t max_header_size = 16 << 10;   // bytes of all headers
  int32_t max_headers = 100;
  int32_t max_chunks = 65'536;         // of one chunked body
  int64_t max_unsent_size = 64 << 10;  // bytes of a stream held for a client that reads slowly
  milliseconds header_timeout{
      10'000};  // from the connection or the last answer's end to the end of the headers
  milliseconds body_timeout{600'000};  // to receive one whole request
  int64_t min_body_rate = 1 << 10;     // bytes a second while a body comes in
  milliseconds idle_timeout{60'000};   // between two requests of a connection
  milliseconds write_timeout{30'000};  // a client that takes nothing for so long is dropped
  milliseconds ping_interval{
      10'000};  // a comment on a stream that has nothing to send, so that nobody gives up
  int32_t default_max_tokens =
      4096;  // of a chat answer whose request says nothing, as far as the context reaches
  milliseconds request_timeout{0};     // running time of a request; 0: none
  milliseconds drain_timeout{30'000};  // after SIGTERM, for the requests that run
};

struct GrpcSettings {
  bool enabled = true;
  std::string host = "127.0.0.1";  // an address, not a name
  // Not given: the default port, and no gRPC if that one is taken; any free one where server.port is 0. Given and 0: any free one.
  std::optional<int64_t> port = {};
  int32_t max_streams = 100;             // of one connection
  int64_t max_message_size = 8 << 20;    // bytes of a request
  int64_t max_metadata_size = 16 << 10;  // bytes
  int64_t max_memory = 256 << 20;        // bytes that all gRPC connections together may hold
  static constexpr int32_t kDefaultPort = 8001;
};

struct ModelSettings {
  std::string path;           // a folder, a .gguf, "demo", or org/repo[:quant] of the hub
  std::string revision;       // of a repository: branch, tag or commit; empty: main
  std::string download_dir;   // the hub's cache; empty: by HF_HUB_CACHE and HF_HOME
  std::string served_name;    // the id clients see; empty: the name of the file or folder
  std::string chat_template;  // a file; empty: the template of the model's own files
  RopeOverride rope;          // rotary scaling instead of the model's own
};

// What a request's `cache` object leaves open, and its ceilings.
struct CacheOptions {
  CacheRequest defaults;  // as given; resolve_cache_options makes EngineOptions::cache of it
  std::string probe;      // of the defaults, as text; empty: not given
  int64_t max_budget = CacheLimits{}.max_budget;
  std::vector<CacheProfile> profiles;
  bool allow_grow = true;
  bool allow_trace = true;
  std::string allocation_file;    // empty: looked for (server/cli/allocation_path.h)
  std::string allocation_in_use;  // set when the model is loaded
  // Until then not known, and taken to be as asked for.
  std::optional<bool> has_calibration;
  CacheLimits limits() const {
    CacheLimits limits;
    limits.max_budget = max_budget;
    limits.allow_grow = allow_grow;
    limits.allow_trace = allow_trace;
    limits.has_calibration = has_calibration.value_or(defaults.allocation == "calibrated");
    return limits;
  }
};

struct MetricsSettings {
  std::string prefix = "restkv_";  // of the metrics that vLLM has too
  bool is_public = false;          // /metrics answers without a key on any address
};

enum class LogLevel : uint8_t { kDebug, kInfo, kWarning, kError };
enum class LogFormat : uint8_t { kText, kJson };

struct LoggingSettings {
  LogLevel level = LogLevel::kInfo;
  LogFormat format = LogFormat::kText;
  bool log_content = false;  // the bodies of requests go to the log
  milliseconds slow_request{
      30'000};  // requests that take longer are logged with where the time went; 0: none
};

// What the verbs besides `serve` take; flags only, no YAML. Answers of `complete` and `chat`: what is not given is the
// verb's own default or the model's.
struct AnswerSettings {
  std::optional<int64_t> max_tokens;
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;  // 0: off
  double presence_penalty = 0.0;
  double frequency_penalty = 0.0;
  std::optional<int64_t> seed;
  bool ignore_eos = false;
  std::string system;  // of `chat`: the system message
};

struct BenchSettings {
  int32_t output_len = 128;
  int32_t rounds = 5;
  std::string prompt_file;  // empty: the built-in text, repeated
  // serve:
  int32_t num_prompts = 100;
  double request_rate = 0;  // requests a second; 0: all at once
  std::string arrivals = "poisson";
  int32_t max_concurrency = 0;    // requests in flight; 0: no limit
  double length_spread = 0;       // lengths are uniform within mean * (1 -/+ spread)
  std::string goodput;            // "ttft:200 tpot:50 e2el:2000", milliseconds
  milliseconds timeout{600'000};  // without a byte from the server
  int64_t seed = 0;
};

struct HubOptions {
  int32_t max_workers = 4;  // files that are downloaded at the same time
  bool yes = false;         // of `rm`: do not ask
};

// `eval` and `calibrate`.
struct EvalSettings {
  std::string texts;  // folder
  std::string policies = "restkv,restkv:paper,snapkv";
  std::vector<int32_t> budgets = {64, 128, 256};
  std::string modes;            // default: prefill,decode (fidelity), window,agnostic (passkey)
  std::string equal = "bytes";  // or "rows"
  int32_t continue_len = 256;
  std::vector<int32_t> digits = {5, 9};
  std::optional<int64_t> num_texts;  // default: 24; calibrate: 16
};

struct OutputSettings {
  bool json = false;
  std::optional<int64_t> prompt_len;  // bench, eval, calibrate; each has its default
  std::string file;                   // input text of `tokenize`
  std::string out;                    // where `logits` writes
  std::vector<int32_t> tokens;        // of `logits`
};

struct Settings {
  std::string config_file;  // the YAML the rest came from; empty: none
  ServerSettings server;
  GrpcSettings grpc;
  EngineOptions engine;  // sections engine, cache (dtype) and model (max_model_len)
  CacheOptions cache;
  ModelSettings model;
  MetricsSettings metrics;
  LoggingSettings logging;
  AnswerSettings answer;
  BenchSettings bench;
  HubOptions hub;
  EvalSettings eval;
  OutputSettings output;
};

}  // namespace restkv

// One greedy answer of the engine as JSON on stdout, for comparison with restkv_reference.py:
//   engine_answer CASE.json   {"model": path, "prompt": [ids], "max_tokens": n, "cache": {...}, "threads": n}
#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace restkv {
namespace {

template <class T>
void read(const nlohmann::json& object, const char* key, std::optional<T>& out) {
  if (object.contains(key) && !object[key].is_null()) out = object[key].get<T>();
}

CacheRequest cache_request(const nlohmann::json& c) {
  CacheRequest r;
  r.trace = TraceMode::kOn;
  read(c, "policy", r.policy);
  read(c, "preset", r.preset);
  read(c, "allocation", r.allocation);
  read(c, "decode", r.decode);
  read(c, "group", r.group);
  read(c, "indicator", r.indicator);
  read(c, "reduce", r.reduce);
  read(c, "pool", r.pool);
  read(c, "budget", r.budget);
  read(c, "compress_at", r.compress_at);
  read(c, "window", r.window);
  read(c, "sinks", r.sinks);
  read(c, "stride", r.stride);
  read(c, "kernel", r.kernel);
  read(c, "pin", r.pin);
  read(c, "pin_head", r.pin_head);
  read(c, "pin_tail", r.pin_tail);
  read(c, "scale", r.scale);
  read(c, "fraction", r.fraction);
  read(c, "tau", r.tau);
  read(c, "alpha", r.alpha);
  read(c, "normalize", r.normalize);
  read(c, "output_projection", r.output_projection);
  if (c.contains("probe") && c["probe"] == "none") r.probe = ProbeSpec{};
  if (c.contains("probe") && c["probe"].is_array()) {
    r.probe = ProbeSpec{
        .kind = ProbeSpec::Kind::kTokens, .text = {}, .tokens = c["probe"].get<std::vector<int32_t>>()};
  }
  return r;
}

// Positions that each KV head held after each cut.
nlohmann::json events_of(const CacheTrace& trace) {
  nlohmann::json events = nlohmann::json::array();
  const auto heads = static_cast<size_t>(trace.num_kv_heads);
  std::vector<std::vector<int32_t>> held(static_cast<size_t>(trace.num_layers) * heads);
  std::vector<int32_t> tokens(static_cast<size_t>(trace.num_layers), 0);
  for (size_t i = 0; i < trace.num_cuts(); ++i) {
    const CacheTrace::Cut cut = trace.cut(i);
    const auto layer = static_cast<size_t>(cut.layer);
    nlohmann::json kept = nlohmann::json::array();
    for (size_t h = 0; h < heads; ++h) {
      std::vector<int32_t>& rows = held[layer * heads + h];
      for (int32_t t = tokens[layer]; t < cut.tokens; ++t) rows.push_back(t);
      const std::vector<int32_t>& evicted = cut.heads[h].evicted;
      std::erase_if(rows, [&](int32_t t) { return std::binary_search(evicted.begin(), evicted.end(), t); });
      kept.push_back(rows);
    }
    tokens[layer] = cut.tokens;
    events.push_back({{"layer", cut.layer}, {"tokens", cut.tokens}, {"kept", std::move(kept)}});
  }
  return events;
}

int fail(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  return 1;
}

int run(const char* path) {
  std::ifstream file(path);
  const nlohmann::json c = nlohmann::json::parse(file);
  const Result<std::shared_ptr<const Model>> model = load_model(c["model"].get<std::string>());
  if (!model.ok()) return fail(model.status().message());
  EngineOptions options;
  options.threads = c.value("threads", 1);
  options.max_model_len = c["prompt"].size() + c["max_tokens"].get<size_t>() + 64;
  options.max_num_seqs = 1;
  options.max_num_batched_tokens = c.value("max_num_batched_tokens", 64);
  if (c.contains("table")) {
    Result<AllocationTables> tables = parse_allocation(c["table"].dump(), (*model)->config);
    if (!tables.ok()) return fail(tables.status().message());
    options.allocation = std::make_shared<const AllocationTables>(*std::move(tables));
  }
  Result<std::unique_ptr<Engine>> engine = Engine::start(*model, options);
  if (!engine.ok()) return fail(engine.status().message());

  Request request;
  request.prompt = c["prompt"].get<std::vector<int32_t>>();
  request.max_tokens = c["max_tokens"].get<int32_t>();
  request.ignore_eos = true;
  request.sampling.temperature = 0.0f;
  const Result<CacheSettings> settings = resolve_cache_settings(
      cache_request(c["cache"]),
      {.max_model_len = options.max_model_len, .has_calibration = options.allocation != nullptr});
  if (!settings.ok()) return fail(settings.status().message());
  request.cache = *settings;
  request.arrival = Clock::now();
  std::mutex mutex;
  std::condition_variable ready;
  bool is_rung = false;
  const auto handle = std::make_shared<RequestHandle>(std::move(request), [&] {
    const std::lock_guard lock(mutex);
    is_rung = true;
    ready.notify_one();
  });
  const Status status = (*engine)->submit(handle);
  if (!status.ok()) return fail(status.message());
  nlohmann::json out = {{"tokens", nlohmann::json::array()}};
  std::vector<TokenRecord> records;
  for (bool is_open = true; is_open;) {
    {
      std::unique_lock lock(mutex);
      ready.wait(lock, [&] { return is_rung; });
      is_rung = false;
    }
    if (!handle->stream.take(records)) continue;
    for (const TokenRecord& record : records) {
      if (record.kind == TokenRecord::Kind::kToken) out["tokens"].push_back(record.token);
      if (record.kind != TokenRecord::Kind::kFinish) continue;
      if (record.finish == FinishReason::kError) return fail(record.error.message());
      is_open = false;
    }
  }
  // The engine lets go of the sequence before its last record.
  const auto trace = (*engine)->traces().find(handle->request.id, handle->request.owner, 0, Clock::now());
  if (!trace || trace->is_truncated) return fail("no whole trace");
  out["events"] = events_of(*trace);
  std::printf("%s\n", out.dump().c_str());
  return 0;
}

}  // namespace
}  // namespace restkv

int main(int argc, char** argv) { return argc == 2 ? restkv::run(argv[1]) : 2; }

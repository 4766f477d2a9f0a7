// The whole engine on a model of random weights in the shape of Llama-3.1-8B: first token, time between tokens, tokens a
// second, and what eviction takes of them. One line of JSON for each setting; tests/bench/gpu_report.py puts them beside the
// floor of docs/measurements (weights once a step, the cache once a step) and the competitors of the same run.
//   engine_bench --stage decode|prefill|schedule [--device cuda:0|cpu] [--shape 8b|tiny] [--seconds N] [--cuda-graphs on|off]
// No file is read: every weight is a view of one random buffer, which the backend copies to the device in its own places.
#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "engine/device.h"
#include "engine/engine.h"
#include "engine/model/model_config.h"
#include "kernels/base/float16.h"

namespace restkv {
namespace {

ModelConfig config_of(bool is_tiny) {
  ModelConfig c;
  c.architecture = "LlamaForCausalLM";
  c.family = "llama";
  c.name = is_tiny ? "tiny" : "random weights in the shape of Llama-3.1-8B";
  c.num_layers = is_tiny ? 2 : 32;
  c.hidden_size = is_tiny ? 64 : 4096;
  c.num_heads = is_tiny ? 4 : 32;
  c.num_kv_heads = is_tiny ? 2 : 8;
  c.head_dim = is_tiny ? 16 : 128;
  c.ffn_size = is_tiny ? 96 : 14336;
  c.vocab_size = is_tiny ? 200 : 128256;
  c.context_len = is_tiny ? 512 : 131072;
  c.attention_scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim));
  c.rope.theta = 500000.0;
  c.layers.resize(static_cast<size_t>(c.num_layers));
  return c;
}

std::shared_ptr<const Model> random_model(bool is_tiny) {
  auto model = std::make_shared<Model>();
  model->config = config_of(is_tiny);
  const ModelConfig& c = model->config;
  const int64_t largest = (std::max(c.vocab_size, c.ffn_size) + 64) * c.hidden_size;
  std::shared_ptr<std::byte[]> noise(new std::byte[static_cast<size_t>(largest * 2)]);
  auto* bits = reinterpret_cast<uint16_t*>(noise.get());
  uint64_t state = 1;
  for (int64_t i = 0; i < largest; ++i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    bits[i] = f32_to_bf16((static_cast<float>(state >> 40) / 16777216.0f - 0.5f) * 0.06f);
  }
  std::shared_ptr<std::byte[]> ones(new std::byte[static_cast<size_t>(c.hidden_size * 4)]);
  for (int64_t i = 0; i < c.hidden_size; ++i) reinterpret_cast<float*>(ones.get())[i] = 1.0f;
  Weights& w = model->weights;
  w.aligned_copies = {noise, ones};
  int64_t used = 0;
  // Each begins at another place of the buffer: no two heads are the same, and the head is not the embedding.
  const auto matrix = [&](int64_t rows, int64_t cols) {
    const int64_t at = used % (largest - rows * cols + 1) / 64 * 64;
    used += 104729 * 64;
    w.num_bytes += rows * cols * 2;
    return dense(static_cast<const void*>(bits + at), DType::kBF16, rows, cols);
  };
  const ConstTensor norm = dense(static_cast<const void*>(ones.get()), DType::kF32, 1, c.hidden_size);
  w.embedding = matrix(c.vocab_size, c.hidden_size);
  w.head = matrix(c.vocab_size, c.hidden_size);
  w.final_norm = norm;
  for (int64_t i = 0; i < c.num_layers; ++i) {
    LayerWeights layer;
    layer.attn_norm = layer.ffn_norm = norm;
    layer.q = matrix(c.num_heads * c.head_dim, c.hidden_size);
    layer.k = matrix(c.num_kv_heads * c.head_dim, c.hidden_size);
    layer.v = matrix(c.num_kv_heads * c.head_dim, c.hidden_size);
    layer.o = matrix(c.hidden_size, c.num_heads * c.head_dim);
    layer.gate = matrix(c.ffn_size, c.hidden_size);
    layer.up = matrix(c.ffn_size, c.hidden_size);
    layer.down = matrix(c.hidden_size, c.ffn_size);
    w.layers.push_back(layer);
  }
  return model;
}

// One request as its reader saw it.
struct Seen {
  Clock::time_point sent;
  std::vector<Clock::time_point> tokens;
  Clock::time_point end;
  std::string error;
  double ttft() const { return tokens.empty() ? 0 : seconds_between(sent, tokens.front()); }
};

class Bench {
 public:
  Bench(std::shared_ptr<const Model> model, std::unique_ptr<Engine> engine, Clock::time_point end)
      : model_(std::move(model)), engine_(std::move(engine)), end_(end) {}

  bool has_time() const { return Clock::now() < end_; }
  const MemoryPlan& plan() const { return engine_->memory_plan(); }
  EngineStats stats() const { return engine_->stats(); }

  // Sends `count` requests at once, each with a prompt of its own, and waits for all.
  std::vector<Seen> run(int count, int64_t prompt_len, int32_t max_tokens, int64_t budget) {
    struct Bell {
      std::mutex mutex;
      std::condition_variable ready;
      bool is_rung = false;
    };
    const auto bell = std::make_shared<Bell>();
    std::vector<std::shared_ptr<RequestHandle>> handles;
    std::vector<Seen> seen(static_cast<size_t>(count));
    std::uniform_int_distribution<int32_t> token(0, static_cast<int32_t>(model_->config.vocab_size) - 1);
    for (int i = 0; i < count; ++i) {
      Request request;
      for (int64_t t = 0; t < prompt_len; ++t) request.prompt.push_back(token(random_));
      request.max_tokens = max_tokens;
      request.ignore_eos = true;
      request.sampling.temperature = 0;
      if (budget > 0) {
        CacheRequest cache;
        cache.policy = "restkv";
        cache.budget = budget;
        const Result<CacheSettings> settings = resolve_cache_settings(cache, {});
        CHECK(settings.ok()) << settings.status().message();
        request.cache = *settings;
      }
      request.arrival = Clock::now();
      handles.push_back(std::make_shared<RequestHandle>(std::move(request), [bell] {
        const std::lock_guard lock(bell->mutex);
        bell->is_rung = true;
        bell->ready.notify_one();
      }));
    }
    size_t open = handles.size();
    for (size_t i = 0; i < handles.size(); ++i) {
      seen[i].sent = Clock::now();
      if (const Status status = engine_->submit(handles[i]); !status.ok()) {
        seen[i].error = status.message();
        --open;
      }
    }
    std::vector<TokenRecord> records;
    while (open > 0) {
      {
        std::unique_lock lock(bell->mutex);
        bell->ready.wait(lock, [&] { return bell->is_rung; });
        bell->is_rung = false;
      }
      const Clock::time_point now = Clock::now();
      for (size_t i = 0; i < handles.size(); ++i) {
        if (!handles[i]->stream.take(records)) continue;
        for (const TokenRecord& record : records) {
          if (record.kind == TokenRecord::Kind::kToken) seen[i].tokens.push_back(now);
          if (record.kind != TokenRecord::Kind::kFinish) continue;
          seen[i].end = now;
          seen[i].error = record.error.message();
          --open;
        }
      }
    }
    return seen;
  }

  // One line for a setting; gb_s: what a decode step has to read, weights and cache, over its time.
  void report(const char* stage, int count, int64_t prompt_len, int32_t max_tokens, int64_t budget) {
    if (!has_time()) return;
    const EngineStats before = stats();
    const std::vector<Seen> seen = run(count, prompt_len, max_tokens, budget);
    const EngineStats after = stats();
    std::vector<double> gaps;
    Clock::time_point all_run{}, first_end = Clock::time_point::max();
    double ttft = 0;
    for (const Seen& one : seen) {
      if (!one.error.empty() || one.tokens.empty()) {
        std::printf("{\"bench\": \"%s\", \"b\": %d, \"prompt\": %lld, \"budget\": %lld, \"error\": \"%s\"}\n",
                    stage, count, static_cast<long long>(prompt_len), static_cast<long long>(budget),
                    one.error.c_str());
        std::fflush(stdout);
        return;
      }
      ttft = std::max(ttft, one.ttft());
      all_run = std::max(all_run, one.tokens.front());
      first_end = std::min(first_end, one.tokens.back());
    }
    // Steps in which all of them decode.
    double tokens = 0;
    for (const Seen& one : seen) {
      for (size_t i = 1; i < one.tokens.size(); ++i) {
        if (one.tokens[i - 1] < all_run || one.tokens[i] > first_end) continue;
        gaps.push_back(seconds_between(one.tokens[i - 1], one.tokens[i]));
        ++tokens;
      }
    }
    std::sort(gaps.begin(), gaps.end());
    const auto at = [&](double share) {
      return gaps.empty() ? 0.0
                          : gaps[static_cast<size_t>(share * static_cast<double>(gaps.size() - 1))] * 1e3;
    };
    const double window = std::max(1e-9, seconds_between(all_run, first_end));
    const ModelConfig& c = model_->config;
    const double entry = static_cast<double>(2 * c.num_layers * c.num_kv_heads * c.head_dim * 2);
    const double kept = static_cast<double>(budget > 0 ? std::min(budget, prompt_len) : prompt_len);
    const double weights = static_cast<double>(model_->weights.num_bytes - c.vocab_size * c.hidden_size * 2);
    const double step_bytes = weights + count * kept * entry;
    const double eviction = after.eviction_prefill_seconds - before.eviction_prefill_seconds;
    std::printf(
        "{\"bench\": \"%s\", \"b\": %d, \"prompt\": %lld, \"budget\": %lld, \"ttft_ms\": %.2f, \"itl_ms\": "
        "%.3f, "
        "\"itl_p99_ms\": %.3f, \"tok_s\": %.1f, \"gb_s\": %.1f, \"prefill_tok_s\": %.1f, "
        "\"eviction_prefill_ms\": %.2f, \"cuts\": %lld}\n",
        stage, count, static_cast<long long>(prompt_len), static_cast<long long>(budget), ttft * 1e3, at(0.5),
        at(0.99), tokens > 0 ? tokens / window : 0.0, at(0.5) > 0 ? step_bytes / at(0.5) * 1e-6 : 0.0,
        static_cast<double>(count * prompt_len) / ttft, eviction * 1e3,
        static_cast<long long>(after.eviction_events - before.eviction_events));
    std::fflush(stdout);
  }

  // More requests than run at once, through the queue.
  void schedule(int count, int64_t prompt_len, int32_t max_tokens, int64_t budget) {
    if (!has_time()) return;
    const Clock::time_point start = Clock::now();
    const EngineStats before = stats();
    std::vector<Seen> seen = run(count, prompt_len, max_tokens, budget);
    const EngineStats after = stats();
    std::vector<double> ttfts;
    for (const Seen& one : seen)
      if (one.error.empty()) ttfts.push_back(one.ttft() * 1e3);
    std::sort(ttfts.begin(), ttfts.end());
    const double seconds = seconds_between(start, Clock::now());
    std::printf(
        "{\"bench\": \"schedule\", \"b\": %d, \"prompt\": %lld, \"budget\": %lld, \"requests_s\": %.2f, "
        "\"tok_s\": %.1f, \"ttft_p50_ms\": %.2f, \"ttft_p99_ms\": %.2f, \"steps\": %lld}\n",
        count, static_cast<long long>(prompt_len), static_cast<long long>(budget), count / seconds,
        static_cast<double>(after.generated_tokens - before.generated_tokens) / seconds,
        ttfts.empty() ? 0.0 : ttfts[ttfts.size() / 2], ttfts.empty() ? 0.0 : ttfts[ttfts.size() * 99 / 100],
        static_cast<long long>(after.steps - before.steps));
    std::fflush(stdout);
  }

 private:
  const std::shared_ptr<const Model> model_;
  std::unique_ptr<Engine> engine_;
  Clock::time_point end_;
  std::mt19937 random_{1};
};

void run_stage(Bench& bench, const std::string& stage, bool is_tiny) {
  const int64_t budget = is_tiny ? 48 : 1024;
  // Kernels are loaded, products have their algorithms, R_g is there.
  const auto warm = [&] {
    for (const int64_t kept : {budget, int64_t{0}}) bench.run(1, is_tiny ? 60 : 4096, 8, kept);
  };
  if (stage == "decode") {
    warm();
    const auto one = [&](int64_t prompt) {
      bench.report("decode", 1, prompt, is_tiny ? 8 : 200, budget);
      bench.report("decode", 1, prompt, is_tiny ? 8 : 200, 0);
    };
    // The first ones decode while the prompts of the others come in: on an H100, where a prompt of 2048 tokens and the steps between
    // its pieces take 0.15 s, some 11 tokens for each. The steps behind that are measured, 150 and more.
    const auto many = [&](int count) {
      bench.report("decode", count, is_tiny ? 60 : 2048, is_tiny ? 8 : 150 + 14 * count, budget);
    };
    if (is_tiny) {
      one(60);
      one(200);
      return many(3);
    }
    // What takes longest comes last.
    one(4096);
    for (const int count : {8, 32, 64}) many(count);
    one(32768);
    for (const int count : {128, 256}) many(count);
    one(130000);
  } else if (stage == "prefill") {
    warm();
    for (const int64_t prompt :
         is_tiny ? std::vector<int64_t>{60, 200} : std::vector<int64_t>{4096, 8192, 32768, 130000}) {
      bench.report("prefill", 1, prompt, 2, 0);
      bench.report("prefill", 1, prompt, 2, budget);
    }
  } else {
    warm();
    bench.schedule(is_tiny ? 6 : 512, is_tiny ? 20 : 256, is_tiny ? 4 : 64, 0);
    bench.schedule(is_tiny ? 6 : 96, is_tiny ? 60 : 4096, is_tiny ? 4 : 64, budget);
  }
}

int usage(const std::string& what) {
  std::fprintf(stderr,
               "engine_bench: %s\nusage: engine_bench --stage decode|prefill|schedule [--device cuda:N|cpu] "
               "[--shape 8b|tiny] "
               "[--seconds N] [--cuda-graphs on|off]\n",
               what.c_str());
  return 2;
}

int main_of(int argc, char** argv) {
  std::string stage, shape = "8b";
  EngineOptions options;
  options.device = "cuda:0";
  options.memory_fraction = 0.9;
  options.prefix_fraction = 0;
  int seconds = 420;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (i + 1 == argc) return usage("'" + word + "' wants a value");
    const std::string value = argv[++i];
    if (word == "--stage") {
      stage = value;
    } else if (word == "--device") {
      options.device = value;
    } else if (word == "--shape") {
      shape = value;
    } else if (word == "--seconds") {
      seconds = std::atoi(value.c_str());
    } else if (word == "--cuda-graphs") {
      if (value != "on" && value != "off") return usage("--cuda-graphs is on or off, not '" + value + "'");
      options.cuda_graphs = value == "on";
    } else {
      return usage("unknown option '" + word + "'");
    }
  }
  if (stage != "decode" && stage != "prefill" && stage != "schedule")
    return usage("no stage '" + stage + "'");
  if (shape != "8b" && shape != "tiny") return usage("no shape '" + shape + "'");
  const Clock::time_point end = Clock::now() + std::chrono::seconds(seconds);
  const bool is_tiny = shape == "tiny";
  const std::shared_ptr<const Model> model = random_model(is_tiny);
  Result<std::unique_ptr<Engine>> engine = Engine::start(model, options);
  if (!engine.ok()) return usage(engine.status().message());
  Bench bench(model, std::move(*engine), end);
  run_stage(bench, stage, is_tiny);
  return 0;
}

}  // namespace
}  // namespace restkv

int main(int argc, char** argv) { return restkv::main_of(argc, argv); }

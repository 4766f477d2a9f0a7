// Speed of the ops on a device at the shapes of Llama-3.1-8B, 16-bit: attention of decode and prefill, products, norms, rotary
// and gated rows, sampling, R_g of a layer, and the whole cut of one after prefill (observe, score, smooth, select, compact). One
// line of JSON for each, with GB/s of what has to move and TFLOP/s; tests/bench/gpu_report.py puts them beside what the same
// run measured for a copy, a product and the competitors.
//   device_bench [--device cuda:0|emulated] [--small] [--seconds N] [--only PART] [--rows N]
// PART: decode_attention, prefill_attention, matmul, rows, cut, factor_projection or sample. --rows: with --only cut, a cut of that many
// rows alone, for a profiler.
// `emulated` and --small are for the test that keeps this running; their times mean nothing. Built as kernel_accesses it says how
// the accesses of each op's kernels fall on banks and sectors instead (tests/emulator/access_counters.h).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "engine/eviction/cut.h"
#include "kernels/base/float16.h"
#include "kernels/cuda/card.h"
#include "tests/emulator/emulated_backend.h"
#if defined(RESTKV_COUNT_ACCESSES)
#include "tests/emulator/access_counters.h"
#endif

namespace restkv {
namespace {

using Clock = std::chrono::steady_clock;

constexpr DType kType = DType::kBF16;

struct Shape {
  int32_t heads = 32, kv_heads = 8, head_dim = 128;
  int64_t hidden = 4096, ffn = 14336, vocab = 128256;
};

struct Bench {
  Backend& backend;
  Shape shape;
  bool is_small;
  Clock::time_point end;

  std::string only = {};  // one part of run()
  int32_t cut_rows = 0;   // of the only cut; 0: those of run()

  bool wants(std::string_view part) const { return Clock::now() < end && (only.empty() || only == part); }

  // Device memory full of small random numbers.
  std::unique_ptr<DeviceBuffer> random_memory(int64_t bytes) const {
    auto memory = backend.allocate(bytes);
    CHECK(memory != nullptr) << "no " << bytes << " bytes on the device";
    static const std::vector<uint16_t> noise = [] {
      std::mt19937 random(1);
      std::vector<uint16_t> values(size_t{1} << 22);
      for (uint16_t& x : values) x = f32_to_bf16(static_cast<float>(random() >> 8) / 16777216.0f - 0.5f);
      return values;
    }();
    const auto piece = static_cast<int64_t>(noise.size() * 2);
    for (int64_t at = 0; at < bytes; at += piece) {
      const int64_t count = std::min(piece, bytes - at);
      backend.write(dense(memory->data() + at, DType::kU8, 1, count), noise.data());
    }
    return memory;
  }

  // Seconds of one call: the median of rounds that each take some tens of milliseconds. Short ones go to the device many at a
  // time, as in a step of the engine, so that the device is measured and not the host; `op(i)` is the i-th of those.
  // `step`: seconds that a step may take of longer ones.
  template <class Op>
  double seconds_of(Op op, double step = 0) const {
    int in_step = 1;
    const auto time = [&](int steps) {
      const auto start = Clock::now();
      for (int s = 0; s < steps; ++s) {
        if (in_step > 1) backend.begin_step();
        for (int i = 0; i < in_step; ++i) op(i);
        if (in_step > 1) backend.end_step();
      }
      backend.synchronize();
      return std::chrono::duration<double>(Clock::now() - start).count() / (steps * in_step);
    };
    if (is_small) return time(1);
    time(1);
    const double first = time(3);
    constexpr double kShort = 100e-6;
    in_step = first < kShort ? kInStep : std::max(1, static_cast<int>(step / first));
    time(3);  // a graph of it is made
    const int steps = std::clamp(static_cast<int>(0.03 / std::max(first, 1e-6) / in_step), 1, 200);
    std::vector<double> rounds(5);
    for (double& round : rounds) round = time(steps);
    std::nth_element(rounds.begin(), rounds.begin() + 2, rounds.end());
    return rounds[2];
  }
  static constexpr int kInStep = 64;

  void print(const std::string& op, const std::string& what, double seconds, double bytes,
             double flops) const {
#if defined(RESTKV_COUNT_ACCESSES)
    static_cast<void>(seconds);
    static_cast<void>(bytes);
    static_cast<void>(flops);
    const emulator::AccessCounts counts = emulator::take_access_counts();
    const auto ratio = [](int64_t used, int64_t least) {
      return least > 0 ? static_cast<double>(used) / static_cast<double>(least) : 0.0;
    };
    std::printf("%-18s %-14s banks %.2f, sectors %.2f of the least\n", op.c_str(), what.c_str(),
                ratio(counts.shared_passes, counts.shared_least),
                ratio(counts.global_sectors, counts.global_least));
    for (const auto& place : counts.worst) {
      std::printf("    %-28s %s %lld, least %lld\n", place.line.c_str(),
                  place.is_shared ? "banks" : "sectors", static_cast<long long>(place.used),
                  static_cast<long long>(place.least));
    }
#else
    std::printf("{\"bench\": \"%s\", \"shape\": \"%s\", \"us\": %.2f, \"gb_s\": %.1f, \"tflop_s\": %.2f}\n",
                op.c_str(), what.c_str(), seconds * 1e6, bytes / seconds * 1e-9, flops / seconds * 1e-12);
#endif
    std::fflush(stdout);
  }
};

AttentionShape attention_of(const Shape& s) {
  return {s.heads, s.kv_heads, s.head_dim, 0.08838834764f, 0.0f, 0};
}

// The caches of several layers in turn, so that they come from memory as in a model; and in a step whatever it takes, so that each is
// enqueued behind the one before without a copy of its own to the device, as there.
void decode_attention(const Bench& b, int64_t batch, int32_t kv_len) {
  constexpr double kStep = 5e-3;
  const Shape& s = b.shape;
  PagedCacheView cache{.dtype = kType, .slots = b.backend.page_slots(), .head_dim = s.head_dim};
  cache.page_bytes = PagedCacheView::bytes_per_page(kType, cache.slots, s.head_dim);
  const int32_t stride = (kv_len + cache.slots - 1) / cache.slots;
  const int64_t layer_pages = batch * s.kv_heads * stride;
  const int64_t layers =
      b.is_small ? 1
                 : std::clamp<int64_t>((int64_t{512} << 20) / (layer_pages * cache.page_bytes), 1, b.kInStep);
  const int64_t num_pages = layers * layer_pages;
  const auto pool = b.random_memory(num_pages * cache.page_bytes);
  cache.pool = pool->data();
  std::vector<int32_t> pages(static_cast<size_t>(num_pages)), slots(static_cast<size_t>(cache.slots));
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), std::mt19937(2));
  std::iota(slots.begin(), slots.end(), 0);  // positions that every query sees
  for (int64_t table = 1; table <= layers * batch * s.kv_heads;
       ++table) {  // the kernel looks at the last entry's alone
    const int32_t page = pages[static_cast<size_t>(table * stride - 1)];
    b.backend.write(dense(reinterpret_cast<std::byte*>(cache.positions(page)), DType::kI32, 1, cache.slots),
                    slots.data());
  }
  const std::vector<int32_t> lengths(static_cast<size_t>(s.kv_heads), kv_len);
  const std::vector<int32_t> positions(static_cast<size_t>(batch), kv_len);
  // The tables lie on the device, as the engine's do.
  const auto tables = b.backend.allocate(num_pages * 4);
  b.backend.write(dense(tables->data(), DType::kI32, 1, num_pages), pages.data());
  std::vector<DecodeSegment> segments;  // [layers, batch]
  for (int64_t i = 0; i < layers * batch; ++i) {
    const int64_t first = i * s.kv_heads * stride;
    segments.push_back({i % batch,
                        1,
                        {.pages = pages.data() + first,
                         .stride = stride,
                         .kv_len = lengths.data(),
                         .resident = reinterpret_cast<const int32_t*>(tables->data()) + first}});
  }
  const int64_t cols = int64_t{s.heads} * s.head_dim;
  const auto rows = b.random_memory(2 * batch * cols * 2);
  const Tensor q = dense(rows->data(), kType, batch, cols),
               out = dense(rows->data() + batch * cols * 2, kType, batch, cols);
  const double seconds = b.seconds_of(
      [&](int i) {
        const std::span layer =
            std::span(segments).subspan(static_cast<size_t>(i % layers * batch), static_cast<size_t>(batch));
        b.backend.decode_attention({attention_of(s), q, positions, layer, cache, out});
      },
      kStep);
  const double entries = static_cast<double>(batch) * s.kv_heads * kv_len;
  b.print("decode_attention", "b=" + std::to_string(batch) + " kv=" + std::to_string(kv_len), seconds,
          entries * s.head_dim * 4, 4 * entries * s.head_dim * (s.heads / s.kv_heads));
}

void prefill_attention(const Bench& b, int64_t count) {
  const Shape& s = b.shape;
  const int64_t cols = int64_t{s.heads} * s.head_dim, kv_cols = int64_t{s.kv_heads} * s.head_dim;
  const auto memory = b.random_memory(count * (2 * cols + 2 * kv_cols) * 2);
  Arena arena(memory->data(), memory->bytes());
  const Tensor q = arena.tensor(kType, count, cols), out = arena.tensor(kType, count, cols),
               k = arena.tensor(kType, count, kv_cols), v = arena.tensor(kType, count, kv_cols);
  std::vector<int32_t> positions(static_cast<size_t>(count));
  std::iota(positions.begin(), positions.end(), 0);
  const PrefillSegment segment{
      .row_begin = 0, .num_rows = count, .prefix = {}, .k = k, .v = v, .first_position = 0};
  const double seconds = b.seconds_of([&](int) {
    b.backend.prefill_attention({attention_of(s), q, positions, {&segment, 1}, {}, out, {}});
  });
  const auto n = static_cast<double>(count);
  b.print("prefill_attention", "T=" + std::to_string(count), seconds,
          n * static_cast<double>(2 * cols + 2 * kv_cols) * 2,
          2 * n * n * static_cast<double>(cols));  // half of the square
}

// The weights of several layers in turn, so that they come from memory as in a model.
void matmul(const Bench& b, const char* name, int64_t rows, int64_t num, int64_t cols) {
  const int64_t bytes = num * cols * 2;
  const int64_t layers = b.is_small ? 1 : std::max<int64_t>(1, (int64_t{512} << 20) / bytes);
  const auto weights = b.random_memory(bytes * layers), x = b.random_memory(rows * cols * 2),
             out = b.random_memory(rows * num * 2);
  const double seconds = b.seconds_of([&](int i) {
    const int64_t layer = i % layers;
    const MatmulOutput output{
        dense(weights->data() + layer * bytes, kType, num, cols), {}, dense(out->data(), kType, rows, num)};
    b.backend.matmul({dense(x->data(), kType, rows, cols), {&output, 1}});
  });
  const auto n = static_cast<double>(num), c = static_cast<double>(cols), t = static_cast<double>(rows);
  b.print("matmul", std::string(name) + " T=" + std::to_string(rows), seconds, 2 * (n * c + t * (n + c)),
          2 * t * n * c);
}

// What stands between the products of a layer.
void row_ops(const Bench& b, int64_t rows) {
  const Shape& s = b.shape;
  const std::string what = "T=" + std::to_string(rows);
  const int64_t q_cols = int64_t{s.heads} * s.head_dim, kv_cols = int64_t{s.kv_heads} * s.head_dim;
  const auto memory = b.random_memory(rows * (3 * s.hidden + q_cols + 4 * kv_cols + 3 * s.ffn) * 2 +
                                      rows * s.head_dim * 4 + s.hidden * 4 + 64 * 256);
  Arena arena(memory->data(), memory->bytes());
  const Tensor x = arena.tensor(kType, rows, s.hidden), residual = arena.tensor(kType, rows, s.hidden),
               out = arena.tensor(kType, rows, s.hidden), norm = arena.tensor(DType::kF32, 1, s.hidden);
  double seconds = b.seconds_of([&](int) {
    b.backend.rmsnorm({.x = x, .residual = residual, .weight = norm, .eps = 1e-5f, .offset = 0, .out = out});
  });
  b.print("rmsnorm", what, seconds, static_cast<double>(rows * s.hidden) * 2 * 4, 0);

  const Tensor q = arena.tensor(kType, rows, q_cols), k = arena.tensor(kType, rows, kv_cols),
               v = arena.tensor(kType, rows, kv_cols), to_k = arena.tensor(kType, rows, kv_cols),
               to_v = arena.tensor(kType, rows, kv_cols), rope = arena.tensor(DType::kF32, rows, s.head_dim);
  std::vector<int32_t> positions(static_cast<size_t>(rows));
  std::iota(positions.begin(), positions.end(), 0);
  const StoreSegment store{0, rows, to_k, to_v, {}};
  PagedCacheView cache{.dtype = kType, .slots = b.backend.page_slots(), .head_dim = s.head_dim};
  seconds = b.seconds_of([&](int) {
    b.backend.rope_and_store({.q = q,
                              .k = k,
                              .v = v,
                              .rope = rope,
                              .interleaved = false,
                              .positions = positions,
                              .segments = {&store, 1},
                              .cache = cache});
  });
  b.print("rope_and_store", what, seconds, static_cast<double>(rows * (2 * q_cols + 5 * kv_cols)) * 2, 0);

  const Tensor gate = arena.tensor(kType, rows, s.ffn), up = arena.tensor(kType, rows, s.ffn),
               gated = arena.tensor(kType, rows, s.ffn);
  seconds = b.seconds_of(
      [&](int) { b.backend.glu({.gate = gate, .up = up, .activation = Activation::kSilu, .out = gated}); });
  b.print("glu", what, seconds, static_cast<double>(rows * s.ffn) * 2 * 3, 0);
}

// A layer of a prompt of `count` tokens: from its scratch rows to the pages of a budget, as after prefill.
void cut_layer(const Bench& b, int32_t count, int32_t budget) {
  const Shape& s = b.shape;
  const AttentionShape shape = attention_of(s);
  CacheRequest request;
  request.policy = "restkv";
  request.budget = budget;
  const Result<CacheSettings> settings = resolve_cache_settings(request, {.has_calibration = false});
  CHECK(settings.ok()) << settings.status().message();
  const PolicyRecipe recipe = make_recipe(*settings, budget, 32);
  const int64_t q_cols = int64_t{s.heads} * s.head_dim, kv_cols = int64_t{s.kv_heads} * s.head_dim;
  const int64_t window = std::min<int64_t>(settings->window, count);

  PagedCacheView cache{.dtype = kType, .slots = b.backend.page_slots(), .head_dim = s.head_dim};
  cache.page_bytes = PagedCacheView::bytes_per_page(kType, cache.slots, s.head_dim);
  const int32_t stride = (budget + cache.slots - 1) / cache.slots;
  const int64_t work = Cutter::workspace_bytes(recipe, shape, count, window, 0);
  const auto pool = b.random_memory(stride * s.kv_heads * cache.page_bytes);
  cache.pool = pool->data();
  std::vector<int32_t> pages(static_cast<size_t>(stride * s.kv_heads));
  std::iota(pages.begin(), pages.end(), 0);
  const auto rows = b.random_memory((2 * count * kv_cols + window * q_cols) * 2 + 4 * 256);
  const auto r = b.random_memory(q_cols * s.head_dim * 4), workspace = b.random_memory(work);
  Arena arena(rows->data(), rows->bytes());
  const Tensor k = arena.tensor(kType, count, kv_cols), v = arena.tensor(kType, count, kv_cols),
               q = arena.tensor(kType, window, q_cols);
  std::vector<int32_t> positions(static_cast<size_t>(window));
  std::iota(positions.begin(), positions.end(), count - static_cast<int32_t>(window));
  const std::vector<int32_t> keep(static_cast<size_t>(s.kv_heads), budget);
  std::vector<int32_t> kept_len(keep.size());
  Cut cut;
  cut.recipe = &recipe;
  cut.is_prefill = true;
  cut.rows = {.pages = {}, .k = k, .v = v, .first_position = 0};
  cut.queries = {.rows = q, .ring = {}, .positions = positions};
  cut.projection = dense(static_cast<const void*>(r->data()), DType::kF32, q_cols, s.head_dim);
  cut.keep = keep.data();
  cut.protect = protection_of(recipe, *settings, count, false);
  cut.destination = {.pages = pages.data(), .stride = stride};
  cut.kept_len = kept_len.data();
  Cutter cutter(b.backend, shape, cache, dense(workspace->data(), DType::kU8, 1, workspace->bytes()));
  const double seconds = b.seconds_of([&](int) { cutter.run({&cut, 1}); });
  // Per head and row: the window's logits twice, the projected value, and its distance from each query's output.
  const double flops =
      static_cast<double>(s.heads) * count * s.head_dim *
      (4.0 * static_cast<double>(window) + 2.0 * s.head_dim + 3.0 * static_cast<double>(window));
  b.print("cut", "N=" + std::to_string(count) + " C=" + std::to_string(budget), seconds,
          static_cast<double>(count) * static_cast<double>(kv_cols) * 2 * 2, flops);
}

// Logits [batch, V] as one row many times. flat: all between -0.5 and 0.5, so that top-p keeps nearly all of them, as at a very high
// temperature. Otherwise as a model gives them: most of the vocabulary far below (normal, deviation 3), and the tokens that fit where
// the text is, a few hundred between 10 and 18 above its middle, each next one a little less likely; they have the most of the mass.
std::vector<float> sample_logits(int64_t batch, int64_t vocab, bool is_flat) {
  std::mt19937 random(3);
  std::vector<float> row(static_cast<size_t>(vocab));
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::uniform_real_distribution<float> uniform(-0.5f, 0.5f);
  for (float& x : row) x = is_flat ? uniform(random) : std::min(normal(random), 10.0f);
  const size_t num_likely = is_flat ? 0 : std::min<size_t>(300, row.size() / 4);
  for (size_t i = 0; i < num_likely; ++i)
    row[random() % row.size()] =
        18.0f - 8.0f * std::sqrt(static_cast<float>(i) / static_cast<float>(num_likely));
  std::vector<float> rows;
  for (int64_t i = 0; i < batch; ++i) rows.insert(rows.end(), row.begin(), row.end());
  return rows;
}

// The op leaves logits as they are where nothing is masked or penalised, so each call finds the same.
void sample(const Bench& b, int64_t batch) {
  struct Setting {
    const char* name;
    bool is_flat;
    float temperature, top_p;
    int32_t top_k;
  };
  for (const Setting& setting :
       {Setting{"greedy", false, 0.0f, 1.0f, 0}, Setting{"top-p", false, 1.0f, 0.9f, 0},
        Setting{"top-k top-p", false, 0.8f, 0.95f, 50}, Setting{"top-p flat", true, 1.0f, 0.9f, 0}}) {
    const auto memory = b.random_memory(batch * b.shape.vocab * 4);
    const Tensor logits = dense(memory->data(), DType::kF32, batch, b.shape.vocab);
    b.backend.write(logits, sample_logits(batch, b.shape.vocab, setting.is_flat).data());
    SamplingParams params;
    params.temperature = setting.temperature;
    params.top_p = setting.top_p;
    params.top_k = setting.top_k;
    std::vector<SampleRow> rows(static_cast<size_t>(batch), SampleRow{.params = &params});
    for (size_t i = 0; i < rows.size(); ++i) rows[i].position = static_cast<uint32_t>(i);
    std::vector<SampleResult> results(rows.size());
    const double seconds = b.seconds_of([&](int) { b.backend.sample({logits, rows, results}); });
    b.print("sample", "b=" + std::to_string(batch) + " " + setting.name, seconds,
            static_cast<double>(memory->bytes()), 0);
  }
}

void factor_projection(const Bench& b) {
  const Shape& s = b.shape;
  const int64_t cols = int64_t{s.heads} * s.head_dim;
  const auto weight = b.random_memory(s.hidden * cols * 2), out = b.random_memory(cols * s.head_dim * 4);
  const double seconds = b.seconds_of([&](int) {
    b.backend.factor_projection({dense(static_cast<const void*>(weight->data()), kType, s.hidden, cols),
                                 s.heads, dense(out->data(), DType::kF32, cols, s.head_dim)});
  });
  // f64: the upper triangles of the Gram matrices
  b.print("factor_projection", "D=" + std::to_string(s.head_dim), seconds,
          static_cast<double>(s.hidden * cols * 2),
          static_cast<double>(s.hidden) * static_cast<double>(cols) * (s.head_dim + 1));
}

void run(const Bench& b) {
  const Shape& s = b.shape;
  const std::vector<int64_t> batches =
      b.is_small ? std::vector<int64_t>{2} : std::vector<int64_t>{1, 8, 32, 64};
  const std::vector<int32_t> lengths =
      b.is_small ? std::vector<int32_t>{70} : std::vector<int32_t>{1024, 4096, 32768};
  for (const int64_t batch : batches)
    for (const int32_t length : lengths)
      if (b.wants("decode_attention")) decode_attention(b, batch, length);
  for (const int64_t count :
       b.is_small ? std::vector<int64_t>{70} : std::vector<int64_t>{4096, 8192, 16384, 32768})
    if (b.wants("prefill_attention")) prefill_attention(b, count);
  const int64_t qkv = (s.heads + 2 * s.kv_heads) * int64_t{s.head_dim};
  for (const int64_t rows :
       b.is_small ? std::vector<int64_t>{1, 5} : std::vector<int64_t>{1, 2, 4, 8, 32, 64, 256, 2048}) {
    if (!b.wants("matmul")) continue;
    matmul(b, "qkv", rows, qkv, s.hidden);
    matmul(b, "o", rows, s.hidden, int64_t{s.heads} * s.head_dim);
    matmul(b, "gate_up", rows, 2 * s.ffn, s.hidden);
    matmul(b, "down", rows, s.hidden, s.ffn);
    if (rows <= 64) matmul(b, "head", rows, s.vocab, s.hidden);
  }
  for (const int64_t rows : b.is_small ? std::vector<int64_t>{3} : std::vector<int64_t>{1, 64, 2048})
    if (b.wants("rows")) row_ops(b, rows);
  std::vector<int32_t> cuts = b.is_small ? std::vector<int32_t>{70} : std::vector<int32_t>{4096, 32768};
  if (b.cut_rows > 0) cuts = {b.cut_rows};
  for (const int32_t count : cuts)
    if (b.wants("cut")) cut_layer(b, count, b.is_small ? 48 : 1024);
  if (b.wants("factor_projection")) factor_projection(b);
  for (const int64_t batch : batches)
    if (b.wants("sample")) sample(b, batch);
}

int usage(const char* what) {
  std::fprintf(stderr,
               "device_bench: %s\nusage: device_bench [--device cuda:N|emulated] [--small] [--seconds N] "
               "[--only PART] [--rows N]\n",
               what);
  return 2;
}

int main_of(int argc, char** argv) {
  std::string device = "cuda:0";
  bool is_small = false;
  int seconds = 420, cut_rows = 0;
  std::string only;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--small") {
      is_small = true;
    } else if (word == "--device" && i + 1 < argc) {
      device = argv[++i];
    } else if (word == "--only" && i + 1 < argc) {
      only = argv[++i];
    } else if (word == "--rows" && i + 1 < argc) {
      cut_rows = std::atoi(argv[++i]);
      if (cut_rows <= 0) return usage("--rows wants a number of rows, 1 and more");
    } else if (word == "--seconds" && i + 1 < argc) {
      seconds = std::atoi(argv[++i]);
    } else {
      return usage(("unknown or incomplete option '" + word + "'").c_str());
    }
  }
  std::unique_ptr<Backend> backend;
  if (device == "emulated") {
    backend = make_emulated_backend({.type = kType});
  } else if (device.starts_with("cuda:")) {
    auto card = cuda::open_card(std::atoi(device.c_str() + 5), {});
    if (!card.ok()) return usage(card.status().message().c_str());
    backend = std::move(*card);
  } else {
    return usage(("no device '" + device + "'").c_str());
  }
  Bench bench{*backend, {}, is_small, Clock::now() + std::chrono::seconds(seconds), only, cut_rows};
  if (is_small)
    bench.shape = {.heads = 4, .kv_heads = 2, .head_dim = 16, .hidden = 64, .ffn = 96, .vocab = 200};
#if defined(RESTKV_COUNT_ACCESSES)
  bench.shape = {.heads = 4, .kv_heads = 1, .head_dim = 128, .hidden = 512, .ffn = 256, .vocab = 1000};
#endif
  run(bench);
  return 0;
}

}  // namespace
}  // namespace restkv

int main(int argc, char** argv) { return restkv::main_of(argc, argv); }

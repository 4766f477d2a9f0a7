// Selections recorded from the published code (restkv.md section 2): every file of the folder goes through the recipes and
// the five ops of the live path and must keep the same rows; scores after smoothing to 1e-4.
#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <vector>

#include "engine/eviction/budget.h"
#include "engine/eviction/cut.h"
#include "engine/model/safetensors.h"
#include "kernels/base/float16.h"
#include "kernels/cpu/cpu_backend.h"
#ifdef RESTKV_EMULATED
#include "kernels/cuda/card.h"
#include "tests/emulator/emulated_backend.h"
#include "tests/emulator/host_copies.h"
#endif
#include "tests/golden/golden_folder.h"

namespace fs = std::filesystem;

namespace restkv {
namespace {

constexpr double kTolerance = 1e-4;

struct Case {
  std::map<std::string, std::string> metadata;
  std::map<std::string, FileTensor> tensors;

  std::string text(const std::string& key, const std::string& fallback = "") const {
    const auto it = metadata.find(key);
    return it == metadata.end() ? fallback : it->second;
  }
  int32_t number(const std::string& key, int32_t fallback) const {
    return metadata.count(key) ? std::stoi(metadata.at(key)) : fallback;
  }
  bool flag(const std::string& key, bool fallback) const {
    return metadata.count(key) ? metadata.at(key) == "True" : fallback;
  }
  bool has(const std::string& name) const { return tensors.count(name) > 0; }
  const float* floats(const std::string& name) const {
    return reinterpret_cast<const float*>(tensors.at(name).data);
  }
  int64_t dim(const std::string& name, size_t axis) const { return tensors.at(name).shape.at(axis); }
  std::vector<int64_t> row_of_ints(const std::string& name, int64_t row) const {
    const FileTensor& t = tensors.at(name);
    std::vector<int64_t> out;
    for (int64_t i = 0; i < t.shape[1]; ++i) {
      out.push_back(reinterpret_cast<const int32_t*>(t.data)[row * t.shape[1] + i]);
    }
    return out;
  }
};

// Tensors of 16 bits become F32.
void widen(std::map<std::string, FileTensor>* tensors, std::vector<std::vector<float>>* storage) {
  for (auto& [name, tensor] : *tensors) {
    if (tensor.dtype != DType::kF16 && tensor.dtype != DType::kBF16) continue;
    const auto* halves = reinterpret_cast<const uint16_t*>(tensor.data);
    std::vector<float>& wide = storage->emplace_back();
    for (int64_t i = 0; i < tensor.num_bytes / 2; ++i)
      wide.push_back(tensor.dtype == DType::kF16 ? f16_to_f32(halves[i]) : bf16_to_f32(halves[i]));
    tensor.dtype = DType::kF32;
    tensor.data = reinterpret_cast<const std::byte*>(wide.data());
    tensor.num_bytes *= 2;
  }
}

// [H, n, D] -> [n, H*D], as a layer's scratch has it.
std::vector<float> by_row(const Case& c, const std::string& name) {
  const int64_t heads = c.dim(name, 0), n = c.dim(name, 1), dim = c.dim(name, 2);
  std::vector<float> out(static_cast<size_t>(heads * n * dim));
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t i = 0; i < n; ++i) {
      std::copy_n(c.floats(name) + (h * n + i) * dim, dim, out.data() + (i * heads + h) * dim);
    }
  }
  return out;
}

// The settings of the file as a user would write them (interfaces.md).
CacheRequest request_of(const Case& c) {
  CacheRequest r;
  const int32_t window = c.number("window_size", 32);
  r.policy = c.text("policy");
  r.budget = c.number("max_capacity_prompt", 0);
  r.decode = "grow";
  if (*r.policy == "streamingllm") return r;
  r.window = window;
  if (*r.policy == "restkv") {
    r.preset = "paper";
    const bool after = c.text("metric_mode", "after") == "after";
    r.indicator = after ? "after" : "query";
    r.reduce = c.flag("use_ema", true) ? "ema" : "mean";
    r.output_projection = c.flag("use_wo", true);
    r.normalize = c.flag("use_norm", false);
    r.alpha = std::stod(c.text("alpha", "0.3"));
    r.tau = std::stod(c.text("tau", "1"));
    r.scale = c.number("scale", 2000);
  }
  const std::string pooling = c.text("pooling");
  if (pooling == "avgpool") r.pool = "avg";
  if (pooling == "maxpool") r.pool = "max";
  if (pooling == "adaptive") r.pool = "adaptive";
  if (pooling == "none") r.pool = "none";
  if (c.metadata.count("kernel_size")) r.kernel = c.number("kernel_size", 5);
  return r;
}

// Rows of `kept` and `expected` may differ where their score is this close to the cut.
bool differ_at_the_cut_only(const std::vector<int64_t>& kept, const std::vector<int64_t>& expected,
                            const float* scores) {
  if (kept.size() != expected.size()) return false;
  double cut = INFINITY;
  for (const int64_t row : expected) cut = std::min(cut, static_cast<double>(scores[row]));
  std::vector<int64_t> different;
  std::set_symmetric_difference(kept.begin(), kept.end(), expected.begin(), expected.end(),
                                std::back_inserter(different));
  return std::all_of(different.begin(), different.end(), [&](int64_t row) {
    return std::abs(static_cast<double>(scores[row]) - cut) <= kTolerance * std::abs(cut);
  });
}

// Empty: right.
std::string check(Backend& backend, const Case& c) {
  const int64_t heads = c.dim("q", 0), n = c.dim("q", 1), dim = c.dim("q", 2);
  const std::vector<float> q = by_row(c, "q"), k = by_row(c, "k"), v = by_row(c, "v");
  const Result<CacheSettings> settings = resolve_cache_settings(request_of(c), {.has_calibration = false});
  if (!settings.ok()) return settings.status().message();
  const PolicyKind policy = settings->policy;
  const int32_t window = settings->window, budget = settings->budget;
  PolicyRecipe recipe = make_recipe(*settings, budget, c.number("num_hidden_layers", 4));
  if (policy == PolicyKind::kH2o) recipe.recent = window;  // the published variant keeps the window, not half
  // Its window is all but the sinks.
  if (policy == PolicyKind::kStreamingllm)
    recipe.sinks = budget - c.number("window_size", budget - recipe.sinks);

  int32_t rows_kept = budget;
  if (policy == PolicyKind::kPyramidkv || c.flag("use_pyramid", false)) {
    rows_kept = window + pyramid_rows(budget - window, window, n, c.number("layer_idx", 0),
                                      c.number("num_hidden_layers", 4));
  }
  std::vector<int32_t> keep(static_cast<size_t>(heads), rows_kept), kept_len(static_cast<size_t>(heads));

  const AttentionShape shape{.num_heads = static_cast<int32_t>(heads),
                             .num_kv_heads = static_cast<int32_t>(heads),
                             .head_dim = static_cast<int32_t>(dim),
                             .scale = 1.0f / std::sqrt(static_cast<float>(dim))};
  const int64_t pages_per_head = (n + backend.page_slots() - 1) / backend.page_slots();
  PagedCacheView cache{.dtype = DType::kF32, .slots = backend.page_slots(), .head_dim = shape.head_dim};
  cache.page_bytes = PagedCacheView::bytes_per_page(cache.dtype, cache.slots, cache.head_dim);
  const std::unique_ptr<DeviceBuffer> pool = backend.allocate(cache.page_bytes * pages_per_head * heads);
  cache.pool = pool->data();
  std::vector<int32_t> pages(static_cast<size_t>(pages_per_head * heads));
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i);

  const int64_t num_queries = recipe.queries == QueryNeed::kAll ? n : std::min<int64_t>(window, n);
  std::vector<int32_t> positions(static_cast<size_t>(num_queries));
  for (int64_t i = 0; i < num_queries; ++i)
    positions[static_cast<size_t>(i)] = static_cast<int32_t>(n - num_queries + i);
  Cut cut;
  cut.recipe = &recipe;
  cut.is_prefill = true;
  cut.rows = {.k = dense(k.data(), DType::kF32, n, heads * dim),
              .v = dense(v.data(), DType::kF32, n, heads * dim)};
  if (recipe.needs_queries()) {
    cut.queries = {
        .rows = dense(q.data() + (n - num_queries) * heads * dim, DType::kF32, num_queries, heads * dim),
        .positions = positions};
  }
  const int64_t model_dim = c.dim("w_o", 0);
  const std::vector<float> w_o(c.floats("w_o"), c.floats("w_o") + model_dim * heads * dim);  // aligned
  std::vector<float> projection(static_cast<size_t>(heads * dim * dim));
  backend.factor_projection({.weight = dense(w_o.data(), DType::kF32, model_dim, heads * dim),
                             .num_heads = shape.num_heads,
                             .out = dense(projection.data(), DType::kF32, heads * dim, dim)});
  cut.projection = dense(projection.data(), DType::kF32, heads * dim, dim);
  cut.keep = keep.data();
  cut.protect = protection_of(recipe, *settings, n, false);
  cut.destination = {.pages = pages.data(), .stride = static_cast<int32_t>(pages_per_head)};
  cut.kept_len = kept_len.data();

  std::vector<float> sums(static_cast<size_t>(heads * n), 0.0f);
  const std::unique_ptr<DeviceBuffer> workspace =
      backend.allocate(Cutter::workspace_bytes(recipe, shape, n, num_queries, 0));
  Cutter cutter(backend, shape, cache, dense(workspace->data(), DType::kU8, 1, workspace->bytes()));
  if (policy == PolicyKind::kH2o) {
    // The published sums are causal inside the last window only: earlier queries see every row.
    QuerySource early = cut.queries;
    std::vector<int32_t> all(static_cast<size_t>(n - window), static_cast<int32_t>(n));
    early.positions = all;
    const Tensor out = dense(sums.data(), DType::kF32, heads, n);
    cutter.add_queries(cut.rows, early, 0, out);
    QuerySource late = cut.queries;
    late.rows = dense(q.data() + (n - window) * heads * dim, DType::kF32, window, heads * dim);
    late.positions = cut.queries.positions.subspan(static_cast<size_t>(n - window));
    cutter.add_queries(cut.rows, late, 0, out);
    cut.attention_sums = out;
  }
  std::string error;
  cutter.set_observer([&](const Cut&, ConstTensor kept_rows, ConstTensor scores) {
    for (int64_t h = 0; h < heads && error.empty(); ++h) {
      const auto* row = static_cast<const int32_t*>(kept_rows.row(h));
      std::vector<int64_t> kept(row, row + kept_len[static_cast<size_t>(h)]);
      const std::string where = "head " + std::to_string(h) + ": ";
      if (c.has("kept_all")) {
        if (kept != c.row_of_ints("kept_all", h)) error = where + "other rows";
        continue;
      }
      const int64_t scored = c.dim("scores", 1);
      const float* expected_scores = c.floats("scores") + h * scored;
      for (int64_t j = 0; j < scored && error.empty(); ++j) {
        const double got = static_cast<double>(scores.f32(h)[j]),
                     want = static_cast<double>(expected_scores[j]);
        if (!(std::abs(got - want) <= kTolerance * std::abs(want))) {
          error = where + "score " + std::to_string(j) + " is " + std::to_string(got) + ", recorded " +
                  std::to_string(want);
        }
      }
      if (kept.size() != static_cast<size_t>(rows_kept) && error.empty()) {
        error = where + std::to_string(kept.size()) + " rows kept";
      }
      kept.erase(std::lower_bound(kept.begin(), kept.end(), scored), kept.end());  // the window
      if (error.empty() && !differ_at_the_cut_only(kept, c.row_of_ints("kept", h), expected_scores)) {
        error = where + "other rows";
      }
    }
  });
  if (n < budget) {  // below the budget no cut is due
    return c.has("kept_all") && c.dim("kept_all", 1) == n ? "" : "a cut is due";
  }
  cutter.run({&cut, 1});
  return error;
}

#ifdef RESTKV_EMULATED
// The emulated device in f32, or with RESTKV_TEST_DEVICE=cuda the first card (tools/gpu_check.sh).
std::unique_ptr<Backend> make_device() {
  const char* named = std::getenv("RESTKV_TEST_DEVICE");
  if (named == nullptr || std::string_view(named) != "cuda") return with_host_memory(make_emulated_backend());
  auto card = cuda::open_card(0, {.type = DType::kF32});
  CHECK(card.ok()) << card.status().message();
  return with_host_memory(std::move(*card), /*keeps_memory=*/true);
}
#endif

}  // namespace

int run() {
  golden::Run run("RESTKV_GOLDEN_DIR", std::string(RESTKV_SHARED_DIR) + "/golden/restkv");
  if (!run.has_folder()) return run.finish();
#ifdef RESTKV_EMULATED
  const std::unique_ptr<Backend> backend = make_device();
#else
  const std::unique_ptr<Backend> backend = make_cpu_backend(0);
#endif
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(run.folder())) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  for (const fs::path& path : files) {
    const std::string name = path.stem().string();
    const auto file = MappedFile::open(path.string());
    const auto parsed = file.ok() ? parse_safetensors(*file) : Result<SafetensorsFile>(file.status());
    if (!parsed.ok()) {
      run.fail(name, parsed.status().message());
      continue;
    }
    Case c{.metadata = parsed->metadata, .tensors = {}};
    for (const FileTensor& tensor : parsed->index.tensors) c.tensors[tensor.name] = tensor;
    std::vector<std::vector<float>> wide;
    widen(&c.tensors, &wide);
    run.ran(name);
    const std::string error = check(*backend, c);
    if (!error.empty()) run.fail(name, error);
  }
  return run.finish();
}

}  // namespace restkv

int main() { return restkv::run(); }

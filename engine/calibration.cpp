#include "engine/calibration.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "engine/device.h"
#include "engine/eviction/error_curve.h"
#include "engine/eviction/policy.h"
#include "engine/eviction/projections.h"
#include "engine/model/transformer.h"
#include "kernels/base/dequant.h"

namespace restkv {
namespace {

constexpr int32_t kBudgets[] = {64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096};
constexpr int32_t kOrderBudget = 256;  // whose pooling reaches 13 rows, as at all budgets from 128 on

class LocalCalibration final : public Calibration {
 public:
  LocalCalibration(std::shared_ptr<const Model> model, std::unique_ptr<Backend> backend, int64_t text_len);

  Status add_text(std::span<const int32_t> tokens, const std::function<void()>& on_layer) override;
  AllocationTables tables() const override;
  const CacheSettings& settings() const override { return settings_; }
  int64_t num_texts() const override { return num_texts_; }

 private:
  struct Buffers {
    Tensor residual;     // [N, M]
    Tensor k, v;         // [N, K*D]
    Tensor raw, pooled;  // [K, N]
    Observation observation;
  };
  Buffers buffers(Arena& arena) const;
  // Of the residual, which `where` has left.
  Status check_finite(const std::string& where) const;
  void add_layer(int64_t layer);
  // [N] rows of a head, kept first.
  std::vector<int32_t> order_of(int64_t head) const;

  const std::shared_ptr<const Model> model_;
  const ModelConfig& config_;
  const std::unique_ptr<Backend> backend_;
  const int64_t len_;  // N
  CacheSettings settings_;
  PolicyRecipe recipe_;
  std::unique_ptr<DeviceBuffer> memory_;
  std::unique_ptr<Transformer> transformer_;
  Buffers b_;
  PagedCacheView no_pages_;
  std::vector<int32_t> positions_, grid_;
  std::optional<Projections> projections_;   // a query head's triangles
  std::optional<Projections> triangles_;     // a KV head's, of all columns of its group
  std::vector<std::vector<double>> curves_;  // [L*K][grid] sums over texts
  int64_t num_texts_ = 0;
};

LocalCalibration::LocalCalibration(std::shared_ptr<const Model> model, std::unique_ptr<Backend> backend,
                                   int64_t text_len)
    : model_(std::move(model)), config_(model_->config), backend_(std::move(backend)), len_(text_len) {
  recipe_ = make_recipe(settings_, kOrderBudget, static_cast<int32_t>(config_.num_layers));
  Arena counting = Arena::counting();
  const Transformer counted(config_, model_->weights, *backend_, counting, len_, 1);
  buffers(counting);
  memory_ = backend_->allocate_for("the work space", counting.used());
  Arena arena(memory_->data(), counting.used());
  transformer_ = std::make_unique<Transformer>(config_, model_->weights, *backend_, arena, len_, 1);
  b_ = buffers(arena);
  no_pages_.dtype = DType::kF32;
  no_pages_.slots = backend_->page_slots();
  no_pages_.head_dim = static_cast<int32_t>(config_.head_dim);
  no_pages_.page_bytes = PagedCacheView::bytes_per_page(DType::kF32, no_pages_.slots, no_pages_.head_dim);
  positions_.resize(static_cast<size_t>(len_));
  std::iota(positions_.begin(), positions_.end(), 0);
  grid_ = curve_grid(settings_.sinks + settings_.window, static_cast<int32_t>(len_));
  const auto heads = static_cast<size_t>(config_.num_layers * config_.num_kv_heads);
  std::vector<ConstTensor> output_weights;
  for (const LayerWeights& layer : model_->weights.layers) output_weights.push_back(layer.o);
  projections_.emplace(*backend_, output_weights, config_.num_heads, config_.head_dim);
  triangles_.emplace(*backend_, output_weights, config_.num_kv_heads,
                     config_.group_size() * config_.head_dim);
  curves_.assign(heads, std::vector<double>(grid_.size(), 0.0));
}

LocalCalibration::Buffers LocalCalibration::buffers(Arena& arena) const {
  const int64_t kv = config_.num_kv_heads * config_.head_dim;
  Buffers b;
  b.residual = arena.tensor(DType::kF32, len_, config_.hidden_size);
  b.k = arena.tensor(DType::kF32, len_, kv);
  b.v = arena.tensor(DType::kF32, len_, kv);
  b.raw = arena.tensor(DType::kF32, config_.num_kv_heads, len_);
  b.pooled = arena.tensor(DType::kF32, config_.num_kv_heads, len_);
  b.observation =
      Observation::make(arena, attention_shape(config_), recipe_.score.kind, settings_.window, len_);
  return b;
}

Status LocalCalibration::check_finite(const std::string& where) const {
  backend_->synchronize();
  for (int64_t row = 0; row < len_; ++row) {
    const float* x = b_.residual.f32(row);
    if (std::all_of(x, x + config_.hidden_size, [](float value) { return std::isfinite(value); })) continue;
    return invalid_argument("the model's numbers are not finite after " + where + ", at token " +
                            std::to_string(row) + " of text " + std::to_string(num_texts_));
  }
  return {};
}

Status LocalCalibration::add_text(std::span<const int32_t> tokens, const std::function<void()>& on_layer) {
  CHECK(static_cast<int64_t>(tokens.size()) == len_) << tokens.size() << " tokens";
  transformer_->embed(tokens, {}, b_.residual);
  if (Status status = check_finite("the embedding"); !status.ok()) return status;
  transformer_->prepare(positions_);
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    const StoreSegment store = {0, len_, b_.k, b_.v, {}};
    const PrefillSegment prefill = {0, len_, {}, b_.k, b_.v, 0};
    transformer_->run_layer(layer, {b_.residual, positions_, {&store, 1}, {&prefill, 1}, {}, no_pages_},
                            [] {});
    transformer_->settle(b_.residual);
    if (Status status = check_finite("layer " + std::to_string(layer)); !status.ok()) return status;
    if (config_.layers[static_cast<size_t>(layer)].window == 0) add_layer(layer);
    on_layer();
  }
  ++num_texts_;
  return {};
}

std::vector<int32_t> LocalCalibration::order_of(int64_t head) const {
  const auto n = static_cast<int32_t>(len_);
  const auto is_protected = [&](int32_t row) { return row < settings_.sinks || row >= n - settings_.window; };
  const auto ranks = [&](const float* scores) {
    std::vector<int32_t> rows(static_cast<size_t>(n)), rank(rows.size());
    std::iota(rows.begin(), rows.end(), 0);
    std::sort(rows.begin(), rows.end(), [&](int32_t a, int32_t b) {
      if (is_protected(a) != is_protected(b)) return is_protected(a);
      const bool odd_a = !std::isfinite(scores[a]), odd_b = !std::isfinite(scores[b]);
      if (odd_a != odd_b) return odd_a;
      if (!odd_a && scores[a] != scores[b]) return scores[a] > scores[b];
      return a > b;
    });
    for (int32_t i = 0; i < n; ++i) rank[static_cast<size_t>(rows[static_cast<size_t>(i)])] = i;
    return rank;
  };
  const std::vector<int32_t> a = ranks(b_.raw.f32(head)), p = ranks(b_.pooled.f32(head));
  std::vector<int32_t> order(static_cast<size_t>(n)), key(order.size());
  for (size_t i = 0; i < key.size(); ++i) key[i] = std::min(2 * a[i], 2 * p[i] + 1);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](int32_t x, int32_t y) { return key[static_cast<size_t>(x)] < key[static_cast<size_t>(y)]; });
  return order;
}

void LocalCalibration::add_layer(int64_t layer) {
  const LayerWeights& weights = model_->weights.layers[static_cast<size_t>(layer)];
  const AttentionShape s = attention_shape(config_);
  const int64_t w = settings_.window, d = s.head_dim, h = s.num_heads, g = h / s.num_kv_heads;
  const ConstTensor q = transformer_->queries(len_ - w, w);
  const ConstTensor projection = projections_->layer(layer);
  const RowSource rows = {.pages = {}, .k = b_.k, .v = b_.v, .first_position = 0};
  const QuerySource queries = {
      .rows = q, .ring = {}, .positions = std::span(positions_).last(static_cast<size_t>(w))};
  const ObserveItem observe{
      .rows = rows, .queries = queries, .projection = projection, .out = b_.observation};
  const ScoreItem score{.rows = rows,
                        .queries = queries,
                        .projection = projection,
                        .layer = static_cast<int32_t>(layer),
                        .observation = b_.observation,
                        .out = b_.raw};
  const SmoothItem smooth{.rows = rows, .in = b_.raw, .out = b_.pooled, .window_rows = recipe_.recent};
  backend_->observe({.shape = s, .spec = recipe_.score, .items = {&observe, 1}, .cache = no_pages_});
  backend_->score({.shape = s, .spec = recipe_.score, .items = {&score, 1}, .cache = no_pages_});
  backend_->smooth({.shape = s, .kind = recipe_.pool, .kernel = recipe_.kernel, .items = {&smooth, 1}});
  backend_->synchronize();

  // Attention and outputs of the window's queries.
  const auto n = static_cast<size_t>(len_);
  std::vector<float> attention(static_cast<size_t>(h * w) * n);  // [W, H, N]
  std::vector<float> outputs(static_cast<size_t>(w * h * d));    // [W, H, D]
  for (int64_t t = 0; t < w; ++t) {
    const auto visible = static_cast<size_t>(len_ - w + t + 1);
    for (int64_t head = 0; head < h; ++head) {
      float* a = attention.data() + static_cast<size_t>(t * h + head) * n;
      float* o = outputs.data() + (t * h + head) * d;
      const float* query = q.f32(t) + head * d;
      const float lse = b_.observation.lse.f32(head)[t];
      for (size_t j = 0; j < visible; ++j) {
        const float* key = b_.k.f32(static_cast<int64_t>(j)) + head / g * d;
        const float* value = b_.v.f32(static_cast<int64_t>(j)) + head / g * d;
        float logit = std::inner_product(query, query + d, key, 0.0f) * s.scale;
        if (s.softcap > 0) logit = s.softcap * std::tanh(logit / s.softcap);
        a[j] = std::exp(logit - lse);
        for (int64_t e = 0; e < d; ++e) o[e] += a[j] * value[e];
      }
    }
  }
  // ||y_t||^2 of the whole layer.
  std::vector<double> norms(static_cast<size_t>(w), 0.0);
  std::vector<float> row(static_cast<size_t>(h * d));
  for (int64_t m = 0; m < weights.o.rows; ++m) {
    dequantize_row(weights.o.dtype, weights.o.row(m), row.data(), h * d);
    for (int64_t t = 0; t < w; ++t) {
      const float* o = outputs.data() + t * h * d;
      const double y = std::inner_product(row.begin(), row.end(), o, 0.0);
      norms[static_cast<size_t>(t)] += y * y;
    }
  }
  const ConstTensor triangles = triangles_->layer(layer);
  for (int64_t head = 0; head < s.num_kv_heads; ++head) {
    const std::vector<int32_t> order = order_of(head);
    const std::span<const float> r(triangles.f32(head * g * d), static_cast<size_t>(g * d * g * d));
    std::vector<double>& curve = curves_[static_cast<size_t>(layer * s.num_kv_heads + head)];
    for (int64_t t = 0; t < w; ++t) {
      const size_t first = static_cast<size_t>(t * h + head * g);
      add_error_curve(
          {.group = static_cast<int32_t>(g),
           .head_dim = static_cast<int32_t>(d),
           .order = order,
           .attention = std::span(attention).subspan(first * n, static_cast<size_t>(g) * n),
           .outputs = std::span(outputs).subspan(first * static_cast<size_t>(d), static_cast<size_t>(g * d)),
           .values = b_.v.f32(0) + head * d,
           .v_stride = b_.v.stride,
           .triangle = r},
          grid_, 1.0 / (static_cast<double>(w) * std::max(1e-30, norms[static_cast<size_t>(t)])), curve);
    }
  }
}

AllocationTables LocalCalibration::tables() const {
  CHECK(num_texts_ > 0) << "no text";
  const auto heads = static_cast<size_t>(config_.num_kv_heads);
  std::vector<size_t> places;  // of heads of full-attention layers
  std::vector<std::vector<double>> curves;
  for (size_t i = 0; i < curves_.size(); ++i) {
    if (config_.layers[i / heads].window > 0) continue;
    places.push_back(i);
    curves.push_back(curves_[i]);
  }
  AllocationTables out;
  for (const DecodeMode mode : {DecodeMode::kEvict, DecodeMode::kGrow}) {
    AllocationTable& table = mode == DecodeMode::kEvict ? out.evict : out.grow;
    table.decode = mode;
    for (const int32_t budget : kBudgets) {
      if (2 * int64_t{budget} > len_) break;
      CacheSettings settings = settings_;
      settings.decode = mode;
      settings.pin = 0;
      if (budget < smallest_budget(settings)) continue;
      const std::vector<double> rows =
          allocate_rows(curves, grid_, budget, calibrated_floor(settings, budget), kCalibratedUnit);
      table.budgets.push_back(budget);
      table.rows.emplace_back(curves_.size(), 0.0);
      for (size_t i = 0; i < places.size(); ++i) table.rows.back()[places[i]] = rows[i];
    }
  }
  return out;
}

}  // namespace

Result<std::unique_ptr<Calibration>> Calibration::make(std::shared_ptr<const Model> model,
                                                       const EngineOptions& options, int64_t text_len) {
  const ModelConfig& config = model->config;
  const bool has_full = std::any_of(config.layers.begin(), config.layers.end(),
                                    [](const LayerConfig& layer) { return layer.window == 0; });
  if (!has_full)
    return invalid_argument(
        "every layer of this model has an attention window; there is nothing to allocate");
  if (text_len < 2 * kBudgets[0] || text_len > config.context_len) {
    return invalid_argument("texts of " + std::to_string(text_len) + " tokens; must be between " +
                            std::to_string(2 * kBudgets[0]) + " and the model's " +
                            std::to_string(config.context_len));
  }
  EngineOptions on_cpu = options;
  if (options.device == "auto") on_cpu.device = "cpu";
  if (on_cpu.device != "cpu")
    return invalid_argument("device " + options.device + "; calibration runs on the CPU: auto or cpu");
  try {
    Result<std::unique_ptr<Backend>> backend = make_backend(on_cpu);
    if (!backend.ok()) return backend.status();
    CHECK((*backend)->is_host_memory()) << "calibration reads what the ops leave";
    return std::unique_ptr<Calibration>(
        std::make_unique<LocalCalibration>(std::move(model), std::move(*backend), text_len));
  } catch (const DeviceError& error) {
    return status_of(error);
  }
}

}  // namespace restkv

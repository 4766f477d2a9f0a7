// Random rows and queries of one (sequence, layer), laid out in scratch, in pages or half and half, and the naive f64
// computation of what observe and score must give: every formula written out over whole matrices.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "tests/kernels/backend_cases.h"

namespace restkv::testing {

// The tests of the eviction ops run on every backend present (backend_cases.h).
class EvictionOps : public ::testing::TestWithParam<size_t> {
 protected:
  static std::unique_ptr<Backend> make(int threads) { return device_op_cases()[GetParam()].make(threads); }
};

struct CaseShape {
  int32_t heads = 4, kv_heads = 2, dim = 16;
  int32_t rows = 70, queries = 8, model_dim = 48;
  int32_t paged = 0;          // of the rows; the others are scratch
  int32_t position_step = 1;  // positions of rows: step * index
  float softcap = 0.0f;
  int32_t window = 0;  // of the attention
  uint32_t seed = 1;
  float logit_scale = 1.0f;
  DType dtype = DType::kF32;      // of K and V: f32, f16 or bf16
  bool has_half_queries = false;  // the queries are of that type too, as a device's are
};

class EvictionCase {
 public:
  explicit EvictionCase(const CaseShape& c) : shape_(c) {
    std::mt19937 random(c.seed);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& x, size_t n, float scale) {
      x.resize(n);
      for (float& v : x) v = scale * normal(random);
    };
    const auto rows = static_cast<size_t>(c.rows), kv = static_cast<size_t>(c.kv_heads * c.dim);
    fill(k, rows * kv, 1.0f);
    fill(v, rows * kv, 1.0f);
    round_rows();
    fill(q, static_cast<size_t>(c.queries * c.heads * c.dim), c.logit_scale);
    round_queries();
    fill(w_o, static_cast<size_t>(c.model_dim * c.heads * c.dim), 0.3f);
    for (int32_t t = 0; t < c.queries; ++t) {
      positions.push_back((c.rows - 1) * c.position_step - (c.queries - 1 - t));
    }
  }

  AttentionShape attention() const {
    return {.num_heads = shape_.heads,
            .num_kv_heads = shape_.kv_heads,
            .head_dim = shape_.dim,
            .scale = 1.0f / std::sqrt(static_cast<float>(shape_.dim)),
            .softcap = shape_.softcap,
            .window = shape_.window};
  }
  int32_t position(int64_t row) const { return static_cast<int32_t>(row) * shape_.position_step; }

  // Puts rows [0, paged) into fresh pages of `backend`; spare pages hold NaN, so that a wrong page shows.
  void store(Backend& backend) {
    const int32_t slots = backend.page_slots();
    stride = (shape_.rows + slots - 1) / slots + 1;
    cache = {.dtype = shape_.dtype, .slots = slots, .head_dim = shape_.dim};
    cache.page_bytes = PagedCacheView::bytes_per_page(shape_.dtype, slots, shape_.dim);
    const int32_t count = stride * shape_.kv_heads * 3;
    pool = backend.allocate(cache.page_bytes * count);
    cache.pool = pool->data();
    std::fill_n(reinterpret_cast<uint32_t*>(pool->data()), pool->bytes() / 4,
                0x7FC07FC0u);  // NaN in every type
    pages.clear();
    for (int32_t h = 0; h < shape_.kv_heads;
         ++h) {  // interleaved: neighbours in a table are not neighbours in memory
      for (int32_t p = 0; p < stride; ++p) pages.push_back((p * shape_.kv_heads + h) * 2 + 1);
    }
    kv_len.assign(static_cast<size_t>(shape_.kv_heads), shape_.paged);
    const int64_t row_bytes = bytes_of(shape_.dtype, shape_.dim);
    for (int32_t h = 0; h < shape_.kv_heads; ++h) {
      for (int32_t j = 0; j < shape_.paged; ++j) {
        const int32_t page = pages[static_cast<size_t>(h * stride + j / slots)];
        const float* key = k.data() + (j * shape_.kv_heads + h) * shape_.dim;
        const float* value = v.data() + (j * shape_.kv_heads + h) * shape_.dim;
        put(key, shape_.dim, cache.keys(page) + j % slots * row_bytes);
        put(value, shape_.dim, cache.values(page) + j % slots * row_bytes);
        cache.positions(page)[j % slots] = position(j);
      }
    }
  }
  RowSource source() const {
    const int64_t cols = int64_t{shape_.kv_heads} * shape_.dim;
    RowSource s;
    if (shape_.paged > 0) s.pages = {.pages = pages.data(), .stride = stride, .kv_len = kv_len.data()};
    if (shape_.paged < shape_.rows) {
      const int64_t first = shape_.paged * cols, count = (shape_.rows - shape_.paged) * cols;
      for (const auto& [values, bytes] : {std::pair{&k, &scratch_k}, std::pair{&v, &scratch_v}}) {
        bytes->resize(static_cast<size_t>(bytes_of(shape_.dtype, count)));
        put(values->data() + first, count, bytes->data());
      }
      s.k = dense(scratch_k.data(), shape_.dtype, shape_.rows - shape_.paged, cols);
      s.v = dense(scratch_v.data(), shape_.dtype, shape_.rows - shape_.paged, cols);
      s.first_position = position(shape_.paged);
    }
    return s;
  }
  // After a change of k or v.
  void round_rows() {
    for (std::vector<float>* x : {&k, &v}) {
      for (float& value : *x) value = rounded(value);
    }
  }
  // After a change of q.
  void round_queries() {
    if (!shape_.has_half_queries) return;
    for (float& x : q) x = rounded(x);
  }
  QuerySource queries() const {
    if (shape_.has_half_queries) {
      half_q.resize(q.size() * 2);
      put(q.data(), static_cast<int64_t>(q.size()), half_q.data());
      return {.rows = dense(half_q.data(), shape_.dtype, shape_.queries, int64_t{shape_.heads} * shape_.dim),
              .positions = positions};
    }
    return {.rows = dense(q.data(), DType::kF32, shape_.queries, int64_t{shape_.heads} * shape_.dim),
            .positions = positions};
  }

  // A[t][j] of one query head.
  std::vector<std::vector<double>> attention_of(int32_t head) const {
    const int32_t kv_head = head / (shape_.heads / shape_.kv_heads);
    std::vector<std::vector<double>> a(static_cast<size_t>(shape_.queries),
                                       std::vector<double>(static_cast<size_t>(shape_.rows), 0.0));
    for (int32_t t = 0; t < shape_.queries; ++t) {
      std::vector<double> logits(static_cast<size_t>(shape_.rows), -INFINITY);
      double most = -INFINITY, sum = 0.0;
      for (int32_t j = 0; j < shape_.rows; ++j) {
        const int32_t distance = positions[static_cast<size_t>(t)] - position(j);
        if (distance < 0 || (shape_.window > 0 && distance >= shape_.window)) continue;
        double dot = 0.0;
        for (int32_t d = 0; d < shape_.dim; ++d) dot += query(t, head, d) * key(j, kv_head, d);
        dot /= std::sqrt(static_cast<double>(shape_.dim));
        if (shape_.softcap > 0)
          dot = static_cast<double>(shape_.softcap) * std::tanh(dot / static_cast<double>(shape_.softcap));
        logits[static_cast<size_t>(j)] = dot;
        most = std::max(most, dot);
      }
      if (most == -INFINITY) continue;
      for (const double l : logits) sum += std::exp(l - most);
      for (int32_t j = 0; j < shape_.rows; ++j) {
        a[static_cast<size_t>(t)][static_cast<size_t>(j)] =
            std::exp(logits[static_cast<size_t>(j)] - most) / sum;
      }
    }
    return a;
  }
  double key(int64_t j, int32_t h, int32_t d) const {
    return static_cast<double>(k[static_cast<size_t>((j * shape_.kv_heads + h) * shape_.dim + d)]);
  }
  double value(int64_t j, int32_t h, int32_t d) const {
    return static_cast<double>(v[static_cast<size_t>((j * shape_.kv_heads + h) * shape_.dim + d)]);
  }
  double query(int64_t t, int32_t h, int32_t d) const {
    return static_cast<double>(q[static_cast<size_t>((t * shape_.heads + h) * shape_.dim + d)]);
  }

  // ||W_g x||, or ||x|| in value space.
  double norm(int32_t head, const std::vector<double>& x, bool in_output_space) const {
    double sum = 0.0;
    if (!in_output_space) {
      for (const double value : x) sum += value * value;
      return std::sqrt(sum);
    }
    for (int32_t m = 0; m < shape_.model_dim; ++m) {
      double y = 0.0;
      for (int32_t d = 0; d < shape_.dim; ++d) {
        y += static_cast<double>(
                 w_o[static_cast<size_t>(m * shape_.heads * shape_.dim + head * shape_.dim + d)]) *
             x[static_cast<size_t>(d)];
      }
      sum += y * y;
    }
    return std::sqrt(sum);
  }

  // Scores [K][N] by the formulas of restkv.md section 2 to 5, without any of its shortcuts: the removal of row j is
  // computed by removing it.
  std::vector<std::vector<double>> expected(const ScoreSpec& spec, int32_t window_rows,
                                            bool in_output_space) const {
    if (spec.kind == ScoreKind::kIndicatorQuery) return joined(spec, errors(spec, in_output_space));
    const int32_t group = shape_.heads / shape_.kv_heads;
    std::vector<std::vector<double>> scores = no_scores();
    for (int32_t head = 0; head < shape_.heads; ++head) {
      const int32_t kv_head = head / group;
      const auto a = attention_of(head);
      for (int32_t j = 0; j < shape_.rows; ++j) {
        double& s = scores[static_cast<size_t>(kv_head)][static_cast<size_t>(j)];
        if (spec.kind == ScoreKind::kAttention) {
          s += summed(a, j) / group;
        } else {
          join(spec.group, smoothed(spec, a, head, kv_head, j, window_rows, in_output_space), s);
        }
      }
    }
    return scores;
  }

  // What the removal of each row does to each query that sees something: [H][N][queries]. All that takes long of
  // kIndicatorQuery, and the same for every reduction.
  using Errors = std::vector<std::vector<std::vector<double>>>;
  Errors errors(const ScoreSpec& spec, bool in_output_space) const {
    Errors list(static_cast<size_t>(shape_.heads));
    for (int32_t head = 0; head < shape_.heads; ++head) {
      const auto a = attention_of(head);
      for (int32_t j = 0; j < shape_.rows; ++j) {
        list[static_cast<size_t>(head)].push_back(
            errors_of(spec, a, head, head / (shape_.heads / shape_.kv_heads), j, in_output_space));
      }
    }
    return list;
  }
  // Over the queries, then over the group.
  std::vector<std::vector<double>> joined(const ScoreSpec& spec, const Errors& errors) const {
    std::vector<std::vector<double>> scores = no_scores();
    for (size_t head = 0; head < errors.size(); ++head) {
      auto& own = scores[head / static_cast<size_t>(shape_.heads / shape_.kv_heads)];
      for (size_t j = 0; j < own.size(); ++j) join(spec.group, over_queries(spec, errors[head][j]), own[j]);
    }
    return scores;
  }

  const CaseShape shape_;
  std::vector<float> q, k, v, w_o;
  mutable std::vector<std::byte> scratch_k,
      half_q,     // of queries()
      scratch_v;  // of source(): the rows behind the paged ones, in the case's type
  std::vector<int32_t> positions;
  PagedCacheView cache;
  std::unique_ptr<DeviceBuffer> pool;
  std::vector<int32_t> pages, kv_len;
  int32_t stride = 0;

 private:
  float rounded(float x) const {
    if (shape_.dtype == DType::kF16) return f16_to_f32(f32_to_f16(x));
    return shape_.dtype == DType::kBF16 ? bf16_to_f32(f32_to_bf16(x)) : x;
  }
  void put(const float* values, int64_t count, std::byte* out) const {
    for (int64_t i = 0; i < count; ++i) {
      if (shape_.dtype == DType::kF32) {
        std::memcpy(out + 4 * i, values + i, 4);
      } else {
        const uint16_t half = shape_.dtype == DType::kF16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
        std::memcpy(out + 2 * i, &half, 2);
      }
    }
  }
  static double summed(const std::vector<std::vector<double>>& a, int32_t j) {
    double sum = 0.0;
    for (const auto& row : a) sum += row[static_cast<size_t>(j)];
    return sum;
  }
  static bool is_blind(const std::vector<double>& a) {
    return std::all_of(a.begin(), a.end(), [](double x) { return x == 0.0; });
  }
  std::vector<std::vector<double>> no_scores() const {
    return {static_cast<size_t>(shape_.kv_heads), std::vector<double>(static_cast<size_t>(shape_.rows), 0.0)};
  }
  void join(GroupReduce reduce, double error, double& score) const {
    switch (reduce) {
      case GroupReduce::kRss: score = std::sqrt(score * score + error * error); break;
      case GroupReduce::kMax: score = std::max(score, error); break;
      case GroupReduce::kMean: score += error / (shape_.heads / shape_.kv_heads); break;
    }
  }
  std::vector<double> errors_of(const ScoreSpec& spec, const std::vector<std::vector<double>>& a,
                                int32_t head, int32_t kv_head, int32_t removed, bool in_output_space) const {
    std::vector<double> list;
    for (const auto& weights : a) {
      if (is_blind(weights)) continue;
      double others = 0.0;
      std::vector<double> o(static_cast<size_t>(shape_.dim), 0.0),
          o_without(static_cast<size_t>(shape_.dim), 0.0);
      for (int32_t j = 0; j < shape_.rows; ++j) {
        for (int32_t d = 0; d < shape_.dim; ++d) {
          const double part = weights[static_cast<size_t>(j)] * value(j, kv_head, d);
          o[static_cast<size_t>(d)] += part;
          if (j != removed) o_without[static_cast<size_t>(d)] += part;
        }
        if (j != removed) others += weights[static_cast<size_t>(j)];
      }
      // o without the row, minus o, is a/(1-a) (o - v): with tau only the norm of (o - v) is raised.
      std::vector<double> difference(static_cast<size_t>(shape_.dim));
      for (size_t d = 0; d < difference.size(); ++d) {
        difference[d] =
            o_without[d] / others - value(removed, kv_head, static_cast<int32_t>(d));  // (o - v) / (1 - a)
      }
      const double a_j = weights[static_cast<size_t>(removed)];
      double e = a_j * std::pow(others, static_cast<double>(spec.tau) - 1.0) *
                 std::pow(norm(head, difference, in_output_space), static_cast<double>(spec.tau));
      if (spec.normalize) e /= norm(head, o, in_output_space);
      list.push_back(e);
    }
    return list;
  }
  static double over_queries(const ScoreSpec& spec, const std::vector<double>& errors) {
    if (errors.empty()) return 0.0;
    double result = 0.0;
    bool is_first = true;
    for (const double e : errors) {
      switch (spec.reduce) {
        case QueryReduce::kRms: result += e * e; break;
        case QueryReduce::kMean: result += e; break;
        case QueryReduce::kMax: result = std::max(result, e); break;
        case QueryReduce::kEma:
          result = is_first ? e
                            : static_cast<double>(spec.alpha) * e +
                                  (1.0 - static_cast<double>(spec.alpha)) * result;
          break;
      }
      is_first = false;
    }
    const auto count = static_cast<double>(errors.size());
    if (spec.reduce == QueryReduce::kRms) return std::sqrt(result / count);
    return spec.reduce == QueryReduce::kMean ? result / count : result;
  }
  double smoothed(const ScoreSpec& spec, const std::vector<std::vector<double>>& a, int32_t head,
                  int32_t kv_head, int32_t scored, int32_t window_rows, bool in_output_space) const {
    const int32_t end = shape_.rows - window_rows;
    if (scored >= end) return 0.0;
    std::vector<double> mean(static_cast<size_t>(end), 0.0);
    for (size_t t = 0; t < a.size(); ++t) {
      for (size_t j = 0; j < mean.size(); ++j) {
        if (spec.reduce == QueryReduce::kEma) {
          const double alpha = static_cast<double>(spec.alpha);
          mean[j] = t == 0 ? a[t][j] : alpha * a[t][j] + (1.0 - alpha) * mean[j];
        } else {
          mean[j] += a[t][j] / static_cast<double>(a.size());
        }
      }
    }
    std::vector<double> difference(static_cast<size_t>(shape_.dim));
    for (int32_t d = 0; d < shape_.dim; ++d) {
      double o = 0.0;
      for (int32_t j = 0; j < end; ++j) o += mean[static_cast<size_t>(j)] * value(j, kv_head, d);
      difference[static_cast<size_t>(d)] = o - value(scored, kv_head, d);
    }
    const double m = mean[static_cast<size_t>(scored)];
    return m / (1.0 - m) * std::pow(norm(head, difference, in_output_space), static_cast<double>(spec.tau));
  }
};

// Memory of observe and score for one case.
struct StepMemory {
  StepMemory(const AttentionShape& shape, ScoreKind kind, int64_t queries, int64_t rows,
             bool with_logits = false) {
    Arena counting = Arena::counting();
    Observation::make(counting, shape, kind, queries, rows, with_logits);
    bytes.resize(static_cast<size_t>(counting.used()) + 64,
                 std::byte{0xFF});  // NaN: nothing may be read unwritten
    auto* base = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) / 64 * 64);
    Arena arena(base, counting.used());
    observation = Observation::make(arena, shape, kind, queries, rows, with_logits);
    scores.assign(static_cast<size_t>(shape.num_kv_heads * rows), -1.0f);
    out = dense(scores.data(), DType::kF32, shape.num_kv_heads, rows);
  }
  std::vector<std::byte> bytes;
  Observation observation;
  std::vector<float> scores;
  Tensor out;
};

}  // namespace restkv::testing

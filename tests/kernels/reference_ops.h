// Naive f64 references of the ops, written from their definitions and sharing no code with a backend but the scalar
// dequantiser (itself tested bit for bit against ../shared/golden/gguf).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/dequant.h"

namespace restkv::reference {

using Row = std::vector<double>;

inline Row weight_row(const ConstTensor& weight, int64_t r) {
  std::vector<float> values(static_cast<size_t>(weight.cols));
  dequantize_row(weight.dtype, weight.row(r), values.data(), weight.cols);
  return Row(values.begin(), values.end());
}

inline double dot(const float* a, const Row& b) {
  double sum = 0.0;
  for (size_t i = 0; i < b.size(); ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

// One row of x (after the residual was added), group by group.
inline Row rmsnorm(const Row& x, const Row& weight, double eps, double offset) {
  Row out(x.size());
  for (size_t begin = 0; begin < x.size(); begin += weight.size()) {
    double sum = 0.0;
    for (size_t i = 0; i < weight.size(); ++i) sum += x[begin + i] * x[begin + i];
    const double scale = 1.0 / std::sqrt(sum / static_cast<double>(weight.size()) + eps);
    for (size_t i = 0; i < weight.size(); ++i) out[begin + i] = x[begin + i] * scale * (offset + weight[i]);
  }
  return out;
}

inline double activate(Activation activation, double x) {
  if (activation == Activation::kSilu) return x / (1.0 + std::exp(-x));
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

// One head of one row.
inline Row rotate(const float* x, const float* rope, int64_t head_dim, bool interleaved) {
  Row out(static_cast<size_t>(head_dim));
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const int64_t a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + half;
    const double c = static_cast<double>(rope[i]), s = static_cast<double>(rope[half + i]);
    const double xa = static_cast<double>(x[a]), xb = static_cast<double>(x[b]);
    out[static_cast<size_t>(a)] = xa * c - xb * s;
    out[static_cast<size_t>(b)] = xb * c + xa * s;
  }
  return out;
}

// R of W_g [M, D], columns [begin, begin + dim) of the weight, by Householder QR: [D][D], zero below the diagonal; the signs of
// its rows are anyone's.
inline std::vector<Row> triangle(const ConstTensor& weight, int64_t begin, int64_t dim) {
  const auto n = static_cast<size_t>(dim), m = std::max(n, static_cast<size_t>(weight.rows));
  std::vector<Row> columns(n, Row(m, 0.0));  // of W_g; fewer rows than columns: zero rows change no norm
  for (int64_t r = 0; r < weight.rows; ++r) {
    const Row row = weight_row(weight, r);
    for (size_t d = 0; d < n; ++d) columns[d][static_cast<size_t>(r)] = row[static_cast<size_t>(begin) + d];
  }
  std::vector<Row> out(n, Row(n, 0.0));
  for (size_t d = 0; d < n; ++d) {
    Row& column = columns[d];
    double norm = 0.0;
    for (size_t r = d; r < m; ++r) norm += column[r] * column[r];
    norm = std::sqrt(norm);
    const double diagonal = column[d] > 0.0 ? -norm : norm;
    for (size_t e = 0; e < d; ++e) out[e][d] = column[e];  // finished by the earlier reflections
    out[d][d] = diagonal;
    column[d] -= diagonal;
    double vv = 0.0;
    for (size_t r = d; r < m; ++r) vv += column[r] * column[r];
    if (vv == 0.0) continue;
    for (size_t c = d + 1; c < n; ++c) {  // loses 2 v (v.c) / (v.v)
      double product = 0.0;
      for (size_t r = d; r < m; ++r) product += column[r] * columns[c][r];
      for (size_t r = d; r < m; ++r) columns[c][r] -= 2.0 * product / vv * column[r];
    }
  }
  return out;
}

struct Entry {
  Row k, v;  // [D]
  int64_t position = 0;
};

struct AttentionResult {
  Row out;  // [D]
  double lse = -std::numeric_limits<double>::infinity();
};

// One query at `position` over all entries of its head.
inline AttentionResult attention(const AttentionShape& shape, const float* q, int64_t position,
                                 const std::vector<Entry>& entries) {
  const auto dim = static_cast<size_t>(shape.head_dim);
  AttentionResult result;
  result.out.assign(dim, 0.0);
  std::vector<double> scores;
  std::vector<const Entry*> seen;
  double max = -std::numeric_limits<double>::infinity();
  for (const Entry& entry : entries) {
    if (entry.position > position) continue;
    if (shape.window > 0 && entry.position <= position - shape.window) continue;
    double s = dot(q, entry.k) * static_cast<double>(shape.scale);
    if (shape.softcap > 0.0f) {
      s = static_cast<double>(shape.softcap) * std::tanh(s / static_cast<double>(shape.softcap));
    }
    scores.push_back(s);
    seen.push_back(&entry);
    max = std::max(max, s);
  }
  if (seen.empty()) return result;
  double sum = 0.0;
  for (size_t j = 0; j < seen.size(); ++j) {
    const double p = std::exp(scores[j] - max);
    sum += p;
    for (size_t d = 0; d < dim; ++d) result.out[d] += p * seen[j]->v[d];
  }
  for (double& x : result.out) x /= sum;
  result.lse = max + std::log(sum);
  return result;
}

}  // namespace restkv::reference

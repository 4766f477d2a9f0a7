// Householder QR of a tall matrix, column by column. Rows of the weight are dequantised once for each head.
#include "engine/eviction/projection.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/base/dequant.h"

namespace restkv {

void project_output_head(const ConstTensor& weight, int64_t head, int64_t head_dim, float* out) {
  const int64_t m = std::max(weight.rows, head_dim);  // fewer rows than columns: zero rows change no norm
  std::vector<double> a(static_cast<size_t>(m * head_dim), 0.0);  // [D, M]: column d of W_g is contiguous
  std::vector<float> row(static_cast<size_t>(weight.cols));
  for (int64_t r = 0; r < weight.rows; ++r) {
    dequantize_row(weight.dtype, weight.row(r), row.data(), weight.cols);
    for (int64_t d = 0; d < head_dim; ++d) {
      a[static_cast<size_t>(d * m + r)] = static_cast<double>(row[static_cast<size_t>(head * head_dim + d)]);
    }
  }
  std::fill(out, out + head_dim * head_dim, 0.0f);
  for (int64_t d = 0; d < head_dim; ++d) {
    double* column = a.data() + d * m;
    double norm = 0.0;
    for (int64_t r = d; r < m; ++r) norm += column[r] * column[r];
    norm = std::sqrt(norm);
    const double diagonal = column[d] > 0.0 ? -norm : norm;
    if (norm > 0.0) {
      // v = column - diagonal * e_d; every later column c loses 2 v (v.c) / (v.v)
      column[d] -= diagonal;
      double vv = 0.0;
      for (int64_t r = d; r < m; ++r) vv += column[r] * column[r];
      for (int64_t c = d + 1; c < head_dim && vv > 0.0; ++c) {
        double* other = a.data() + c * m;
        double dot = 0.0;
        for (int64_t r = d; r < m; ++r) dot += column[r] * other[r];
        const double factor = 2.0 * dot / vv;
        for (int64_t r = d; r < m; ++r) other[r] -= factor * column[r];
      }
    }
    // Column d of R: rows 0 .. d - 1 were finished by the earlier reflections.
    for (int64_t e = 0; e < d; ++e) out[d * head_dim + e] = static_cast<float>(column[e]);
    out[d * head_dim + d] = static_cast<float>(diagonal);
  }
}

void project_output_heads(const ConstTensor& weight, int64_t num_heads, int64_t head_dim, float* out) {
  for (int64_t g = 0; g < num_heads; ++g) {
    project_output_head(weight, g, head_dim, out + g * head_dim * head_dim);
  }
}

}  // namespace restkv

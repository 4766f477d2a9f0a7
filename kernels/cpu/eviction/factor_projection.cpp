// factor_projection: G_g = W_g^T W_g [D, D], then the Cholesky factor R_g^T R_g = G_g, both in f64. A head is one unit of work.
//
// Why not a QR of W_g. It takes four times the multiply-adds, column by column through [M, D], where the Gram matrix is a product
// in blocks. What the square of the condition number costs is not seen: products of two f32 are exact in f64 and the sums
// are off by some 1e-15 of ||w_i|| ||w_j||, so that a direction x which W_g maps to less than some 3e-8 of its columns' lengths
// gets that error, and R_g is rounded to f32 (6e-8 of them) in any case; all other norms are better than f32 can say.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/eviction/eviction_ops.h"

namespace restkv::cpu {
namespace {

constexpr int64_t kPanelRows = 64;
// A pivot is the square of what is left of column k beside the columns before it. At or below this share of the whole square it is
// what rounding left of 0: the column depends on them (a dead or pruned head, M < D), and row k of R_g is 0.
constexpr double kRankTolerance = 1e-14;

// Grow-only memory of a thread.
struct Memory {
  std::vector<float> row;
  std::vector<double> panel;  // [padded / kStrip, kPanelRows, kStrip]
  std::vector<double> gram;   // [padded, padded], then R_g in its upper triangle
};

struct HeadColumns {
  int64_t begin, dim, padded;  // of the weight's columns: [begin, begin + dim)
};

void make_gram(const ConstTensor& weight, const HeadColumns& head, Dequantize dequantize,
               const GramKernels& kernels, Memory& memory) {
  // Whole blocks around the head's columns.
  const int64_t elems = dtype_info(weight.dtype).block_elems;
  const int64_t first = head.begin / elems * elems;
  const int64_t end = (head.begin + head.dim + elems - 1) / elems * elems;
  const int64_t lead = head.begin - first;
  memory.row.resize(static_cast<size_t>(std::max(end - first, lead + head.padded)));
  memory.panel.resize(static_cast<size_t>(head.padded * kPanelRows));
  memory.gram.assign(static_cast<size_t>(head.padded * head.padded), 0.0);
  float* x = memory.row.data() + lead;
  for (int64_t begin = 0; begin < weight.rows; begin += kPanelRows) {
    const int64_t rows = std::min(kPanelRows, weight.rows - begin);
    for (int64_t r = 0; r < rows; ++r) {
      const auto* source =
          static_cast<const std::byte*>(weight.row(begin + r)) + bytes_of(weight.dtype, first);
      dequantize(weight.dtype, source, memory.row.data(), end - first);
      std::fill(x + head.dim, x + head.padded, 0.0f);
      kernels.widen_row(x, head.padded, memory.panel.data() + r * kStrip, rows * kStrip);
    }
    kernels.add_gram(memory.panel.data(), rows, head.padded, memory.gram.data());
  }
}

// The upper triangle of g [padded, padded] becomes R; false where a weight was not finite.
bool factor(double* g, const HeadColumns& head, const GramKernels& kernels) {
  double trace = 0.0;
  for (int64_t k = 0; k < head.dim; ++k) trace += g[k * head.padded + k];
  if (!std::isfinite(trace)) return false;
  for (int64_t k = 0; k < head.dim; ++k) {
    double* row = g + k * head.padded;
    const double square = row[k];
    kernels.subtract_rows(g, k, head.padded);
    const bool is_dependent = row[k] <= kRankTolerance * square;
    const double scale = is_dependent ? 0.0 : 1.0 / std::sqrt(row[k]);
    for (int64_t j = k; j < head.dim; ++j) row[j] *= scale;
  }
  return true;
}

void write_transposed(const double* r, bool is_finite, const HeadColumns& head, const Tensor& out) {
  for (int64_t d = 0; d < head.dim; ++d) {
    float* row = out.f32(head.begin + d);
    for (int64_t e = 0; e <= d; ++e) {
      row[e] =
          is_finite ? static_cast<float>(r[e * head.padded + d]) : std::numeric_limits<float>::quiet_NaN();
    }
    std::fill(row + d + 1, row + head.dim, 0.0f);
  }
}

}  // namespace

void factor_projection(const FactorProjectionArgs& args, Dequantize dequantize, const GramKernels& kernels,
                       ThreadPool& pool) {
  const int64_t dim = args.out.cols, padded = (dim + kStrip - 1) / kStrip * kStrip;
  pool.parallel_for(args.num_heads, [&](int64_t g, int) {
    thread_local Memory memory;
    const HeadColumns head{g * dim, dim, padded};
    make_gram(args.weight, head, dequantize, kernels, memory);
    const bool is_finite = factor(memory.gram.data(), head, kernels);
    write_transposed(memory.gram.data(), is_finite, head, args.out);
  });
}

}  // namespace restkv::cpu

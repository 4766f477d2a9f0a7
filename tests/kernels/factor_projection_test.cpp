// factor_projection on every backend present: the triangles give the norms of the weights, whatever their rank.
#include "tests/kernels/backend_cases.h"
#include "tests/kernels/reference_ops.h"

namespace restkv {
namespace {

class FactorProjection : public testing::TestWithParam<size_t> {
 protected:
  static const BackendCase& column() { return device_op_cases()[GetParam()]; }
  static std::unique_ptr<Backend> make(int threads = 2) { return column().make(threads); }
};
INSTANTIATE_TEST_SUITE_P(Backends, FactorProjection, testing::Range(size_t{0}, device_op_cases().size()),
                         [](const auto& info) { return device_op_cases()[info.param].name; });

// [H*D, D], with room behind each row that must stay as it was.
constexpr int64_t kRoom = 3;
constexpr float kUntouched = 7.0f;
Floats run(Backend& backend, const ConstTensor& weight, int64_t heads) {
  const int64_t dim = weight.cols / heads;
  Floats padded(static_cast<size_t>(weight.cols * (dim + kRoom)), kUntouched), out;
  Tensor view = dense(padded.data(), DType::kF32, weight.cols, dim + kRoom);
  view.cols = dim;
  // A card computes with f32, f16 and bf16 as they are.
  if (is_block_type(weight.dtype)) {
    const PlacedWeight placed(backend, weight);
    backend.factor_projection({placed.tensor(), static_cast<int32_t>(heads), view});
  } else {
    backend.factor_projection({weight, static_cast<int32_t>(heads), view});
  }
  for (int64_t r = 0; r < weight.cols; ++r) {
    out.insert(out.end(), view.f32(r), view.f32(r) + dim);
    for (int64_t i = dim; i < dim + kRoom; ++i) EXPECT_EQ(view.f32(r)[i], kUntouched) << "row " << r;
  }
  return out;
}

// The columns of one head in f64, [D][M], and the lengths of them.
struct Head {
  std::vector<reference::Row> columns;
  std::vector<double> lengths;

  Head(const ConstTensor& weight, int64_t head, int64_t dim) : columns(static_cast<size_t>(dim)) {
    for (int64_t r = 0; r < weight.rows; ++r) {
      const reference::Row row = reference::weight_row(weight, r);
      for (size_t d = 0; d < columns.size(); ++d)
        columns[d].push_back(row[static_cast<size_t>(head * dim) + d]);
    }
    for (const reference::Row& column : columns) lengths.push_back(std::sqrt(product(column, column)));
  }
  static double product(const reference::Row& a, const reference::Row& b) {
    double sum = 0.0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  }
};

// R x by the transposed triangle r [D, D].
double norm_by(const float* r, const std::vector<double>& x) {
  const size_t dim = x.size();
  double square = 0.0;
  for (size_t e = 0; e < dim; ++e) {
    double y = 0.0;
    for (size_t d = 0; d < dim; ++d) y += static_cast<double>(r[d * dim + e]) * x[d];
    square += y * y;
  }
  return std::sqrt(square);
}

double norm_by(const std::vector<reference::Row>& triangle, const std::vector<double>& x) {
  double square = 0.0;
  for (const reference::Row& row : triangle) square += std::pow(Head::product(row, x), 2);
  return std::sqrt(square);
}

void expect_triangles(const Floats& got, const ConstTensor& weight, int64_t heads, const std::string& what) {
  const int64_t dim = weight.cols / heads;
  const auto n = static_cast<size_t>(dim);
  for (int64_t g = 0; g < heads; ++g) {
    const std::string where = what + " head " + std::to_string(g);
    const float* r = &got[static_cast<size_t>(g * dim * dim)];
    const Head head(weight, g, dim);
    for (size_t d = 0; d < n; ++d) {
      for (size_t e = d + 1; e < n; ++e) ASSERT_EQ(r[d * n + e], 0.0f) << where << " " << d << ", " << e;
    }
    for (size_t i = 0; i < n; ++i) {  // R^T R is W^T W
      for (size_t j = i; j < n; ++j) {
        double sum = 0.0;
        for (size_t e = 0; e <= i; ++e)
          sum += static_cast<double>(r[i * n + e]) * static_cast<double>(r[j * n + e]);
        ASSERT_NEAR(sum, Head::product(head.columns[i], head.columns[j]),
                    5e-7 * head.lengths[i] * head.lengths[j])
            << where << " " << i << ", " << j;
      }
    }
    const std::vector<reference::Row> expected = reference::triangle(weight, g * dim, dim);
    for (uint64_t round = 0; round < 4; ++round) {
      const Floats x = random_floats(dim, 100 + round);
      const std::vector<double> wide(x.begin(), x.end());
      const double want = norm_by(expected, wide);
      ASSERT_NEAR(norm_by(r, wide), want, 5e-7 * want) << where;
    }
    for (size_t d = 0; d < n; ++d) {  // also of columns that are tiny beside the others
      std::vector<double> x(n);
      x[d] = 1.0;
      ASSERT_NEAR(norm_by(r, x), head.lengths[d], 5e-7 * head.lengths[d]) << where << " column " << d;
    }
  }
}

struct Shape {
  int64_t rows, heads, dim;  // M, H, D
};

TEST_P(FactorProjection, NormsAreThoseOfTheWeights) {
  const auto backend = make();
  for (const DType dtype : kWeightTypes) {
    if (column().is_emulated && is_block_type(dtype) && dtype != DType::kQ4_K) continue;  // all placed as f32
    std::vector<Shape> shapes = {{40, 12, 64}, {90, 4, 64}, {130, 2, 128}, {30, 1, 256}};
    if (dtype == DType::kF32 || dtype == DType::kQ4_K) shapes.push_back({300, 1, 256});
    if (!is_block_type(dtype)) {
      const Shape plain[] = {{100, 3, 16},  {1, 4, 8},   {9, 5, 8}, {64, 2, 72},
                             {2100, 1, 24}, {17, 3, 20}, {12, 2, 5}};
      shapes.insert(shapes.end(), std::begin(plain), std::end(plain));
    }
    for (const Shape& s : shapes) {
      if (s.heads * s.dim % dtype_info(dtype).block_elems != 0 || s.dim % column().head_dim_multiple != 0)
        continue;
      const Weights weight(dtype, s.rows, s.heads * s.dim, 1);
      const Floats got = run(*backend, weight.tensor, s.heads);
      expect_triangles(got, weight.tensor, s.heads,
                       std::string(dtype_info(dtype).name) + " M=" + std::to_string(s.rows) +
                           " D=" + std::to_string(s.dim));
      if (HasFatalFailure()) return;
    }
  }
}

// Dead and pruned heads, columns that depend on each other to the last digit of an f32, columns of very different sizes.
TEST_P(FactorProjection, AnyRank) {
  const auto backend = make();
  constexpr int64_t kHeads = 4, kDim = 40, kCols = kHeads * kDim;
  for (const int64_t rows : {3, 39, 500}) {
    Floats w = random_floats(rows * kCols, 2);
    for (int64_t m = 0; m < rows; ++m) {
      float* row = &w[static_cast<size_t>(m * kCols)];
      std::fill(row + kDim, row + 2 * kDim, 0.0f);  // head 1: dead
      row[2] = 0.0f;                                // head 0
      row[17] = row[1] * (1.0f + 1e-6f);            // head 0: differs by its rounding
      row[18] = 3.0f * row[1];
      for (int64_t d = 0; d < kDim; ++d)
        row[2 * kDim + d] *= std::pow(10.0f, static_cast<float>(d % 7 - 3) * 4);
      for (int64_t d = 0; d < kDim; ++d) {  // head 3: rank 2
        row[3 * kDim + d] =
            row[3 * kDim] * static_cast<float>(1 + d) + row[3 * kDim + 1] * static_cast<float>(d % 3);
      }
    }
    const ConstTensor weight = view(w, rows);
    const Floats got = run(*backend, weight, kHeads);
    expect_triangles(got, weight, kHeads, "M=" + std::to_string(rows));
    for (int64_t i = kDim * kDim; i < 2 * kDim * kDim; ++i) ASSERT_EQ(got[static_cast<size_t>(i)], 0.0f) << i;
    if (HasFatalFailure()) return;
  }
}

TEST_P(FactorProjection, HeadsThatAreNotFiniteShowAndLeaveTheOthersAlone) {
  const auto backend = make();
  constexpr int64_t kHeads = 3, kDim = 24, kRows = 50;
  const Floats whole = random_floats(kRows * kHeads * kDim, 3);
  const Floats want = run(*backend, view(whole, kRows), kHeads);
  for (const float bad :
       {std::nanf(""), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    Floats w = whole;
    w[static_cast<size_t>(20 * kHeads * kDim + kDim + 11)] = bad;  // a column of head 1
    const Floats got = run(*backend, view(w, kRows), kHeads);
    for (int64_t i = 0; i < kHeads * kDim * kDim; ++i) {
      const auto n = static_cast<size_t>(i);
      const int64_t d = i / kDim % kDim, e = i % kDim;
      if (i / (kDim * kDim) == 1 && e <= d) {
        ASSERT_TRUE(std::isnan(got[n])) << d << ", " << e;
      } else {
        ASSERT_EQ(got[n], want[n]) << i;
      }
    }
  }
}

TEST_P(FactorProjection, ThreadsAndRoundsChangeNoBit) {
  const Weights weight(DType::kBF16, 1500, 3 * 80, 4);
  const Floats want = run(*make(1), weight.tensor, 3);
  for (const int threads : {1, 2, 5}) EXPECT_EQ(run(*make(threads), weight.tensor, 3), want) << threads;
}

// Heads that the card's workspace takes one by one.
TEST(FactorProjectionOnTheEmulator, AWorkspaceForOneHeadGivesTheSameBits) {
  const Weights weight(DType::kF32, 1100, 5 * 64, 5);
  const auto usual = with_host_memory(make_emulated_backend());
  const int64_t one_head = 2 * 64 * 64 * 8;  // two parts of the rows
  const auto small = with_host_memory(make_emulated_backend({.workspace_bytes = one_head + one_head / 2}));
  EXPECT_EQ(run(*small, weight.tensor, 5), run(*usual, weight.tensor, 5));
}

}  // namespace
}  // namespace restkv

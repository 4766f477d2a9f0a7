// wgmma alone, before any kernel is to blame: descriptors, the swizzle, fragments and waits give the products of small whole
// numbers exactly, for each head dim and type of prefill attention.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "kernels/base/tensor.h"
#include "kernels/cuda/card.h"
#include "tests/emulator/emulator.h"
#include "tests/kernels/wgmma_products.h"

namespace restkv {
namespace {

class Wgmma : public testing::TestWithParam<bool> {};

std::vector<bool> columns() {
  std::vector<bool> is_card = {false};
  if (cuda::count_cards().ok()) is_card.push_back(true);
  return is_card;
}
INSTANTIATE_TEST_SUITE_P(Devices, Wgmma, testing::ValuesIn(columns()),
                         [](const auto& info) { return std::string(info.param ? "cuda" : "emulated"); });

bool run(bool is_card, WgmmaProducts& products) {
  if (!is_card) {
    emulator::options().set_card(emulator::Card::kSm90);
    return cuda_emulated::run_wgmma_products(products);
  }
#if RESTKV_HAS_CUDA
  return cuda::run_wgmma_products(products);
#else
  return false;  // there are no cards in such a build
#endif
}

// Of result [64, columns], sums over depth of term(m, n, i, depth).
template <class F>
int64_t num_wrong(const std::vector<float>& result, int32_t columns, int32_t depth, F&& term) {
  int64_t wrong = 0;
  for (size_t m = 0; m < 64; ++m) {
    for (size_t n = 0; n < static_cast<size_t>(columns); ++n) {
      float expected = 0.0f;
      for (size_t i = 0; i < static_cast<size_t>(depth); ++i)
        expected += term(m, n, i, static_cast<size_t>(depth));
      if (result[m * static_cast<size_t>(columns) + n] != expected) ++wrong;
    }
  }
  return wrong;
}

TEST_P(Wgmma, ProductsOfSmallNumbersAreExact) {
  std::mt19937 random(5);
  std::uniform_int_distribution<int> small(-3, 3);
  const auto numbers = [&](int32_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& x : values) x = static_cast<float>(small(random));
    return values;
  };
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const int32_t dim : {64, 96, 128, 256}) {
      WgmmaProducts products{
          .dtype = dtype, .dim = dim, .q = {}, .k = {}, .v = {}, .w = {}, .s = {}, .out = {}};
      const int32_t keys = products.num_keys();
      products.q = numbers(64 * dim);
      products.k = numbers(keys * dim);
      products.v = numbers(keys * dim);
      products.w = numbers(64 * keys);
      if (!run(GetParam(), products)) GTEST_SKIP() << "no card of compute capability 9.0";
      const std::string what = std::string(dtype_info(dtype).name) + " D=" + std::to_string(dim);
      // Which of them are wrong says more than the first that is.
      EXPECT_EQ(num_wrong(products.s, keys, dim,
                          [&](size_t m, size_t n, size_t d, size_t depth) {
                            return products.q[m * depth + d] * products.k[n * depth + d];
                          }),
                0)
          << "q k^T of " << what;
      EXPECT_EQ(num_wrong(products.out, dim, keys,
                          [&](size_t m, size_t n, size_t j, size_t depth) {
                            return products.w[m * depth + j] * products.v[j * static_cast<size_t>(dim) + n];
                          }),
                0)
          << "w v of " << what;
    }
  }
}

}  // namespace
}  // namespace restkv

// Calibrated allocations: error curves against the removal itself, hulls, and the file.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include <nlohmann/json.hpp>

#include "engine/eviction/allocation_file.h"
#include "engine/eviction/error_curve.h"
#include "kernels/cpu/cpu_backend.h"

namespace restkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ErrorCurve, IsTheErrorOfKeepingTheFirstRows) {
  constexpr int kGroup = 3, kDim = 4, kRows = 20, kModel = 12;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> weight(kModel * kGroup * kDim), values(kRows * kDim), attention(kGroup * kRows),
      outputs(kGroup * kDim);
  for (float& x : weight) x = normal(random);
  for (float& x : values) x = normal(random);
  for (int g = 0; g < kGroup; ++g) {
    double sum = 0;
    for (int j = 0; j < kRows; ++j) {
      // The query does not see the last row.
      float& a = attention[static_cast<size_t>(g * kRows + j)];
      a = j + 1 == kRows ? 0.0f : std::exp(2 * normal(random));
      sum += static_cast<double>(a);
    }
    for (int j = 0; j < kRows; ++j) {
      float& a = attention[static_cast<size_t>(g * kRows + j)];
      a = static_cast<float>(static_cast<double>(a) / sum);
      for (int d = 0; d < kDim; ++d)
        outputs[static_cast<size_t>(g * kDim + d)] += a * values[static_cast<size_t>(j * kDim + d)];
    }
  }
  std::vector<int32_t> order(kRows);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  std::vector<float> triangle(kGroup * kDim * kGroup * kDim);
  make_cpu_backend(1)->factor_projection(
      {.weight = dense(static_cast<const void*>(weight.data()), DType::kF32, kModel, kGroup * kDim),
       .num_heads = 1,
       .out = dense(triangle.data(), DType::kF32, kGroup * kDim, kGroup * kDim)});
  const std::vector<int32_t> grid = {2, 3, 9, 19, 20};
  std::vector<double> error(grid.size());
  add_error_curve({.group = kGroup,
                   .head_dim = kDim,
                   .order = order,
                   .attention = attention,
                   .outputs = outputs,
                   .values = values.data(),
                   .v_stride = kDim,
                   .triangle = triangle},
                  grid, 0.5, error);
  for (size_t point = 0; point < grid.size(); ++point) {
    std::vector<double> y(kModel);
    for (int g = 0; g < kGroup; ++g) {
      double mass = 0;
      std::vector<double> o(kDim);
      for (int i = 0; i < grid[point]; ++i) {
        const int j = order[static_cast<size_t>(i)];
        const auto a = static_cast<double>(attention[static_cast<size_t>(g * kRows + j)]);
        mass += a;
        for (int d = 0; d < kDim; ++d)
          o[static_cast<size_t>(d)] += a * static_cast<double>(values[static_cast<size_t>(j * kDim + d)]);
      }
      for (int m = 0; m < kModel; ++m)
        for (int d = 0; d < kDim; ++d)
          y[static_cast<size_t>(m)] +=
              static_cast<double>(weight[static_cast<size_t>((m * kGroup + g) * kDim + d)]) *
              (o[static_cast<size_t>(d)] / mass -
               static_cast<double>(outputs[static_cast<size_t>(g * kDim + d)]));
    }
    double squares = 0;
    for (const double value : y) squares += value * value;
    EXPECT_NEAR(error[point], 0.5 * squares, 1e-4 * squares + 1e-9) << grid[point];
  }
  EXPECT_EQ(error.back(), 0.0) << "all rows stay";
  EXPECT_GT(error[0], 0.0);
}

TEST(ErrorCurve, GridRisesToTheLast) {
  const std::vector<int32_t> grid = curve_grid(36, 2048);
  EXPECT_EQ(grid.front(), 36);
  EXPECT_EQ(grid.back(), 2048);
  for (size_t i = 1; i < grid.size(); ++i) EXPECT_GT(grid[i], grid[i - 1]);
  EXPECT_LT(grid.size(), 80u);
}

TEST(Allocate, RowsGoWhereTheErrorFalls) {
  const std::vector<int32_t> grid = {10, 20, 30, 40};
  // Steep to the end | flat at once | nothing for ten rows, then everything: its hull is a straight line.
  const std::vector<std::vector<double>> curves = {{9, 6, 3, 0}, {1, 0.1, 0.05, 0}, {8, 8, 0, 0}};
  const auto rows = [&](int32_t budget, int32_t floor, int32_t unit) {
    return allocate_rows(curves, grid, budget, floor, unit);
  };
  // -0.4 a row comes first, then -0.3 a row, as far as rows go
  EXPECT_THAT(rows(25, 10, 1), ElementsAre(35, 10, 30));
  EXPECT_THAT(rows(25, 10, 10), ElementsAre(30, 10, 30));  // five left
  EXPECT_THAT(rows(25, 10, 5), ElementsAre(35, 10, 30));
  EXPECT_THAT(rows(10, 10, 1), ElementsAre(10, 10, 10));
  EXPECT_THAT(rows(50, 10, 1), ElementsAre(50, 50, 50));  // more than the curves know
  // A floor between two points of the grid: the third head's hull is steeper from there.
  EXPECT_THAT(rows(25, 15, 5), ElementsAre(30, 15, 30));
}

class AllocationFile : public ::testing::Test {
 protected:
  AllocationFile() {
    config_.architecture = "LlamaForCausalLM";
    config_.num_layers = 2;
    config_.num_kv_heads = 3;
    config_.num_heads = 9;
    config_.head_dim = 64;
    config_.hidden_size = 576;
    config_.vocab_size = 49152;
    tables_.evict.budgets = {64, 128};
    tables_.evict.rows = {{60, 62, 70, 64, 64, 64}, {120, 130, 134, 128, 128, 128}};
    tables_.grow.decode = DecodeMode::kGrow;
    tables_.grow.budgets = {64};
    tables_.grow.rows = {{40, 62, 90, 64, 64, 64}};
    text_ = allocation_json(tables_, config_, {.num_texts = 12, .text_len = 2048, .settings = {}});
  }
  std::string error(const nlohmann::json& file) const {
    const auto parsed = parse_allocation(file.dump(), config_);
    EXPECT_FALSE(parsed.ok());
    return parsed.ok() ? "" : parsed.status().message();
  }
  ModelConfig config_;
  AllocationTables tables_;
  std::string text_;
};

TEST_F(AllocationFile, RoundTrip) {
  const auto parsed = parse_allocation(text_, config_);
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  EXPECT_EQ(parsed->evict.budgets, tables_.evict.budgets);
  EXPECT_EQ(parsed->evict.rows, tables_.evict.rows);
  EXPECT_EQ(parsed->grow.budgets, tables_.grow.budgets);
  EXPECT_EQ(parsed->grow.rows, tables_.grow.rows);
  EXPECT_EQ(parsed->of(DecodeMode::kGrow).decode, DecodeMode::kGrow);
  auto file = nlohmann::json::parse(text_);
  for (const char* key : {"version", "fingerprint", "decode", "budgets", "rows", "texts", "settings"})
    EXPECT_TRUE(file.contains(key)) << key;
  file.erase("grow");  // one table is for both modes
  const auto one = parse_allocation(file.dump(), config_);
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one->grow.rows, tables_.evict.rows);
}

TEST_F(AllocationFile, ErrorsNameWhatIsWrong) {
  const auto good = nlohmann::json::parse(text_);
  const auto with = [&](const char* pointer, const nlohmann::json& value) {
    auto file = good;
    file[nlohmann::json::json_pointer(pointer)] = value;
    return error(file);
  };
  EXPECT_THAT(parse_allocation("{", config_).status().message(), HasSubstr("allocation file"));
  EXPECT_THAT(error(nlohmann::json::array()), HasSubstr("version must be 1"));
  EXPECT_THAT(with("/version", 2), HasSubstr("version must be 1"));
  EXPECT_THAT(with("/fingerprint/arch", "Gemma"), HasSubstr("another architecture"));
  EXPECT_THAT(with("/fingerprint/K", 4), HasSubstr("another model: K is 4, the model's is 3"));
  EXPECT_THAT(with("/fingerprint/V", 1.5), HasSubstr("fingerprint.V"));
  EXPECT_THAT(with("/decode", "both"), HasSubstr("evict or grow"));
  EXPECT_THAT(with("/budgets", nlohmann::json::array()), HasSubstr("budgets"));
  EXPECT_THAT(with("/budgets", {128, 64}), HasSubstr("each above the one before"));
  EXPECT_THAT(with("/rows/0/1", {1, 2}), HasSubstr("3 numbers for each layer"));
  EXPECT_THAT(with("/rows/0/1/1", -1), HasSubstr("between 0 and"));
  EXPECT_THAT(with("/rows/0/1/1", nullptr), HasSubstr("between 0 and"));
  EXPECT_THAT(with("/rows/1", {1}), HasSubstr("2 layers"));
  EXPECT_THAT(with("/grow/rows", 3), HasSubstr("grow.rows"));
}

}  // namespace
}  // namespace restkv

// Rotary frequencies against numbers computed in f64 from the papers' formulas, outside this code.
#include <gtest/gtest.h>

#include <cmath>

#include "engine/model/model_config.h"

namespace restkv {
namespace {

constexpr int64_t kHeadDim = 16;

void expect_frequencies(const RopeConfig& rope, const std::vector<double>& expected) {
  const RopeFrequencies found = rope_frequencies(rope, kHeadDim);
  ASSERT_EQ(found.inv_freq.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(static_cast<double>(found.inv_freq[i]), expected[i], 1e-6 * expected[i]) << i;
  }
}

RopeConfig yarn() {
  RopeConfig rope;
  rope.scaling = RopeScaling::kYarn;
  rope.factor = 4.0;
  rope.beta_fast = 8.0;
  rope.original_context = 64;
  return rope;
}

TEST(Rope, Plain) {
  expect_frequencies({}, {1.0, 0.31622777, 0.1, 0.031622777, 0.01, 0.0031622777, 0.001, 0.00031622777});
  EXPECT_EQ(rope_frequencies({}, kHeadDim).attention_factor, 1.0f);
}

TEST(Rope, Linear) {
  RopeConfig rope;
  rope.scaling = RopeScaling::kLinear;
  rope.factor = 4.0;
  expect_frequencies(rope,
                     {0.25, 0.07905694, 0.025, 0.007905694, 0.0025, 0.0007905694, 0.00025, 7.905694e-05});
}

TEST(Rope, Llama3HasThreeBands) {
  RopeConfig rope;
  rope.theta = 500000.0;
  rope.scaling = RopeScaling::kLlama3;
  rope.factor = 8.0;
  rope.original_context = 64;
  expect_frequencies(rope, {1.0, 0.07940301, 0.004700754, 0.0009115831, 0.0001767767, 3.428102e-05,
                            6.64787e-06, 1.289173e-06});
}

TEST(Rope, Yarn) {
  expect_frequencies(yarn(),
                     {1.0, 0.2371708, 0.05, 0.007905694, 0.0025, 0.0007905694, 0.00025, 7.905694e-05});
  RopeConfig exact = yarn();
  exact.truncate = false;
  expect_frequencies(exact,
                     {1.0, 0.2124687, 0.02566439, 0.007905694, 0.0025, 0.0007905694, 0.00025, 7.905694e-05});
}

TEST(Rope, YarnAttentionFactor) {
  RopeConfig rope = yarn();
  EXPECT_FLOAT_EQ(rope_frequencies(rope, kHeadDim).attention_factor, 1.1386294f);
  rope.mscale = 0.707;
  EXPECT_FLOAT_EQ(rope_frequencies(rope, kHeadDim).attention_factor, 1.1386294f);  // both or none
  rope.mscale_all_dim = 0.5;
  EXPECT_FLOAT_EQ(rope_frequencies(rope, kHeadDim).attention_factor, 1.0268362f);
  rope.attention_factor = 1.5;
  EXPECT_FLOAT_EQ(rope_frequencies(rope, kHeadDim).attention_factor, 1.5f);
  RopeConfig unscaled = yarn();
  unscaled.factor = 1.0;
  EXPECT_FLOAT_EQ(rope_frequencies(unscaled, kHeadDim).attention_factor, 1.0f);
}

TEST(Rope, FactorsOfGgufDivide) {
  RopeConfig rope;
  rope.freq_factors = {1, 1, 2, 4, 8, 8, 8, 8};
  expect_frequencies(rope,
                     {1.0, 0.31622777, 0.05, 0.0079056942, 0.00125, 0.00039528471, 0.000125, 3.9528471e-05});
}

TEST(Rope, ScalingNames) {
  for (const RopeScaling scaling :
       {RopeScaling::kNone, RopeScaling::kLinear, RopeScaling::kLlama3, RopeScaling::kYarn}) {
    EXPECT_EQ(rope_scaling_from_name(rope_scaling_name(scaling)), scaling);
  }
  EXPECT_FALSE(rope_scaling_from_name("longrope"));
}

}  // namespace
}  // namespace restkv

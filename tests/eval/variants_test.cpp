// The list of policies, and slices of texts.
#include "server/eval/variants.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/eval/texts.h"

namespace restkv {
namespace {

using ::testing::HasSubstr;

TEST(Variants, NamesPresetsAndFields) {
  const auto variants =
      parse_variants("restkv,restkv:paper,snapkv[kernel=7],restkv[pool=none,pin=0,alpha=0.5,normalize=true]");
  ASSERT_TRUE(variants.ok()) << variants.status().message();
  ASSERT_EQ(variants->size(), 4u);
  EXPECT_EQ((*variants)[0].request.policy, "restkv");
  EXPECT_FALSE((*variants)[0].request.preset);
  EXPECT_EQ((*variants)[1].name, "restkv:paper");
  EXPECT_EQ((*variants)[1].request.preset, "paper");
  EXPECT_EQ((*variants)[2].request.kernel, 7);
  EXPECT_EQ((*variants)[3].request.pool, "none");
  EXPECT_EQ((*variants)[3].request.pin, 0);
  EXPECT_EQ((*variants)[3].request.alpha, 0.5);
  EXPECT_EQ((*variants)[3].request.normalize, true);
}

TEST(Variants, ErrorsSayWhichAndWhat) {
  const auto error = [](std::string_view list) {
    const auto variants = parse_variants(list);
    EXPECT_FALSE(variants.ok()) << list;
    return variants.ok() ? "" : variants.status().message();
  };
  EXPECT_THAT(error(""), HasSubstr("between 1 and 64"));
  EXPECT_THAT(error("restkv,,snapkv"), HasSubstr("not one of full, restkv"));
  EXPECT_THAT(error("rstkv"), HasSubstr("'rstkv' is not one of full, restkv"));
  EXPECT_THAT(error("restkv:papr"), HasSubstr("'papr' is not one of default, paper"));
  EXPECT_THAT(error("restkv[pool=none"), HasSubstr("closing bracket"));
  EXPECT_THAT(error("restkv[pool]"), HasSubstr("field=value"));
  EXPECT_THAT(error("restkv[=1]"), HasSubstr("field=value"));
  EXPECT_THAT(error("restkv[pol=none]"), HasSubstr("cache.pol"));
  EXPECT_THAT(error("restkv[pin=1,pin=2]"), HasSubstr("given twice"));
  EXPECT_THAT(error("restkv[budget=64]"), HasSubstr("--budgets"));
  EXPECT_THAT(error("restkv[window=x]"), HasSubstr("cache.window"));
  EXPECT_THAT(error("snapkv[pool=forward]"), HasSubstr("snapkv takes none, avg or max"));
  EXPECT_THAT(error("tova,tova"), HasSubstr("twice"));
}

TEST(Texts, SlicesAreEvenlySpreadAndDoNotOverlap) {
  std::vector<int32_t> tokens(103);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i);
  const auto slices = cut_slices(tokens, 10, 10);
  ASSERT_TRUE(slices.ok());
  ASSERT_EQ(slices->size(), 10u);
  for (size_t i = 0; i < 10; ++i) {
    EXPECT_EQ((*slices)[i].size(), 10u);
    EXPECT_TRUE(i == 0 || (*slices)[i].front() > (*slices)[i - 1].back());
  }
  EXPECT_EQ(slices->front().front(), 0);
  EXPECT_EQ(slices->back().back(), 102);
  EXPECT_THAT(cut_slices(tokens, 11, 10).status().message(), HasSubstr("enough for 10 slices of 10; 11"));
}

}  // namespace
}  // namespace restkv

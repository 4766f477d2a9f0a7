// The family table: complete rows, unambiguous names.
#include "engine/model/families.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace restkv {
namespace {

TEST(Families, NamesAreUnambiguous) {
  std::set<std::string_view> names, architectures, types;
  for (const Family& family : families()) {
    EXPECT_TRUE(names.insert(family.name).second) << family.name;
    EXPECT_EQ(find_family_by_name(family.name), &family);
    for (const std::string_view architecture : family.hf_architectures) {
      EXPECT_TRUE(architectures.insert(architecture).second) << architecture;
      EXPECT_EQ(find_family_by_hf_architecture(architecture), &family);
    }
    for (const std::string_view type : family.hf_model_types) {
      EXPECT_TRUE(types.insert(type).second) << type;
      EXPECT_EQ(find_family_by_hf_model_type(type), &family);
    }
    EXPECT_NE(find_family_by_gguf(family.gguf_architecture), nullptr) << family.name;
  }
  EXPECT_EQ(find_family_by_hf_architecture("MixtralForCausalLM"), nullptr);
  EXPECT_EQ(find_family_by_gguf("mamba"), nullptr);
}

TEST(Families, BindEveryWeightOnce) {
  for (const Family& family : families()) {
    std::set<std::string_view> hf, gguf;
    for (const std::span<const LayerWeight> table : family.layer_weights) {
      for (const LayerWeight& row : table) {
        EXPECT_TRUE(hf.insert(row.hf).second) << family.name << " " << row.hf;
        EXPECT_TRUE(gguf.insert(row.gguf).second) << family.name << " " << row.gguf;
      }
    }
    const bool has_post_norms = gguf.contains("post_ffw_norm.weight");
    EXPECT_EQ(has_post_norms, family.norms == NormPlacement::kPreAndPost) << family.name;
    EXPECT_EQ(gguf.contains("attn_q_norm.weight"), family.qk_norm) << family.name;
  }
}

TEST(Families, SupportedNamesAreListed) {
  EXPECT_EQ(supported_gguf_architectures(), "llama, gemma, gemma2, gemma3, qwen2, qwen3");
  EXPECT_THAT(supported_hf_architectures(), ::testing::HasSubstr("Gemma3ForConditionalGeneration"));
}

}  // namespace
}  // namespace restkv

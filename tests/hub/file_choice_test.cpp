#include "server/hub/file_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>

namespace restkv {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::UnorderedElementsAre;
using Names = std::vector<std::string>;

TEST(FileChoice, TypeOfAName) {
  const std::pair<std::string_view, std::string_view> cases[] = {
      {"Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Q4_K_M"},
      {"model.Q4_1.gguf", "Q4_1"},
      {"sub/tiny_q8_0.GGUF", "Q8_0"},
      {"Qwen2.5-0.5B-IQ4_XS.gguf", "IQ4_XS"},
      {"x-BF16.gguf", "BF16"},
      {"x-f16.gguf", "F16"},
      {"Q4_0.gguf", "Q4_0"},
      {"x-UD-Q4_K_XL.gguf", "Q4_K_XL"},
      {"x-Q2_K-00001-of-00003.gguf", "Q2_K"},
      {"x-MXFP4_MOE.gguf", "MXFP4_MOE"},
      {"model.gguf", ""},
      {"Q.gguf", ""},
      {"Qwen.gguf", ""},
      {".gguf", ""},
      {"x-Q4_.gguf", ""},
      {"x", ""},
      {"", ""}};
  for (const auto& [name, quant] : cases) EXPECT_EQ(quant_of_file(name), quant) << name;
}

TEST(FileChoice, SafetensorsWinUnlessATypeIsNamed) {
  const Names names = {"a-Q8_0.gguf", "config.json",    "model.safetensors",
                       "README.md",   "tokenizer.json", "x.tiktoken"};
  const Result<FileChoice> folder = choose_files(names, "");
  ASSERT_TRUE(folder.ok());
  EXPECT_THAT(folder->names,
              UnorderedElementsAre("config.json", "model.safetensors", "tokenizer.json", "x.tiktoken"));
  EXPECT_EQ(folder->gguf, "");
  const Result<FileChoice> file = choose_files(names, "Q8_0");
  ASSERT_TRUE(file.ok());
  EXPECT_THAT(file->names, ElementsAre("a-Q8_0.gguf"));
}

TEST(FileChoice, DefaultTypes) {
  Names names = {"a-Q2_K.gguf"};
  EXPECT_EQ(choose_files(names, "")->gguf, "a-Q2_K.gguf");
  names.emplace_back("a-F16.gguf");
  EXPECT_EQ(choose_files(names, "")->gguf, "a-F16.gguf");
  for (const std::string quant : {"Q8_0", "Q6_K", "Q4_0", "Q4_K_M"}) {
    names.push_back("a-" + quant + ".gguf");
    EXPECT_EQ(choose_files(names, "")->gguf, names.back());
  }
}

TEST(FileChoice, BesideAFileItsAllocation) {
  const Names names = {"a-Q4_0.gguf", "a-Q4_0.gguf.restkv.json"};
  EXPECT_THAT(choose_files(names, "Q4_0")->names, ElementsAre("a-Q4_0.gguf", "a-Q4_0.gguf.restkv.json"));
}

TEST(FileChoice, AllPartsOfASplitFile) {
  const Names names = {"d/a-Q4_K_M-00002-of-00002.gguf", "d/a-Q4_K_M-00001-of-00002.gguf", "a-Q2_K.gguf",
                       "d/a-Q4_K_M-00001-of-00002.gguf.restkv.json"};
  for (const std::string_view quant : {"", "Q4_K_M", "d/a-Q4_K_M-00002-of-00002.gguf"}) {
    const Result<FileChoice> choice = choose_files(names, quant);
    ASSERT_TRUE(choice.ok()) << choice.status().message();
    EXPECT_EQ(choice->gguf, "d/a-Q4_K_M-00001-of-00002.gguf");
    EXPECT_THAT(choice->names, ElementsAre("d/a-Q4_K_M-00001-of-00002.gguf", "d/a-Q4_K_M-00002-of-00002.gguf",
                                           "d/a-Q4_K_M-00001-of-00002.gguf.restkv.json"));
  }
  EXPECT_EQ(choose_files(names, "Q2_K")->gguf, "a-Q2_K.gguf");
  // the only model of a repository, of a type that is no usual choice
  EXPECT_EQ(choose_files(Names{"x-IQ1_S-00001-of-00002.gguf", "x-IQ1_S-00002-of-00002.gguf"}, "")->gguf,
            "x-IQ1_S-00001-of-00002.gguf");
  EXPECT_THAT(choose_files(Names{"a-Q8_0-00001-of-00003.gguf", "a-Q8_0-00003-of-00003.gguf"}, "Q8_0")
                  .status()
                  .message(),
              HasSubstr("part 'a-Q8_0-00002-of-00003.gguf' is not there"));
  EXPECT_THAT(choose_files(Names{"a-Q8_0-00001-of-00001.gguf", "b-Q8_0-00001-of-00001.gguf"}, "Q8_0")
                  .status()
                  .message(),
              HasSubstr("several"));
}

TEST(FileChoice, NothingOrTooMuch) {
  EXPECT_THAT(choose_files(Names{}, "").status().message(), HasSubstr("neither"));
  EXPECT_THAT(choose_files(Names{"model.safetensors"}, "").status().message(), HasSubstr("config.json"));
  EXPECT_THAT(choose_files(Names{"x-Q4_0.gguf"}, "Q8_0").status().message(), HasSubstr("Q4_0"));
  EXPECT_THAT(choose_files(Names{"a-Q4_0.gguf", "b-Q4_0.gguf"}, "Q4_0").status().message(),
              HasSubstr("b-Q4_0.gguf"));
  EXPECT_THAT(choose_files(Names{"a.gguf", "b.gguf"}, "").status().message(), HasSubstr("a.gguf, b.gguf"));
  EXPECT_EQ(choose_files(Names{"a.gguf", "mmproj-a.gguf"}, "")->gguf, "a.gguf");
}

TEST(FileChoice, Shards) {
  const Names names = {"config.json", std::string(kShardIndex), "m-1.safetensors", "m-2.safetensors"};
  const Result<FileChoice> choice = choose_files(names, "");
  ASSERT_TRUE(choice.ok());
  EXPECT_TRUE(choice->has_shard_index);
  const Result<Names> shards = shards_of_index(
      R"({"weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}})", names);
  ASSERT_TRUE(shards.ok());
  EXPECT_THAT(*shards, ElementsAre("m-1.safetensors", "m-2.safetensors"));
  for (const std::string_view bad :
       {"", "{}", R"({"weight_map": {}})", R"({"weight_map": {"a": 1}})",
        R"({"weight_map": {"a": "m-3.safetensors"}})", R"({"weight_map": {"a": "../m-1.safetensors"}})"}) {
    EXPECT_FALSE(shards_of_index(bad, names).ok()) << bad;
  }
}

// As many parts as a name can count; a search through the list for each took a quarter of a minute.
TEST(FileChoice, AHundredThousandPartsTakeNoTime) {
  Names names;
  for (int part = 1; part <= 99'999; ++part) {
    char name[40];
    std::snprintf(name, sizeof(name), "m-%05d-of-99999.gguf", part);
    names.emplace_back(name);
  }
  const auto begin = std::chrono::steady_clock::now();
  const Result<FileChoice> choice = choose_files(names, "");
  ASSERT_TRUE(choice.ok()) << choice.status().message();
  EXPECT_EQ(choice->names.size(), names.size());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

}  // namespace
}  // namespace restkv

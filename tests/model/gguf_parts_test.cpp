#include "engine/model/gguf_parts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/file_builders.h"

namespace restkv {
namespace {

using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::packed;

constexpr uint32_t kF32 = 0;

// Part `no` (from 0) of `count`, with one tensor of two values.
GgufBuilder part(uint32_t no, uint32_t count, std::string_view tensor, float value) {
  GgufBuilder builder;
  const auto u16 = [](uint32_t x) { return packed(static_cast<uint16_t>(x)); };
  builder.raw_key("split.no", 2, u16(no)).raw_key("split.count", 2, u16(count));
  return builder.tensor(tensor, {2}, kF32, 0).data(packed(value) + packed(-value));
}

class GgufParts : public ::testing::Test {
 protected:
  std::string write(std::string_view name, const GgufBuilder& builder) {
    return temp_.write(name, builder.build());
  }
  std::string error(std::string_view name) {
    const Result<GgufFile> file = open_gguf_parts(temp_.path(name));
    return file.ok() ? "" : file.status().message();
  }

  testing::TempFolder temp_;
};

TEST_F(GgufParts, TensorsOfAllPartsAndTheMetadataOfTheFirst) {
  const std::string first =
      write("m-00001-of-00003.gguf", part(0, 3, "a", 1.0f).string("general.name", "whole"));
  write("m-00002-of-00003.gguf", part(1, 3, "b", 2.0f));
  write("m-00003-of-00003.gguf", part(2, 3, "c", 3.0f));
  const Result<GgufFile> file = open_gguf_parts(first);
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ((*file->get_string("general.name")).value_or(""), "whole");
  ASSERT_EQ(file->tensors().files.size(), 3u);
  float value = 1.0f;
  for (const char* name : {"a", "b", "c"}) {
    const FileTensor* tensor = file->tensors().find(name);
    ASSERT_NE(tensor, nullptr) << name;
    EXPECT_EQ(std::memcmp(tensor->data, &value, sizeof(value)), 0) << name;
    const std::span<const std::byte> bytes = file->tensors().files[tensor->file]->bytes();
    EXPECT_TRUE(tensor->data >= bytes.data() && tensor->data < bytes.data() + bytes.size()) << name;
    value += 1.0f;
  }
}

TEST(GgufModelName, LeavesTheTailOfAFirstPartOut) {
  EXPECT_EQ(gguf_model_name("/models/Llama-3-8B-Q4_K_M-00001-of-00003.gguf"), "Llama-3-8B-Q4_K_M");
  EXPECT_EQ(gguf_model_name("x-of-y.gguf"), "x-of-y");
  EXPECT_EQ(gguf_model_name("-00001-of-00003.gguf"), "-00001-of-00003");
  EXPECT_EQ(gguf_model_name("m-1-of-3.gguf"), "m-1-of-3");
  EXPECT_EQ(gguf_model_name("m-00001-of-00003x.gguf"), "m-00001-of-00003x");
  EXPECT_EQ(gguf_model_name("/a/m.Q8_0.gguf"), "m.Q8_0");
}

TEST_F(GgufParts, AFileOfItsOwn) {
  write("x.gguf", part(0, 1, "a", 1.0f));
  write("y.gguf", GgufBuilder().string("general.name", "y"));
  EXPECT_EQ(error("x.gguf"), "");
  EXPECT_EQ(error("y.gguf"), "");
}

TEST_F(GgufParts, PartsThatDoNotFit) {
  write("m-00001-of-00002.gguf", part(0, 2, "a", 1.0f).u32("split.tensors.count", 2));
  EXPECT_THAT(error("m-00001-of-00002.gguf"), HasSubstr("m-00002-of-00002.gguf"));  // is missing
  write("m-00002-of-00002.gguf", part(1, 2, "b", 1.0f));
  EXPECT_EQ(error("m-00001-of-00002.gguf"), "");
  EXPECT_THAT(error("m-00002-of-00002.gguf"),
              HasSubstr("name the first: " + temp_.path("m-00001-of-00002.gguf")));
  write("m-00002-of-00002.gguf", part(1, 2, "a", 1.0f));
  EXPECT_THAT(error("m-00001-of-00002.gguf"), HasSubstr("tensor 'a' is in an earlier part"));
  write("m-00002-of-00002.gguf", part(1, 3, "b", 1.0f));
  EXPECT_THAT(error("m-00001-of-00002.gguf"), HasSubstr("says that it is part 2 of 3"));
  write("m-00002-of-00002.gguf", part(1, 2, "b", 1.0f).tensor("c", {2}, kF32, 32).data(std::string(40, 'x')));
  EXPECT_THAT(error("m-00001-of-00002.gguf"), HasSubstr("they hold 3 tensors, 'split.tensors.count' is 2"));
  write("other.gguf", part(0, 2, "a", 1.0f));
  EXPECT_THAT(error("other.gguf"), HasSubstr("does not end in -00001-of-00002.gguf"));
  write("n-00001-of-00002.gguf", part(2, 2, "a", 1.0f));
  EXPECT_THAT(error("n-00001-of-00002.gguf"), HasSubstr("'split.no' 2 of 'split.count' 2"));
}

}  // namespace
}  // namespace restkv

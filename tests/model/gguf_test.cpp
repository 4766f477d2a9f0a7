// GGUF: values of all types, and the hostile files of docs/reliability (item 3).
#include "engine/model/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/file_builders.h"

namespace restkv {
namespace {

using testing::bytes_of_text;
using ::testing::ElementsAre;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::packed;

constexpr uint64_t kHuge = ~uint64_t{0};

Result<GgufFile> parse(std::string_view bytes) { return GgufFile::parse(bytes_of_text(bytes), "f"); }

std::string problem(std::string_view bytes) {
  const Result<GgufFile> file = parse(bytes);
  return file.ok() ? "accepted" : file.status().message();
}

std::string array(uint32_t type, uint64_t count, std::string_view items) {
  return packed(type) + packed(count) + std::string(items);
}

TEST(Gguf, ReadsEveryTypeOfValue) {
  GgufBuilder builder;
  builder.raw_key("u8", 0, packed<uint8_t>(200)).raw_key("i8", 1, packed<int8_t>(-5));
  builder.raw_key("u16", 2, packed<uint16_t>(60000)).raw_key("i16", 3, packed<int16_t>(-300));
  builder.u32("u32", 4'000'000'000u).raw_key("i32", 5, packed<int32_t>(-70000)).f32("f32", 1.5f);
  builder.raw_key("bool", 7, packed<uint8_t>(1))
      .string("string", "abc")
      .raw_key("u64", 10, packed<uint64_t>(1));
  builder.raw_key("i64", 11, packed<int64_t>(-1)).raw_key("f64", 12, packed<double>(0.1));
  builder.raw_key("huge", 10, packed(kHuge));
  builder.raw_key("strings", 9, array(8, 2, GgufBuilder::text("x") + GgufBuilder::text("")));
  builder.raw_key("floats", 9, array(6, 2, packed(0.5f) + packed(-1.0f)));
  builder.raw_key("ints", 9, array(5, 2, packed<int32_t>(3) + packed<int32_t>(-4)));
  builder.raw_key("bools", 9, array(7, 3, std::string("\1\0\1", 3)));
  const std::string bytes = builder.build();
  const Result<GgufFile> file = parse(bytes);
  ASSERT_TRUE(file.ok()) << file.status().message();
  const std::pair<const char*, int64_t> integers[] = {{"u8", 200},   {"i8", -5},          {"u16", 60000},
                                                      {"i16", -300}, {"u32", 4000000000}, {"i32", -70000},
                                                      {"bool", 1},   {"u64", 1},          {"i64", -1}};
  for (const auto& [key, value] : integers) EXPECT_EQ(**file->get_int(key), value) << key;
  EXPECT_EQ(**file->get_float("f32"), 1.5);
  EXPECT_EQ(**file->get_float("f64"), 0.1);
  EXPECT_EQ(**file->get_float("u8"), 200.0);
  EXPECT_EQ(**file->get_bool("bool"), true);
  EXPECT_EQ(**file->get_string("string"), "abc");
  EXPECT_THAT(*file->get_strings("strings"), ElementsAre("x", ""));
  EXPECT_THAT(*file->get_floats("floats"), ElementsAre(0.5f, -1.0f));
  EXPECT_THAT(*file->get_ints("ints"), ElementsAre(3, -4));
  EXPECT_THAT(*file->get_ints("bools"), ElementsAre(1, 0, 1));
  EXPECT_FALSE((*file->get_int("absent")).has_value());
  EXPECT_TRUE(file->get_strings("absent")->empty());
  EXPECT_EQ(file->keys().size(), 17u);
  EXPECT_EQ(file->keys().front(), "u8");
}

TEST(Gguf, WrongTypesNameTheKey) {
  GgufBuilder builder;
  // Scores typed u8 instead of f32.
  builder.raw_key("scores", 9, array(0, 3, "abc"))
      .string("string", "s")
      .f32("f32", 1.0f)
      .raw_key("huge", 10, packed(kHuge));
  const std::string bytes = builder.build();
  const Result<GgufFile> file = parse(bytes);
  ASSERT_TRUE(file.ok());
  EXPECT_THAT(file->get_floats("scores").status().message(),
              HasSubstr("'scores' is an array of u8; expected an array of floats"));
  EXPECT_THAT(file->get_strings("scores").status().message(), HasSubstr("expected an array of strings"));
  EXPECT_THAT(file->get_int("scores").status().message(), HasSubstr("an integer"));
  EXPECT_THAT(file->get_int("string").status().message(), HasSubstr("'string' is string"));
  EXPECT_THAT(file->get_int("f32").status().message(), HasSubstr("an integer"));
  EXPECT_THAT(file->get_bool("f32").status().message(), HasSubstr("a bool"));
  EXPECT_THAT(file->get_string("f32").status().message(), HasSubstr("a string"));
  EXPECT_THAT(file->get_ints("string").status().message(), HasSubstr("an array of integers"));
  EXPECT_THAT(file->get_float("string").status().message(), HasSubstr("a number"));
  EXPECT_THAT(file->get_int("huge").status().message(), HasSubstr("18446744073709551615: too large"));
  EXPECT_THAT(file->get_float("huge").status().message(), HasSubstr("too large"));
}

TEST(Gguf, ReadsTensors) {
  const std::string data(64 + 36, 'd');
  GgufBuilder builder;
  builder.tensor("a", {4, 2}, 0, 0).tensor("b", {32, 2}, 2, 32 + 32).tensor("c", {}, 0, 32).data(data);
  const std::string bytes = builder.build();
  const Result<GgufFile> file = parse(bytes);
  // b: two rows of one Q4_0 block
  ASSERT_TRUE(file.ok()) << file.status().message();
  const FileTensor* a = file->tensors().find("a");
  EXPECT_EQ(a->shape, (std::vector<int64_t>{2, 4}));
  EXPECT_EQ(a->num_bytes, 32);
  const FileTensor* b = file->tensors().find("b");
  EXPECT_EQ(b->dtype, DType::kQ4_0);
  EXPECT_EQ(b->num_bytes, 36);
  EXPECT_EQ(b->data - a->data, 64);
  EXPECT_EQ(file->tensors().find("c")->num_bytes, 4);
}

TEST(Gguf, ForeignTypesAreKeptByName) {
  const std::string bytes =
      GgufBuilder().tensor("a", {256}, 16, 0).tensor("b", {3}, 99, 96).data(std::string(99, ' ')).build();
  const Result<GgufFile> file = parse(bytes);
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->tensors().find("a")->unsupported_type, "IQ2_XXS");
  EXPECT_EQ(file->tensors().find("a")->data, nullptr);
  EXPECT_EQ(file->tensors().find("b")->unsupported_type, "type 99");
}

TEST(Gguf, HeaderIsChecked) {
  EXPECT_THAT(problem(""), HasSubstr("'GGUF'"));
  EXPECT_THAT(problem("GGML...."), HasSubstr("'GGUF'"));
  EXPECT_THAT(problem("GGUF"), HasSubstr("truncated?"));
  GgufBuilder builder;
  builder.version = 1;
  EXPECT_THAT(problem(builder.build()), HasSubstr("version 1 is not supported"));
  builder.version = 4;
  EXPECT_THAT(problem(builder.build()), HasSubstr("version 4 is not supported"));
  builder.version = 0x03000000;
  EXPECT_THAT(problem(builder.build()), HasSubstr("big endian"));
  builder.version = 2;
  EXPECT_EQ(problem(builder.build()), "accepted");
}

TEST(Gguf, CountsOfTwoToThe64AllocateNothing) {
  for (const uint64_t count : {kHuge, kHuge / 2, uint64_t{1} << 60, uint64_t{1} << 40, uint64_t{1000}}) {
    GgufBuilder keys, tensors;
    keys.num_keys = count;
    tensors.num_tensors = count;
    EXPECT_THAT(problem(keys.build()), HasSubstr("truncated?")) << count;
    EXPECT_THAT(problem(tensors.build()), HasSubstr("truncated?")) << count;
    EXPECT_THAT(problem(GgufBuilder().raw_key("k", 9, array(5, count, "abcd")).build()),
                HasSubstr("truncated?"));
    EXPECT_THAT(problem(GgufBuilder().raw_key("k", 9, array(8, count, "abcdefgh")).build()),
                HasSubstr("truncated?"));
    EXPECT_THAT(problem(GgufBuilder().raw_key("k", 8, packed(count) + "x").build()), HasSubstr("truncated?"));
    EXPECT_THAT(problem(GgufBuilder().raw_key("k", 9, array(8, 1, packed(count) + "x")).build()),
                HasSubstr("truncated?"));
    std::string long_name =
        "GGUF" + packed<uint32_t>(3) + packed<uint64_t>(0) + packed<uint64_t>(1) + packed(count);
    long_name.append(32, 'x');
    EXPECT_THAT(problem(long_name), HasSubstr("name of metadata key 0")) << count;
  }
}

TEST(Gguf, KeysAreChecked) {
  EXPECT_THAT(problem(GgufBuilder().u32("k", 1).u32("k", 1).build()), HasSubstr("'k' is there twice"));
  EXPECT_THAT(problem(GgufBuilder().u32("", 1).build()), HasSubstr("has no name"));
  EXPECT_THAT(problem(GgufBuilder().raw_key("k", 13, "abcd").build()), HasSubstr("unknown type 13"));
  EXPECT_THAT(problem(GgufBuilder().raw_key("k", 9, array(13, 0, "")).build()),
              HasSubstr("unknown element type 13"));
  EXPECT_THAT(problem(GgufBuilder().raw_key("k", 9, array(9, 1, array(9, 0, ""))).build()),
              HasSubstr("arrays of arrays"));
}

TEST(Gguf, AlignmentIsChecked) {
  for (const uint32_t alignment : {0u, 1u, 4u, 13u, 48u, 1u << 31}) {
    EXPECT_THAT(problem(GgufBuilder().u32("general.alignment", alignment).build()),
                HasSubstr("general.alignment is"))
        << alignment;
  }
  EXPECT_THAT(problem(GgufBuilder().string("general.alignment", "32").build()),
              HasSubstr("expected an integer"));
  EXPECT_THAT(problem(GgufBuilder().raw_key("general.alignment", 11, packed<int64_t>(-32)).build()),
              HasSubstr("-32"));
  EXPECT_EQ(problem(GgufBuilder().u32("general.alignment", 32).build()), "accepted");
}

TEST(Gguf, TensorsAreChecked) {
  const auto one = [](const std::vector<uint64_t>& sizes, uint32_t type, uint64_t offset) {
    return problem(GgufBuilder().tensor("a", sizes, type, offset).data(std::string(64, 'd')).build());
  };
  EXPECT_EQ(one({16}, 0, 0), "accepted");
  EXPECT_THAT(one({17}, 0, 0), HasSubstr("past the end of the data"));
  EXPECT_THAT(one({8}, 0, 64), HasSubstr("past the end of the data"));
  EXPECT_THAT(one({8}, 0, kHuge - 31), HasSubstr("past the end of the data"));
  EXPECT_THAT(one({8}, 0, 8), HasSubstr("not a multiple of 32"));
  EXPECT_THAT(one({(uint64_t{1} << 42) + 1, uint64_t{1} << 42}, 0, 0), HasSubstr("overflows"));
  EXPECT_THAT(one({(uint64_t{1} << 42) + 1}, 0, 0), HasSubstr("past the end of the data"));
  EXPECT_THAT(one({kHuge, kHuge, 2, 2}, 24, 0), HasSubstr("overflows"));
  EXPECT_THAT(one({0, kHuge, kHuge}, 0, 0), HasSubstr("overflows"));
  EXPECT_THAT(one({33}, 2, 0), HasSubstr("not whole blocks of 32"));
  EXPECT_THAT(one({1, 1, 1, 1, 1}, 0, 0), HasSubstr("5 dimensions"));
  EXPECT_THAT(
      problem(
          GgufBuilder().tensor("a", {4}, 0, 0).tensor("a", {4}, 0, 32).data(std::string(64, 'd')).build()),
      HasSubstr("tensor 'a' is there twice"));
  EXPECT_THAT(
      problem(
          GgufBuilder().tensor("a", {16}, 0, 0).tensor("b", {4}, 0, 32).data(std::string(64, 'd')).build()),
      HasSubstr("overlaps"));
  EXPECT_THAT(problem(GgufBuilder().tensor("", {4}, 0, 0).data(std::string(64, 'd')).build()),
              HasSubstr("has no name"));
  // Two sizes whose sum wraps to almost nothing.
  constexpr uint64_t kHalf = 0x7FFFFFFFFFFFFFC0;
  EXPECT_NE(problem(GgufBuilder()
                        .tensor("a", {kHalf}, 24, 0)
                        .tensor("b", {kHalf}, 24, kHalf)
                        .data(std::string(64, 'd'))
                        .build()),
            "accepted");
}

TEST(Gguf, EveryTruncationIsAnError) {
  GgufBuilder builder;
  builder.u32("a", 1)
      .string("b", "text")
      .raw_key("c", 9, array(8, 2, GgufBuilder::text("x") + GgufBuilder::text("yy")));
  builder.tensor("t", {4, 2}, 0, 0).data(std::string(32, 'd'));
  const std::string bytes = builder.build();
  ASSERT_EQ(problem(bytes), "accepted");
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_NE(problem(std::string_view(bytes).substr(0, size)), "accepted") << size;
  }
}

}  // namespace
}  // namespace restkv

// safetensors: round trip, shards, and the hostile files of docs/reliability (item 4).
#include "engine/model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/file_builders.h"

namespace restkv {
namespace {

using testing::bytes_of_text;
using ::testing::HasSubstr;
using testing::packed;
using testing::safetensors_bytes;
using testing::TempFolder;

std::string problem(std::string_view bytes) {
  const Result<SafetensorsFile> file = parse_safetensors(bytes_of_text(bytes), "f");
  return file.ok() ? "accepted" : file.status().message();
}

TEST(Safetensors, ReadsTensorsInFileOrder) {
  const std::string data(20, 'x');
  const std::string bytes = safetensors_bytes(
      R"({"__metadata__":{"k":"v"},"b":{"dtype":"F16","shape":[2],"data_offsets":[16,20]},)"
      R"("a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"empty":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]}})",
      data);
  const Result<SafetensorsFile> file = parse_safetensors(bytes_of_text(bytes), "f");
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->metadata.at("k"), "v");
  ASSERT_EQ(file->index.tensors.size(), 3u);
  EXPECT_EQ(file->index.tensors[0].name, "empty");
  EXPECT_EQ(file->index.tensors[1].name, "a");
  const FileTensor* b = file->index.find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->dtype, DType::kF16);
  EXPECT_EQ(b->num_bytes, 4);
  EXPECT_EQ(b->data, bytes_of_text(bytes).data() + bytes.size() - 4);
  EXPECT_EQ(file->index.find("c"), nullptr);
}

TEST(Safetensors, ForeignTypesAreKeptByName) {
  const Result<SafetensorsFile> file = parse_safetensors(
      bytes_of_text(safetensors_bytes(R"({"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]},)"
                                      R"("b":{"dtype":"NEW9","shape":[4],"data_offsets":[4,7]}})",
                                      "1234567")),
      "f");
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->index.find("a")->unsupported_type, "F8_E4M3");
  EXPECT_EQ(file->index.find("a")->data, nullptr);
  EXPECT_EQ(file->index.find("b")->unsupported_type, "NEW9");
  EXPECT_THAT(
      problem(safetensors_bytes(R"({"a":{"dtype":"F8_E4M3","shape":[5],"data_offsets":[0,4]}})", "1234")),
      HasSubstr("need 5 bytes"));
}

TEST(Safetensors, HeaderLengthIsChecked) {
  EXPECT_THAT(problem(""), HasSubstr("shorter than the 8 bytes"));
  EXPECT_THAT(problem("1234567"), HasSubstr("shorter than the 8 bytes"));
  EXPECT_THAT(problem(packed(uint64_t{1} << 56) + "{}"), HasSubstr("above the limit"));
  EXPECT_THAT(problem(packed(~uint64_t{0}) + "{}"), HasSubstr("above the limit"));
  EXPECT_THAT(problem(packed(uint64_t{3}) + "{}"), HasSubstr("past the end of the file"));
  EXPECT_THAT(problem(packed(uint64_t{0})), HasSubstr("begin with '{'"));
  EXPECT_THAT(problem(safetensors_bytes("[]", "")), HasSubstr("begin with '{'"));
  EXPECT_THAT(problem(safetensors_bytes("{\"a\":1", "")), HasSubstr("invalid JSON"));
}

TEST(Safetensors, ShapesAndPlacesAreChecked) {
  const auto one = [](std::string_view entry, std::string_view data) {
    return problem(safetensors_bytes("{\"a\":" + std::string(entry) + "}", data));
  };
  EXPECT_EQ(one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})", "1234"), "accepted");
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[2,18446744073709551614],"data_offsets":[0,4]})", "1234"),
              HasSubstr("overflows"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[0,4294967296,4294967296,4294967296],"data_offsets":[0,0]})", ""),
              HasSubstr("overflows"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]})", "1234"),
              HasSubstr("overflows"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})", "1234"), HasSubstr("need 8 bytes"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", "1234"),
              HasSubstr("list of counts"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})", "1234"),
              HasSubstr("list of counts"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]})", "1234"),
              HasSubstr("9 dimensions"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})", "1234"), HasSubstr("begin <= end"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,8]})", "1234"),
              HasSubstr("begin <= end"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]})", "1234"),
              HasSubstr("truncated?"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})", "123"), HasSubstr("truncated?"));
  EXPECT_THAT(one(R"({"dtype":7,"shape":[1],"data_offsets":[0,4]})", "1234"), HasSubstr("no string 'dtype'"));
  EXPECT_THAT(one(R"({"shape":[1],"data_offsets":[0,4]})", "1234"), HasSubstr("no string 'dtype'"));
  EXPECT_THAT(one("[]", "1234"), HasSubstr("not an object"));
  EXPECT_THAT(problem(safetensors_bytes(R"({"__metadata__":{"k":1}})", "")), HasSubstr("__metadata__.k"));
  EXPECT_THAT(problem(safetensors_bytes(R"({"__metadata__":[]})", "")), HasSubstr("__metadata__"));
}

TEST(Safetensors, TensorsMustCoverTheDataExactly) {
  const auto two = [](int a0, int a1, int b0, int b1, std::string_view data) {
    const auto entry = [](int begin, int end) {
      return R"({"dtype":"U8","shape":[)" + std::to_string(end - begin) + R"(],"data_offsets":[)" +
             std::to_string(begin) + "," + std::to_string(end) + "]}";
    };
    return problem(safetensors_bytes("{\"a\":" + entry(a0, a1) + ",\"b\":" + entry(b0, b1) + "}", data));
  };
  EXPECT_EQ(two(0, 4, 4, 8, "12345678"), "accepted");
  EXPECT_EQ(two(4, 8, 0, 4, "12345678"), "accepted");
  EXPECT_THAT(two(0, 4, 3, 8, "12345678"), HasSubstr("overlaps"));
  EXPECT_THAT(two(0, 8, 0, 8, "12345678"), HasSubstr("overlaps"));
  EXPECT_THAT(two(0, 3, 4, 8, "12345678"), HasSubstr("gap"));
  EXPECT_THAT(two(1, 4, 4, 8, "12345678"), HasSubstr("gap"));
  EXPECT_THAT(two(0, 4, 4, 8, "123456789"), HasSubstr("1 bytes behind the last tensor"));
  EXPECT_THAT(problem(safetensors_bytes("{}", "x")), HasSubstr("1 bytes behind"));
}

TEST(Safetensors, DuplicateNamesAreRefused) {
  const std::string entry = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  EXPECT_THAT(problem(safetensors_bytes("{\"a\":" + entry + ",\"a\":" + entry + "}", "")),
              HasSubstr("same key twice"));
}

TEST(Safetensors, EveryTruncationIsAnError) {
  const std::string bytes =
      safetensors_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "12345678");
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_NE(problem(std::string_view(bytes).substr(0, size)), "accepted") << size;
  }
}

TEST(Safetensors, WhatIsWrittenIsReadBack) {
  const TempFolder temp;
  const std::vector<float> values = {1.0f, -2.5f, 3.25f, 0.0f, 5.0f, 6.0f};
  const std::vector<int32_t> ids = {7, -8};
  const std::string path = temp.path("out.safetensors");
  ASSERT_TRUE(write_safetensors(
                  path, {{"x", DType::kF32, {2, 3}, values.data()}, {"ids", DType::kI32, {2}, ids.data()}},
                  {{"model", "m\xff"}})
                  .ok());
  const Result<std::shared_ptr<const MappedFile>> mapped = MappedFile::open(path);
  ASSERT_TRUE(mapped.ok());
  const Result<SafetensorsFile> file = parse_safetensors(*mapped);
  ASSERT_TRUE(file.ok()) << file.status().message();
  const FileTensor* x = file->index.find("x");
  ASSERT_NE(x, nullptr);
  EXPECT_EQ(x->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(std::memcmp(x->data, values.data(), 24), 0);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(x->data) % 8, 0u);
  EXPECT_EQ(std::memcmp(file->index.find("ids")->data, ids.data(), 8), 0);
  EXPECT_FALSE(write_safetensors(temp.path("no/such/folder"), {}).ok());
}

class Shards : public ::testing::Test {
 protected:
  void write_shard(std::string_view name, std::string_view tensor) {
    const float value = 1.0f;
    ASSERT_TRUE(write_safetensors(temp_.path(name), {{std::string(tensor), DType::kF32, {1}, &value}}).ok());
  }
  std::string problem() {
    const Result<TensorIndex> index = open_safetensors_folder(temp_.folder());
    return index.ok() ? "accepted" : index.status().message();
  }
  void write_index(std::string_view map) {
    temp_.write("model.safetensors.index.json", "{\"metadata\":{},\"weight_map\":" + std::string(map) + "}");
  }
  TempFolder temp_;
};

TEST_F(Shards, AreOneIndex) {
  write_shard("a.safetensors", "x");
  write_shard("b.safetensors", "y");
  write_index(R"({"x":"a.safetensors","y":"b.safetensors"})");
  const Result<TensorIndex> index = open_safetensors_folder(temp_.folder());
  ASSERT_TRUE(index.ok()) << index.status().message();
  EXPECT_EQ(index->files.size(), 2u);
  ASSERT_NE(index->find("y"), nullptr);
  EXPECT_EQ(index->files[index->find("y")->file]->path(), temp_.path("b.safetensors"));
}

TEST_F(Shards, MustHoldWhatTheIndexSays) {
  write_shard("a.safetensors", "x");
  write_shard("b.safetensors", "y");
  write_index(R"({"x":"a.safetensors","z":"b.safetensors"})");
  EXPECT_THAT(problem(), HasSubstr("tensor 'z' is missing"));
  write_index(R"({"x":"b.safetensors","y":"b.safetensors"})");
  EXPECT_THAT(problem(), HasSubstr("tensor 'x' is missing"));
  write_index(R"({"x":"a.safetensors","y":"c.safetensors"})");
  EXPECT_THAT(problem(), HasSubstr("c.safetensors: No such file"));
  write_shard("b.safetensors", "x");
  write_index(R"({"x":"a.safetensors","y":"b.safetensors"})");
  EXPECT_THAT(problem(), HasSubstr("is in another shard, too"));
}

TEST_F(Shards, TruncatedShardIsNamed) {
  write_shard("a.safetensors", "x");
  write_index(R"({"x":"a.safetensors"})");
  std::filesystem::resize_file(temp_.path("a.safetensors"),
                               std::filesystem::file_size(temp_.path("a.safetensors")) - 1);
  EXPECT_THAT(problem(), ::testing::AllOf(HasSubstr("a.safetensors"), HasSubstr("truncated?")));
}

TEST_F(Shards, IndexStaysInItsFolder) {
  for (const char* name : {"\"../a.safetensors\"", "\"/etc/passwd\"", "\"..\"", "\"\"", "7"}) {
    write_index("{\"x\":" + std::string(name) + "}");
    EXPECT_THAT(problem(), HasSubstr("not the name of a file in this folder")) << name;
  }
  write_index("{}");
  EXPECT_THAT(problem(), HasSubstr("weight_map"));
  temp_.write("model.safetensors.index.json", "{");
  EXPECT_THAT(problem(), HasSubstr("invalid JSON"));
}

TEST_F(Shards, FolderWithoutWeights) {
  EXPECT_THAT(problem(), HasSubstr("neither model.safetensors nor"));
  temp_.write("pytorch_model.bin", "x");
  EXPECT_THAT(problem(), HasSubstr("convert it to safetensors"));
}

}  // namespace
}  // namespace restkv

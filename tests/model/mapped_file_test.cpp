// Mapped files: errors on opening, and what happens when a file shrinks under its mapping.
#include "engine/model/mapped_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "engine/model/safetensors.h"
#include "tests/model/file_builders.h"

namespace restkv {
namespace {

using ::testing::HasSubstr;
using testing::TempFolder;

constexpr size_t kBig = 1 << 20;

TEST(MappedFile, OpensRegularFilesOnly) {
  const TempFolder temp;
  const auto problem = [](const std::string& path) { return MappedFile::open(path).status(); };
  EXPECT_EQ(problem(temp.path("absent")).code(), StatusCode::kNotFound);
  EXPECT_THAT(problem(temp.path("absent")).message(), HasSubstr("absent: No such file"));
  EXPECT_THAT(problem(temp.folder()).message(), HasSubstr("not a regular file"));
  EXPECT_THAT(problem(temp.write("empty", "")).message(), HasSubstr("is empty"));
  ASSERT_EQ(::mkfifo(temp.path("fifo").c_str(), 0600), 0);
  EXPECT_THAT(problem(temp.path("fifo")).message(), HasSubstr("not a regular file"));
}

TEST(MappedFile, ShowsTheBytes) {
  const TempFolder temp;
  const Result<std::shared_ptr<const MappedFile>> file = MappedFile::open(temp.write("f", "hello"));
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(std::memcmp((*file)->bytes().data(), "hello", 5), 0);
  EXPECT_EQ((*file)->bytes().size(), 5u);
  EXPECT_TRUE((*file)->populate(0, 5).ok());
  EXPECT_TRUE((*file)->populate(5, 0).ok());
}

TEST(MappedFile, PopulateReportsAShorterFile) {
  const TempFolder temp;
  const std::string path = temp.write("f", std::string(kBig, 'x'));
  const Result<std::shared_ptr<const MappedFile>> file = MappedFile::open(path);
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE((*file)->populate(0, kBig).ok());
  std::filesystem::resize_file(path, 100);
  EXPECT_THAT((*file)->populate(0, kBig).message(), HasSubstr("became shorter while it was loaded"));
}

// Reads the last value of the tensor "weight.big" after its file was cut.
void read_truncated(const std::string& folder) {
  const Result<TensorIndex> index = open_safetensors_folder(folder);
  std::filesystem::resize_file(folder + "/model.safetensors", 4096);
  const FileTensor* tensor = index->find("weight.big");
  volatile std::byte last = tensor->data[tensor->num_bytes - 1];
  static_cast<void>(last);
}

TEST(MappedFileDeathTest, SigbusNamesFileAndTensor) {
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const TempFolder temp;
  const std::vector<float> values(kBig / sizeof(float));
  const int64_t count = static_cast<int64_t>(values.size());
  ASSERT_TRUE(
      write_safetensors(temp.path("model.safetensors"), {{"small", DType::kF32, {1}, values.data()},
                                                         {"weight.big", DType::kF32, {count}, values.data()}})
          .ok());
  EXPECT_EXIT(read_truncated(temp.folder()), ::testing::ExitedWithCode(kSigbusExitCode),
              "model.safetensors became shorter.*at tensor weight.big");
}

TEST(MappedFileDeathTest, OtherSigbusKeepsItsDefaultAction) {
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const TempFolder temp;
  const std::string path = temp.write("f", "x");
  EXPECT_EXIT(
      {
        const Result<std::shared_ptr<const MappedFile>> file = MappedFile::open(path);
        ::raise(SIGBUS);
      },
      ::testing::KilledBySignal(SIGBUS), "");
}

}  // namespace
}  // namespace restkv

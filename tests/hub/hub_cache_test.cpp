// The layout on disk; what programs do with it is in tests/e2e/test_hub_*.py.
#include "server/hub/hub_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "server/hub/content_hash.h"

namespace restkv {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;

class HubCacheTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "hub_cache_test.XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
  }
  void TearDown() override { fs::remove_all(root_); }

  // A file of a snapshot, with its blob.
  void add(const HubCache& cache, const std::string& commit, const RepoFile& file) {
    ASSERT_TRUE(cache.prepare(name_).ok());
    std::ofstream(cache.blob_path(name_, file.digest)) << std::string(static_cast<size_t>(file.size), 'x');
    ASSERT_TRUE(cache.link(name_, commit, file).ok());
  }

  fs::path root_;
  const RepoName name_ = *parse_repo_name("org/repo");
  const std::string first_ = std::string(40, '1'), second_ = std::string(40, '2');
  const RepoFile shared_{"config.json", 3, std::string(40, 'a')},
      nested_{"a/b/w.gguf", 5, std::string(64, 'b')};
};

TEST_F(HubCacheTest, LinksAreRelative) {
  const HubCache cache(root_);
  add(cache, first_, shared_);
  add(cache, first_, nested_);
  const fs::path snapshot = root_ / "models--org--repo" / "snapshots" / first_;
  EXPECT_EQ(fs::read_symlink(snapshot / "config.json"), "../../blobs/" + shared_.digest);
  EXPECT_EQ(fs::read_symlink(snapshot / "a/b/w.gguf"), "../../../../blobs/" + nested_.digest);
  EXPECT_EQ(fs::file_size(snapshot / "a/b/w.gguf"), 5u);
  EXPECT_THAT(cache.files_of(name_, first_), ElementsAre("a/b/w.gguf", "config.json"));
  // A link whose blob is gone is no file; linking again with another blob replaces it.
  fs::remove(cache.blob_path(name_, nested_.digest));
  EXPECT_THAT(cache.files_of(name_, first_), ElementsAre("config.json"));
  ASSERT_TRUE(cache.link(name_, first_, {"config.json", 5, nested_.digest}).ok());
  EXPECT_EQ(fs::read_symlink(snapshot / "config.json"), "../../blobs/" + nested_.digest);
}

TEST_F(HubCacheTest, Refs) {
  const HubCache cache(root_);
  add(cache, first_, shared_);
  EXPECT_EQ(cache.find_commit(name_, "main"), "");
  ASSERT_TRUE(cache.write_ref(name_, "main", first_).ok());
  ASSERT_TRUE(cache.write_ref(name_, "refs/pr/7", first_).ok());
  ASSERT_TRUE(cache.write_ref(name_, first_, first_).ok());  // a commit needs none
  EXPECT_EQ(cache.find_commit(name_, "main"), first_);
  EXPECT_EQ(cache.find_commit(name_, "refs/pr/7"), first_);
  EXPECT_EQ(cache.find_commit(name_, first_), first_);
  EXPECT_EQ(cache.find_commit(name_, second_), "");
  const std::vector<CachedSnapshot> all = cache.list();
  ASSERT_EQ(all.size(), 1u);
  EXPECT_THAT(all[0].refs, ElementsAre("main", "refs/pr/7"));
  EXPECT_EQ(all[0].size, 3);
  // What a ref holds becomes part of a path only if it is a commit.
  std::ofstream(cache.repo_path(name_) / "refs" / "evil") << "../../../etc";
  EXPECT_EQ(cache.find_commit(name_, "evil"), "");
}

TEST_F(HubCacheTest, RemovalKeepsWhatIsShared) {
  const HubCache cache(root_);
  add(cache, first_, shared_);
  add(cache, first_, nested_);
  add(cache, second_, shared_);
  ASSERT_TRUE(cache.write_ref(name_, "main", second_).ok());
  const Result<CacheRemoval> removal = cache.plan_removal(name_, first_);
  ASSERT_TRUE(removal.ok()) << removal.status().message();
  EXPECT_EQ(removal->size, nested_.size);
  ASSERT_TRUE(cache.remove(name_, *removal).ok());
  EXPECT_TRUE(fs::exists(cache.blob_path(name_, shared_.digest)));
  EXPECT_FALSE(fs::exists(cache.blob_path(name_, nested_.digest)));
  EXPECT_EQ(cache.list().size(), 1u);
  EXPECT_FALSE(cache.plan_removal(name_, first_).ok());
  const Result<CacheRemoval> rest = cache.plan_removal(name_, "main");
  ASSERT_TRUE(rest.ok());
  ASSERT_TRUE(cache.remove(name_, *rest).ok());
  EXPECT_FALSE(fs::exists(cache.repo_path(name_)));
  EXPECT_FALSE(cache.plan_removal(name_, "").ok());
}

TEST(ContentHash, KnownValues) {
  ContentHash sha256(std::string(64, '0'), 3);
  sha256.append(std::string("a"));
  sha256.append(std::string("bc"));
  EXPECT_EQ(sha256.finish(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  ContentHash git(std::string(40, '0'), 6);  // printf 'hello\n' | git hash-object --stdin
  git.append(std::string("hello\n"));
  EXPECT_EQ(git.finish(), "ce013625030ba8dba906f756967f9e9ca394464a");
}

}  // namespace
}  // namespace restkv

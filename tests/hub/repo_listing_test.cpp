#include "server/hub/repo_listing.h"

#include <gtest/gtest.h>

namespace restkv {
namespace {

const std::string kCommit(40, 'a'), kGit(40, 'b'), kSha256(64, 'c');

std::string listing(const std::string& siblings) {
  return R"({"sha": ")" + kCommit + R"(", "siblings": [)" + siblings + "]}";
}
std::string entry(const std::string& name, const std::string& size = "1") {
  return R"({"rfilename": ")" + name + R"(", "size": )" + size + R"(, "blobId": ")" + kGit + R"("})";
}

TEST(RepoListing, SmallAndLargeFiles) {
  const Result<RepoListing> read = parse_repo_listing(
      listing(entry("z.json") + R"(, {"rfilename": "a/w.gguf", "size": 134, "blobId": ")" + kGit +
              R"(", "lfs": {"sha256": ")" + kSha256 + R"(", "size": 5000000000, "pointerSize": 134}})"));
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->commit, kCommit);
  ASSERT_EQ(read->files.size(), 2u);
  EXPECT_EQ(read->find("a/w.gguf")->size, 5'000'000'000);  // of the content, not of git's pointer to it
  EXPECT_EQ(read->find("a/w.gguf")->digest, kSha256);
  EXPECT_EQ(read->find("z.json")->digest, kGit);
  EXPECT_EQ(read->find("w.gguf"), nullptr);
}

TEST(RepoListing, Refused) {
  EXPECT_TRUE(parse_repo_listing(listing("")).ok());
  for (const std::string& text :
       {std::string(), std::string("null"), std::string("{}"), R"({"sha": ")" + kCommit + R"("})",
        listing("1"), listing("{}"), listing(entry("a", "-1")), listing(entry("a", "1.5")),
        listing(entry("a", "1e99")), listing(entry("a", "\"1\"")), listing(entry("../a")),
        listing(entry("/a")), listing(entry("a\\u0000b")), listing(entry("a") + "," + entry("a")),
        listing(R"({"rfilename": "a", "size": 1})"),
        listing(R"({"rfilename": "a", "size": 1, "blobId": ")" + kSha256 + "\"}"),
        listing(R"({"rfilename": "a", "size": 1, "lfs": {"sha256": ")" + kGit + R"(", "size": 1}})"),
        R"({"sha": "../x", "siblings": []})" + std::string()}) {
    const Result<RepoListing> read = parse_repo_listing(text);
    ASSERT_FALSE(read.ok()) << text;
    EXPECT_TRUE(read.status().message().starts_with("the hub's answer: ")) << read.status().message();
  }
}

}  // namespace
}  // namespace restkv

// Which texts are names, and which are attacks on paths.
#include "server/hub/repo_name.h"

#include <gtest/gtest.h>

namespace restkv {
namespace {

TEST(RepoName, Parts) {
  const Result<RepoName> plain = parse_repo_name("org/repo");
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(plain->full(), "org/repo");
  EXPECT_EQ(plain->text(), "org/repo");
  EXPECT_EQ(plain->folder(), "models--org--repo");
  const Result<RepoName> typed = parse_repo_name("Qwen/Qwen2.5-0.5B_x:Q4_K_M");
  ASSERT_TRUE(typed.ok());
  EXPECT_EQ(typed->repo, "Qwen2.5-0.5B_x");
  EXPECT_EQ(typed->quant, "Q4_K_M");
  EXPECT_EQ(typed->text(), "Qwen/Qwen2.5-0.5B_x:Q4_K_M");
  ASSERT_TRUE(parse_repo_name("a/b:sub/file.gguf").ok());
}

TEST(RepoName, Refused) {
  for (const std::string_view text :
       {"",      "/",          "a",        "a/",         "/b",    "a/b/c",  "./b",  "a/..", "../b",
        "a/b:",  "a/b:/x",     "a/b:../x", "a/b:x/../y", "a/b c", "a--b/c", "a/-b", "a/b.", "models/x.gguf",
        "a/b\n", "a/\xc3\xa4", "~/model"}) {
    EXPECT_FALSE(parse_repo_name(text).ok()) << text;
  }
  EXPECT_FALSE(parse_repo_name(std::string("a/b\0c", 5)).ok());
  EXPECT_TRUE(parse_repo_name("a/" + std::string(96, 'b')).ok());
  EXPECT_FALSE(parse_repo_name("a/" + std::string(97, 'b')).ok());
}

TEST(RepoName, FolderAndBack) {
  const RepoName name = *parse_repo_name("a-b/c-d.e");
  const std::optional<RepoName> back = repo_of_folder(name.folder());
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(back->full(), name.full());
  for (const std::string_view folder :
       {"", "models--", "models--a", "models--..--a", "datasets--a--b", "models--a--b--c"}) {
    EXPECT_FALSE(repo_of_folder(folder).has_value()) << folder;
  }
}

TEST(FileName, PathsStayInside) {
  for (const std::string_view good :
       {"a", "a/b/c.gguf", "...", "a..b", ".hidden", "with space", "\xc3\xa4.json"}) {
    EXPECT_TRUE(check_file_name(good).ok()) << good;
  }
  for (const std::string_view bad :
       {"", "/", "/a", "a/", "a//b", ".", "..", "a/..", "a/./b", "../a", "a\\b", "a\nb", "\x7f"}) {
    EXPECT_FALSE(check_file_name(bad).ok()) << bad;
  }
  EXPECT_FALSE(check_file_name(std::string("a\0b", 3)).ok());
  EXPECT_TRUE(check_file_name(std::string(255, 'a')).ok());
  EXPECT_FALSE(check_file_name(std::string(256, 'a')).ok());
  std::string deep;
  while (deep.size() < 1030) deep += "a/";
  EXPECT_FALSE(check_file_name(deep + "a").ok());
}

TEST(FileName, MessagesAreOneLine) {
  const Status status = check_file_name("evil\n\x1b[2J");
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.message().find('\n'), std::string::npos);
  EXPECT_EQ(status.message().find('\x1b'), std::string::npos);
}

TEST(Revision, BranchesTagsCommits) {
  for (const std::string_view good :
       {"main", "v1.0", "refs/pr/1", "0123456789abcdef0123456789abcdef01234567"}) {
    EXPECT_TRUE(check_revision(good).ok()) << good;
  }
  for (const std::string_view bad : {"", "..", "a/../b", "/etc", "a b", "a?b", "a#b", "a%2e"}) {
    EXPECT_FALSE(check_revision(bad).ok()) << bad;
  }
  EXPECT_TRUE(is_commit("0123456789abcdef0123456789abcdef01234567"));
  EXPECT_FALSE(is_commit("0123456789ABCDEF0123456789abcdef01234567"));
  EXPECT_FALSE(is_commit("0123"));
  EXPECT_TRUE(is_digest(std::string(64, 'a')));
  EXPECT_FALSE(is_digest(std::string(64, 'g')));
  EXPECT_FALSE(is_digest(std::string(50, 'a')));
}

}  // namespace
}  // namespace restkv

// Who is let in; reloads.
#include "server/access/access_control.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace restkv {
namespace {

class AccessControlTest : public testing::Test {
 protected:
  AccessControlTest()
      : path_(std::filesystem::path(testing::TempDir()) / ("restkv_keys_" + std::to_string(::getpid()))) {}
  ~AccessControlTest() override { std::filesystem::remove(path_); }
  void write(const std::string& text) const { std::ofstream(path_) << text; }
  const std::filesystem::path path_;
};

TEST_F(AccessControlTest, WithoutKeysEverybodyMay) {
  AccessControl access("");
  EXPECT_TRUE(access.load().empty());
  EXPECT_FALSE(access.has_keys());
  const Result<Caller> caller = access.authorize("Bearer whatever");
  ASSERT_TRUE(caller.ok());
  EXPECT_EQ(caller->name(), "");
  EXPECT_EQ(caller->rate().try_take(1 << 20, RateLimit::Clock::now()), 0);
}

TEST_F(AccessControlTest, BeforeTheFirstLoadNobodyMay) {
  write("sk-alpha-1\n");
  EXPECT_FALSE(AccessControl(path_.string()).authorize("Bearer sk-alpha-1").ok());
}

TEST_F(AccessControlTest, Keys) {
  write("sk-alpha-1\nsk-beta-22\n");
  AccessControl access(path_.string());
  ASSERT_TRUE(access.load().empty());
  EXPECT_EQ(access.num_keys(), 2u);
  for (const char* good : {"Bearer sk-beta-22", "bearer   sk-beta-22", "BEARER sk-beta-22", "sk-beta-22"}) {
    const Result<Caller> caller = access.authorize(good);
    ASSERT_TRUE(caller.ok()) << good;
    EXPECT_EQ(caller->name(), "key2");
  }
  for (const std::string& bad : {std::string(), std::string("Bearer "), std::string("Bearer sk-beta-2"),
                                 std::string("Bearer sk-beta-222"), std::string("Basic sk-beta-22"),
                                 std::string("Bearer sk-beta-22 "), "Bearer " + std::string(100'000, 'a')}) {
    const Result<Caller> caller = access.authorize(bad);
    ASSERT_FALSE(caller.ok()) << bad.substr(0, 40);
    EXPECT_EQ(caller.status().code(), StatusCode::kUnauthenticated);
    EXPECT_EQ(caller.status().reason(), "invalid_api_key");
    EXPECT_EQ(caller.status().message().find("beta"), std::string::npos);
  }
}

TEST_F(AccessControlTest, ReloadIsAllOrNothing) {
  write("keys:\n  - name: a\n    key: sk-alpha-1\n    requests_per_minute: 1\n");
  AccessControl access(path_.string());
  ASSERT_TRUE(access.load().empty());
  const Caller before = *access.authorize("sk-alpha-1");
  EXPECT_EQ(before.rate().try_take(1, RateLimit::Clock::now()), 0);
  EXPECT_FALSE(access.has_changed());

  write("keys:\n  - name: b\n    key: sk-beta-22\n  - name: c\n");
  EXPECT_TRUE(access.has_changed());
  EXPECT_FALSE(access.load().empty());
  EXPECT_FALSE(access.has_changed()) << "a file with errors is told of once";
  EXPECT_TRUE(access.authorize("sk-alpha-1").ok());
  EXPECT_FALSE(access.authorize("sk-beta-22").ok());

  write("keys:\n  - name: a\n    key: sk-gamma-33\n    requests_per_minute: 1\n");
  ASSERT_TRUE(access.load().empty());
  EXPECT_FALSE(access.authorize("sk-alpha-1").ok());
  EXPECT_EQ(before.name(), "a") << "a request that runs keeps its key";
  EXPECT_GT(access.authorize("sk-gamma-33")->rate().try_take(1, RateLimit::Clock::now()), 0)
      << "what the name has used stays used";

  std::filesystem::remove(path_);
  EXPECT_TRUE(access.has_changed());
  EXPECT_FALSE(access.load().empty());
  EXPECT_TRUE(access.authorize("sk-gamma-33").ok());
}

TEST_F(AccessControlTest, Sources) {
  ::setenv("RESTKV_TEST_KEY", "sk-from-env", 1);
  AccessControl access("env:RESTKV_TEST_KEY");
  EXPECT_TRUE(access.load().empty());
  EXPECT_TRUE(access.authorize("Bearer sk-from-env").ok());
  EXPECT_TRUE(check_key_source("").ok());
  for (const char* bad : {"env:RESTKV_NO_SUCH", "sk-a-secret-itself", "/", "/no/such/file"}) {
    const Status status = check_key_source(bad);
    ASSERT_FALSE(status.ok()) << bad;
    EXPECT_EQ(status.message().find("secret"), std::string::npos);
  }
  EXPECT_NE(check_key_source("sk-a-secret-itself").message().find("env:NAME"), std::string::npos);
}

}  // namespace
}  // namespace restkv

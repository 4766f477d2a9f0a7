#include "server/hub/hub_settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "server/hub/hub_client.h"

namespace restkv {
namespace {

using testing::HasSubstr;
using Variables = std::map<std::string, std::string>;

Result<HubSettings> read(const Variables& variables, const std::string& folder = {}) {
  return read_hub_settings(
      [&](const std::string& name) -> std::optional<std::string> {
        const auto found = variables.find(name);
        return found == variables.end() || found->second.empty() ? std::nullopt
                                                                 : std::optional(found->second);
      },
      folder);
}

TEST(HubSettings, CacheFolder) {
  Variables variables;
  EXPECT_THAT(read(variables).status().message(), HasSubstr("HF_HUB_CACHE"));
  const auto expect_next = [&](const std::string& name, const std::string& value, const std::string& folder) {
    variables[name] = value;
    EXPECT_EQ(read(variables)->cache, folder) << name;
  };
  expect_next("HOME", "/home/a", "/home/a/.cache/huggingface/hub");
  expect_next("XDG_CACHE_HOME", "/cache", "/cache/huggingface/hub");
  expect_next("HF_HOME", "~/hf", "/home/a/hf/hub");
  expect_next("HF_HUB_CACHE", "/models", "/models");
  EXPECT_EQ(read(variables, "~/given")->cache, "/home/a/given");
}

TEST(HubSettings, Endpoint) {
  const Variables home = {{"HOME", "/home/a"}};
  EXPECT_EQ(read(home)->endpoint, "https://huggingface.co");
  EXPECT_EQ(read({{"HOME", "/h"}, {"HF_ENDPOINT", "http://mirror:8080/hf//"}})->endpoint,
            "http://mirror:8080/hf");
  for (const std::string bad :
       {"mirror", "ftp://mirror", "https://a b", "https://user:secret@mirror", "https://m?x=1"}) {
    const Result<HubSettings> settings = read({{"HOME", "/h"}, {"HF_ENDPOINT", bad}});
    ASSERT_FALSE(settings.ok()) << bad;
    EXPECT_THAT(settings.status().message(), HasSubstr("HF_ENDPOINT"));
  }
}

TEST(HubSettings, Switches) {
  EXPECT_FALSE(read({{"HOME", "/h"}})->offline);
  for (const std::string yes : {"1", "true", "YES", "On"})
    EXPECT_TRUE(read({{"HOME", "/h"}, {"HF_HUB_OFFLINE", yes}})->offline) << yes;
  EXPECT_FALSE(read({{"HOME", "/h"}, {"HF_HUB_OFFLINE", "0"}})->offline);
  EXPECT_EQ(read({{"HOME", "/h"}, {"HF_HUB_DOWNLOAD_TIMEOUT", "7"}})->stall_timeout.count(), 7);
  EXPECT_FALSE(read({{"HOME", "/h"}, {"HF_HUB_DOWNLOAD_TIMEOUT", "0"}}).ok());
}

TEST(HubSettings, TokensAreNotQuoted) {
  EXPECT_EQ(read({{"HOME", "/h"}, {"HF_TOKEN", " hf_abc\n"}})->token, "hf_abc");
  for (const std::string bad : {"hf_secret\r\nHost: evil", "hf_secret two", "hf_secret\x7f"}) {
    const Result<HubSettings> settings = read({{"HOME", "/h"}, {"HF_TOKEN", bad}});
    ASSERT_FALSE(settings.ok());
    EXPECT_THAT(settings.status().message(), testing::Not(HasSubstr("secret")));
  }
}

TEST(HubClient, PathsInAddresses) {
  EXPECT_EQ(escape_path("a/b-c_d.e~f"), "a/b-c_d.e~f");
  EXPECT_EQ(escape_path("a b?c#d%e"), "a%20b%3Fc%23d%25e");
  EXPECT_EQ(escape_path("\xc3\xa4"), "%C3%A4");
  EXPECT_EQ(escape_path(std::string_view("\0", 1)), "%00");
}

}  // namespace
}  // namespace restkv

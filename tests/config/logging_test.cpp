// Log lines: both forms, and that no value can break out of its line.
#include "server/config/logging.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace restkv {
namespace {

std::string line_of(LogFormat format, LogLevel level, std::string_view event,
                    std::initializer_list<LogField> fields) {
  return log_line(format, level, "T", event, std::span<const LogField>(fields.begin(), fields.size()));
}

TEST(Logging, TextLine) {
  EXPECT_EQ(line_of(LogFormat::kText, LogLevel::kInfo, "request finished",
                    {{"id", "cmpl-1"},
                     {"status", 200},
                     {"ms", 1.5},
                     {"stream", true},
                     {"path", "/v1 x"},
                     {"none", ""}}),
            "T INFO  request finished id=cmpl-1 status=200 ms=1.5 stream=true path=\"/v1 x\" none=\"\"");
}

TEST(Logging, JsonLineIsJson) {
  const std::string line = line_of(LogFormat::kJson, LogLevel::kWarning, "a \"b\"",
                                   {{"text", "x\ny\x1b[31m\x7f\\"}, {"n", -3}, {"nan", 0.0 / 0.0}});
  const auto json = nlohmann::json::parse(line);
  EXPECT_EQ(json["level"], "warning");
  EXPECT_EQ(json["event"], "a \"b\"");
  EXPECT_EQ(json["text"], "x\ny\x1b[31m\x7f\\");
  EXPECT_EQ(json["n"], -3);
  EXPECT_TRUE(json["nan"].is_null());
}

TEST(Logging, NoControlCharacterGetsOut) {
  std::string all;
  for (int c = 0; c < 256; ++c) all += static_cast<char>(c);
  for (const LogFormat format : {LogFormat::kText, LogFormat::kJson}) {
    const std::string line = line_of(format, LogLevel::kError, all, {{all, all}});
    for (const char c : line) {
      const auto byte = static_cast<unsigned char>(c);
      EXPECT_TRUE(byte >= 0x20 && byte != 0x7f) << int{byte};
    }
  }
  EXPECT_EQ(escape_text("a\r\n\"\x1b"), "a\\r\\n\\\"\\x1b");
}

TEST(Logging, LevelFilters) {
  set_up_logging({.level = LogLevel::kWarning});
  EXPECT_FALSE(logs(LogLevel::kInfo));
  EXPECT_TRUE(logs(LogLevel::kWarning));
  testing::internal::CaptureStderr();
  log_event(LogLevel::kInfo, "hidden");
  log_event(LogLevel::kError, "shown", {{"n", 1}});
  const std::string out = testing::internal::GetCapturedStderr();
  EXPECT_EQ(out.find("hidden"), std::string::npos);
  EXPECT_NE(out.find(" ERROR shown n=1\n"), std::string::npos);
  set_up_logging({});
}

}  // namespace
}  // namespace restkv

// The log's sink on a pipe that nobody reads: whoever logs goes on, and what was lost is counted.
#include "server/config/log_sink.h"

#include <array>
#include <string>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spdlog/logger.h>
#include <unistd.h>

namespace restkv {
namespace {

constexpr int kPipeBytes = 65'536;  // Linux's default

class LogSinkTest : public ::testing::Test {
 protected:
  LogSinkTest() {
    EXPECT_EQ(pipe(ends_.data()), 0);
    EXPECT_EQ(fcntl(ends_[1], F_SETPIPE_SZ, kPipeBytes), kPipeBytes);
    EXPECT_EQ(fcntl(ends_[0], F_SETFL, O_NONBLOCK), 0);
    sink_ = std::make_shared<LogSink>(
        ends_[1], [](int64_t lost) { return "lost " + std::to_string(lost); }, std::chrono::milliseconds(1));
    logger_ = std::make_unique<spdlog::logger>("test", sink_);
    logger_->set_pattern("%v");
  }
  ~LogSinkTest() override {
    close(ends_[0]);
    close(ends_[1]);
  }
  void log(const std::string& line) { logger_->log(spdlog::level::info, line); }
  std::string read_all() const {
    std::string out;
    std::array<char, 4096> buffer;
    for (ssize_t n; (n = read(ends_[0], buffer.data(), buffer.size())) > 0;)
      out.append(buffer.data(), static_cast<size_t>(n));
    return out;
  }

  std::array<int, 2> ends_{};
  std::shared_ptr<LogSink> sink_;
  std::unique_ptr<spdlog::logger> logger_;
};

TEST_F(LogSinkTest, LinesThatNobodyReadsAreLostAndCounted) {
  const std::string line(99, 'x');
  for (int i = 0; i < 1000; ++i) log(line);
  const std::string out = read_all();
  EXPECT_EQ(out.size() % 100, 0u) << "whole lines";
  EXPECT_GT(out.size(), 0u);
  EXPECT_LT(out.size(), 100'000u);
  log("again");
  EXPECT_EQ(read_all(), "lost " + std::to_string(1000 - out.size() / 100) + "\nagain\n");
  log("and again");
  EXPECT_EQ(read_all(), "and again\n");
}

TEST_F(LogSinkTest, ALineThatGotStuckEndsBeforeTheNext) {
  log(std::string(2 * kPipeBytes, 'y'));
  EXPECT_EQ(read_all(), std::string(kPipeBytes, 'y'));
  log("next");
  EXPECT_EQ(read_all(), "\nlost 1\nnext\n");
}

TEST_F(LogSinkTest, ALineLongerThanAPieceIsWholeWhereThereIsRoom) {
  log(std::string(20'000, 'z'));
  EXPECT_EQ(read_all(), std::string(20'000, 'z') + "\n");
}

}  // namespace
}  // namespace restkv

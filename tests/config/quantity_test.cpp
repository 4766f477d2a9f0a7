// Human numbers: exact values, the errors' words, and that text and value are inverse.
#include "server/config/quantity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/config/nearest_name.h"

namespace restkv {
namespace {

using std::chrono::milliseconds;

TEST(Quantity, CountsUseVllmsSuffixes) {
  EXPECT_EQ(*parse_count("0"), 0);
  EXPECT_EQ(*parse_count("-3"), -3);
  EXPECT_EQ(*parse_count("32k"), 32'000);
  EXPECT_EQ(*parse_count("32K"), 32'768);
  EXPECT_EQ(*parse_count("32Ki"), 32'768);
  EXPECT_EQ(*parse_count("25.6k"), 25'600);
  EXPECT_EQ(*parse_count("1m"), 1'000'000);
  EXPECT_EQ(*parse_count("9223372036854775807"), INT64_MAX);
  for (const char* bad : {"", "-", "k", "1.5", "1kk", "1 kb", "1e3", "0x10", "+1", " 1", "1.", ".5k", "1ki",
                          "nan", "9223372036854775808", "9223372036854775807k", "1.0000001k", "12MiB"}) {
    EXPECT_FALSE(parse_count(bad).ok()) << bad;
  }
  EXPECT_EQ(parse_count("many").status().message(),
            "'many' is not a whole number (examples: 4096, 32k, 32K)");
}

TEST(Quantity, SizesAreExact) {
  EXPECT_EQ(*parse_size("16GiB"), int64_t{16} << 30);
  EXPECT_EQ(*parse_size("16G"), int64_t{16} << 30);
  EXPECT_EQ(*parse_size("16GB"), 16'000'000'000);
  EXPECT_EQ(*parse_size("16 GiB"), int64_t{16} << 30);
  EXPECT_FALSE(parse_size("16 ").ok());
  EXPECT_EQ(*parse_size("1.5KiB"), 1536);
  EXPECT_EQ(*parse_size("10kB"), 10'000);
  EXPECT_EQ(*parse_size("7B"), 7);
  for (const char* bad : {"16GiBB", "B", "1.5B", "16XiB", "8796093022208TiB", "GiB"}) {
    EXPECT_FALSE(parse_size(bad).ok()) << bad;
  }
  for (const int64_t bytes :
       {int64_t{0}, int64_t{1}, int64_t{1000}, int64_t{1024}, int64_t{8} << 20, int64_t{3} << 40}) {
    EXPECT_EQ(*parse_size(size_text(bytes)), bytes);
  }
  EXPECT_EQ(size_text(16384), "16KiB");
  EXPECT_EQ(rounded_size_text(98'362'432), "93.8 MiB");
  EXPECT_EQ(rounded_size_text(999), "999 B");
}

TEST(Quantity, DurationsHaveUnits) {
  EXPECT_EQ(*parse_duration("500ms"), milliseconds(500));
  EXPECT_EQ(*parse_duration("30s"), milliseconds(30'000));
  EXPECT_EQ(*parse_duration("30"), milliseconds(30'000));
  EXPECT_EQ(*parse_duration("0"), milliseconds(0));
  EXPECT_EQ(*parse_duration("1.5s"), milliseconds(1500));
  EXPECT_EQ(*parse_duration("1m30s"), milliseconds(90'000));
  EXPECT_EQ(*parse_duration("2d"), milliseconds(172'800'000));
  for (const char* bad : {"", "s", "-1s", "1x", "0.5ms", "1m30", "1s ", "9223372036854775807d"}) {
    EXPECT_FALSE(parse_duration(bad).ok()) << bad;
  }
  for (const int64_t ms : {0, 1, 500, 1000, 60'000, 90'000, 86'400'000}) {
    EXPECT_EQ(*parse_duration(duration_text(milliseconds(ms))), milliseconds(ms));
  }
  EXPECT_EQ(duration_text(milliseconds(600'000)), "10m");
}

TEST(Quantity, NumbersAreFinite) {
  EXPECT_EQ(*parse_number("0.5"), 0.5);
  EXPECT_EQ(shortest_text(0.1), "0.1");
  for (const char* bad : {"", "nan", "inf", "-inf", "1e999", "0.5x", "1,5"})
    EXPECT_FALSE(parse_number(bad).ok()) << bad;
}

TEST(NearestName, FindsTyposAndNothingElse) {
  const std::string_view names[] = {"port", "host", "max_headers", "max_header_size"};
  EXPECT_EQ(nearest_name("prot", names), "port");
  EXPECT_EQ(nearest_name("maxheaders", names), "max_headers");
  EXPECT_EQ(nearest_name("colour", names), "");
  EXPECT_EQ(nearest_name("", names), "");
  EXPECT_EQ(nearest_name(std::string(100'000, 'a'), names), "");
  EXPECT_EQ(suggestion("prot", names, "--"), " (did you mean '--port'?)");
}

}  // namespace
}  // namespace restkv

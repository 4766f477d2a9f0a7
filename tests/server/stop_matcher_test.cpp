// Stop strings: the same result for every way to cut the text.
#include "server/openai/stop_matcher.h"

#include <gtest/gtest.h>

namespace restkv {
namespace {

struct Case {
  std::string text;
  std::vector<std::string> stops;
  std::string shown;
  int match;
};

TEST(StopMatcher, EveryCutGivesTheSame) {
  const Case cases[] = {
      {"hello world", {"wor"}, "hello ", 0},
      {"hello world", {"zzz"}, "hello world", -1},
      {"aaab", {"aab"}, "a", 0},
      {"abababc", {"ababc"}, "ab", 0},
      {"one END two", {"END two", "END"}, "one ", 1},  // the one that ends first
      {"one END two", {"ND", "END"}, "one ", 1},       // of two that end together the longer
      {"tail EN", {"END"}, "tail EN", -1},             // held back, given out at the end
      {"grüße ✓ done", {"✓"}, "grüße ", 0},
      {"x", {"x"}, "", 0},
  };
  for (const Case& c : cases) {
    for (size_t piece = 1; piece <= c.text.size(); ++piece) {
      StopMatcher matcher(c.stops, false);
      std::string shown;
      int match = -1;
      for (size_t at = 0; at < c.text.size() && match < 0; at += piece) {
        match = matcher.append(std::string_view(c.text).substr(at, piece), shown);
      }
      if (match < 0) matcher.finish(shown);
      EXPECT_EQ(shown, c.shown) << c.text << " in pieces of " << piece;
      EXPECT_EQ(match, c.match) << c.text << " in pieces of " << piece;
    }
  }
}

TEST(StopMatcher, HoldsBackNoMoreThanItMust) {
  const std::vector<std::string> stops{"STOP"};
  StopMatcher matcher(stops, false);
  std::string shown;
  EXPECT_EQ(matcher.append("go ST", shown), -1);
  EXPECT_EQ(shown, "go ");
  EXPECT_EQ(matcher.append("ART", shown), -1);
  EXPECT_EQ(shown, "go START");
}

TEST(StopMatcher, KeepsTheMatchWhenAsked) {
  const std::vector<std::string> stops{"lo w"};
  StopMatcher matcher(stops, true);
  std::string shown;
  EXPECT_EQ(matcher.append("hello world", shown), 0);
  EXPECT_EQ(shown, "hello w");
}

}  // namespace
}  // namespace restkv

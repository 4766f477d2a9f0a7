#include "server/serving/trace_context.h"

#include <gtest/gtest.h>

namespace restkv {
namespace {

const std::string kTrace = "4bf92f3577b34da6a3ce929d0e0e4736", kSpan = "00f067aa0ba902b7";

TEST(TraceContext, TakesTheIds) {
  const TraceContext context = parse_traceparent("00-" + kTrace + "-" + kSpan + "-01");
  EXPECT_TRUE(context.is_known());
  EXPECT_EQ(context.trace_id, kTrace);
  EXPECT_EQ(context.parent_id, kSpan);
  // A later version may have more behind it.
  EXPECT_TRUE(parse_traceparent("cc-" + kTrace + "-" + kSpan + "-01-what-comes").is_known());
  EXPECT_TRUE(parse_traceparent("cc-" + kTrace + "-" + kSpan + "-00").is_known());
}

TEST(TraceContext, WhatIsNone) {
  const std::string whole = "00-" + kTrace + "-" + kSpan + "-01";
  for (size_t length = 0; length < whole.size(); ++length)
    EXPECT_FALSE(parse_traceparent(std::string_view(whole).substr(0, length)).is_known()) << length;
  for (const std::string& bad :
       {whole + "-x", whole + "x", "ff" + whole.substr(2), "0g" + whole.substr(2), "00_" + whole.substr(3),
        "00-" + std::string(32, '0') + "-" + kSpan + "-01",
        "00-" + kTrace + "-" + std::string(16, '0') + "-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-" + kSpan + "-01", "00-" + kTrace + "-" + kSpan + "-0x",
        "00-" + kTrace + "\n" + kSpan + "-01", "cc-" + kTrace + "-" + kSpan + "-01x"}) {
    EXPECT_FALSE(parse_traceparent(bad).is_known()) << bad;
  }
}

}  // namespace
}  // namespace restkv

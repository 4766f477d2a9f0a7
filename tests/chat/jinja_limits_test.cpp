// Templates that never end or grow without bound (reliability.md, attack 6): an error within the limits, never a crash.
#include <gtest/gtest.h>

#include <atomic>
#include <nlohmann/json.hpp>
#include <thread>

#include "server/chat/chat_template.h"

namespace restkv {
namespace {

using nlohmann::ordered_json;

RenderLimits patient() {
  RenderLimits limits;
  limits.time = std::chrono::seconds(60);  // the limit under test is another one
  return limits;
}

Status status_of(const std::string& source, const RenderLimits& limits = patient(),
                 const ordered_json& variables = ordered_json::object()) {
  Result<ChatTemplate> parsed = ChatTemplate::parse(source);
  if (!parsed.ok()) return parsed.status();
  Result<std::string> text = parsed->render(variables, limits, {});
  return text.ok() ? Status() : text.status();
}

void expect_limit(const std::string& source, const std::string& words,
                  const RenderLimits& limits = patient()) {
  const Status status = status_of(source, limits);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << source;
  EXPECT_EQ(status.reason(), "template_limit") << status.message();
  EXPECT_NE(status.message().find(words), std::string::npos) << status.message();
}

std::string repeat(const std::string& text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

TEST(JinjaLimits, AMacroThatCallsItself) {
  expect_limit("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nested more than 64 deep");
  expect_limit("{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
               "64 deep");
  expect_limit("{% macro m(x) %}{% call m(1) %}{% endcall %}{{ caller }}{% endmacro %}{{ m(1) }}", "64 deep");
  const std::string counted =
      "{% macro m(n) %}{% if n > 1 %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(NUM) }}";
  auto with = [&](const char* num) { return std::string(counted).replace(counted.find("NUM"), 3, num); };
  EXPECT_TRUE(status_of(with("64")).ok());
  EXPECT_EQ(status_of(with("65")).reason(), "template_limit");
}

TEST(JinjaLimits, DeepNestingInTheSource) {
  for (const auto& [open, close] :
       std::initializer_list<std::pair<const char*, const char*>>{{"(", ")"},
                                                                  {"[", "]"},
                                                                  {"{1:", "}"},
                                                                  {"not ", ""},
                                                                  {"-", ""},
                                                                  {"f(", ")"},
                                                                  {"x[", "]"},
                                                                  {"1 if 1 else ", ""}}) {
    const std::string source = "{{ " + repeat(open, 10'000) + "1" + repeat(close, 10'000) + " }}";
    const Status status = status_of(source);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << open;
    EXPECT_NE(status.message().find("deep"), std::string::npos) << status.message();
  }
  EXPECT_FALSE(status_of("{{ 1" + repeat(" if 1", 10'000) + " }}").ok());
  EXPECT_FALSE(status_of(repeat("{% if 1 %}", 10'000)).ok());
  EXPECT_FALSE(status_of("{% set " + repeat("(", 10'000) + "a").ok());
  EXPECT_TRUE(status_of("{{ " + repeat("(", 60) + "1" + repeat(")", 60) + " }}").ok());
}

TEST(JinjaLimits, LongChainsAreNoNesting) {
  EXPECT_TRUE(status_of("{{ 1" + repeat(" + 1", 20'000) + " }}").ok());
  EXPECT_TRUE(status_of("{{ 'a'" + repeat(" ~ 'a'", 20'000) + " }}").ok());
  EXPECT_TRUE(status_of("{{ 'a'" + repeat("|upper", 20'000) + " }}").ok());
  EXPECT_TRUE(status_of("{{ 1" + repeat(" and 1", 20'000) + " }}").ok());
  EXPECT_TRUE(status_of("{% if 0 %}" + repeat("{% elif 0 %}", 20'000) + "{% endif %}").ok());
}

TEST(JinjaLimits, RangeAndFuel) {
  EXPECT_TRUE(status_of("{{ range(100000)|length }}").ok());
  EXPECT_FALSE(status_of("{{ range(100001)|length }}").ok());
  EXPECT_FALSE(status_of("{{ range(10 ** 7) }}").ok());
  EXPECT_FALSE(status_of("{{ range(-9223372036854775807, 9223372036854775807) }}").ok());
  expect_limit("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", "steps");
  expect_limit("{% for a in range(2000) %}{{ range(100000)|list|length }}{% endfor %}", "steps");
  RenderLimits few = patient();
  few.fuel = 100;
  EXPECT_TRUE(status_of("{% for a in range(10) %}{% endfor %}", few).ok());
  expect_limit("{% for a in range(100) %}{% endfor %}", "more than 100 steps", few);
}

TEST(JinjaLimits, TextThatDoubles) {
  expect_limit(
      "{% set ns = namespace(s='ab') %}{% for i in range(24) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
      "more than 1048576 bytes");
  expect_limit(
      "{% set ns = namespace(s='ab') %}{% for i in range(24) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
      "bytes");
  expect_limit("{{ 'ab' * 1000000000 }}", "bytes");
  expect_limit("{{ 'a'.center(1000000000) }}", "bytes");
  expect_limit("{{ ('a' * 1000).replace('a', 'b' * 2000) }}", "bytes");
  expect_limit("{{ ('a' * 1000)|replace('', 'b' * 2000) }}", "bytes");
  expect_limit("{{ ('b' * 100000).join(range(20)|map('string')) }}", "bytes");
  expect_limit("{{ [1, [2, [3]]]|tojson(indent=1000000) }}", "bytes");
  expect_limit("{% for i in range(100000) %}0123456789012345{% endfor %}", "bytes");
  expect_limit(
      "{% set ns = namespace(l=[1]) %}{% for i in range(40) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
      "steps");
  expect_limit(
      "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ "
      "ns.l }}",
      "");
  expect_limit(
      "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}"
      "{% set ms = namespace(l=[1]) %}{% for i in range(60) %}{% set ms.l = [ms.l, ms.l] %}{% endfor %}"
      "{{ ns.l == ms.l }}",
      "steps");
  EXPECT_FALSE(status_of("{{ '%1000000000d' % 1 }}").ok());
  EXPECT_FALSE(status_of("{{ '{:1000000000}'.format(1) }}").ok());
  EXPECT_FALSE(status_of("{{ '%.1000000000f' % 1 }}").ok());
  EXPECT_FALSE(status_of("{{ 10 ** 10 ** 10 }}").ok());
  EXPECT_FALSE(status_of("{{ [1] * 10 ** 12 }}").ok());
  RenderLimits exact = patient();
  exact.output_bytes = 10;
  EXPECT_TRUE(status_of("0123456789", exact).ok());
  EXPECT_EQ(status_of("01234567890", exact).reason(), "template_limit");
}

TEST(JinjaLimits, ValuesThatNestOrHoldThemselves) {
  EXPECT_FALSE(
      status_of("{% set ns = namespace(l=[]) %}{% for i in range(1000) %}{% set ns.l = [ns.l] %}{% endfor %}")
          .ok());
  EXPECT_FALSE(status_of("{% set ns = namespace(l=[]) %}{% for i in range(1000) %}{% set ns.l = "
                         "[ns.l]|select %}{% endfor %}")
                   .ok());
  EXPECT_FALSE(status_of("{% set ns = namespace(l={}) %}{% for i in range(1000) %}{% set ns.l = {'a': "
                         "ns.l}.items %}{% endfor %}")
                   .ok());
  EXPECT_FALSE(status_of("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}").ok());
  EXPECT_TRUE(status_of("{% set ns = namespace() %}{% set ns.a = [ns] %}").ok());
  EXPECT_TRUE(
      status_of("{% set n = namespace(o=none) %}{% for i in range(20000) %}{% set m = namespace(o=n.o) %}"
                "{% set n.o = m %}{% endfor %}")
          .ok());
  EXPECT_TRUE(status_of("{% set ns = namespace(g=none) %}{% macro f(g) %}{% macro h() %}{{ g }}{% endmacro %}"
                        "{% set ns.g = h %}{% endmacro %}{% for i in range(5000) %}{{ f(ns.g) }}{% endfor %}")
                  .ok());
  ordered_json deep = 1;
  for (int i = 0; i < 10'000; ++i) deep = ordered_json::array({deep});
  EXPECT_FALSE(status_of("{{ x }}", patient(), {{"x", deep}}).ok());
}

TEST(JinjaLimits, TimeByTheClockThatIsGiven) {
  RenderLimits limits;
  std::chrono::steady_clock::time_point now;
  int calls = 0;
  limits.clock = [&] { return now + std::chrono::milliseconds(100 * calls++); };
  expect_limit("{% for i in range(100000) %}{% endfor %}", "more than 250 ms", limits);
  calls = 0;
  EXPECT_TRUE(status_of("{{ 1 }}", limits).ok());
}

TEST(JinjaLimits, AHostileTemplateIsDoneInTime) {
  const RenderLimits limits;  // the defaults: 250 ms
  for (const char* source :
       {"{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{{ ('x' * 1000000).upper()|length }}{% endfor %}",
        "{% for a in range(100000) %}{% if 'b' in 'a' * 1000000 %}{% endif %}{% endfor %}",
        "{{ ('a' * 600000).find('a' * 300000 ~ 'b') }}", "{{ ('a' * 600000).rfind('b' ~ 'a' * 300000) }}",
        "{{ ('a' * 600000).rsplit('b' ~ 'a' * 300000)|length }}",
        "{{ ('a' * 600000).replace('a' * 300000 ~ 'b', '')|length }}",
        "{{ 'a' * 300000 ~ 'b' in 'a' * 600000 }}", "{{ dict(range(100000)|batch(2))|length }}",
        "{{ range(100000)|unique|list|length }}",
        "{% for a in range(1000) %}{{ range(100000)|sort|length }}{% endfor %}",
        "{% for a in range(100000) %}{{ ('é' * 400000)[::2]|length }}{% endfor %}"}) {
    const auto start = std::chrono::steady_clock::now();
    (void)status_of(source, limits);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(3)) << source;
  }
}

TEST(JinjaLimits, OneTemplateManyThreads) {
  Result<ChatTemplate> parsed = ChatTemplate::parse(
      "{% macro m(x) %}{{ x|upper }}{% endmacro %}{% for w in words %}{{ m(w) }}{{ loop.index }}{% endfor "
      "%}");
  ASSERT_TRUE(parsed.ok());
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const std::string word = "w" + std::to_string(t);
      for (int i = 0; i < 300; ++i) {
        Result<std::string> text = parsed->render({{"words", {word, "b"}}}, patient(), {});
        wrong += !text.ok() || *text != "W" + std::to_string(t) + "1B2";
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace restkv

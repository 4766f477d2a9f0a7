// The template language, one row a filter, test, method and operator; what stands beside each template is what Jinja2
// 3.1 gives in the environment of transformers (compare_jinja2.py compares many more, where Jinja2 is installed).
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "server/chat/chat_template.h"

namespace restkv {
namespace {

using nlohmann::ordered_json;

const ordered_json& variables() {
  static const ordered_json kVariables = ordered_json::parse(R"({
    "s": "Hello, World", "i": 7, "neg": -7, "d": 2.5, "t": true, "f": false, "l": [3, 1, 2],
    "dd": {"b": 1, "a": {"x": [1, 2, {"y": "z"}]}, "items": "shadow", "C": null},
    "people": [{"name": "Zoe", "age": 31, "tags": ["x"]}, {"name": "adam", "age": 25, "tags": []},
               {"name": "Bob", "age": 31, "nick": "bb"}]})");
  return kVariables;
}

// The text, or "error: ...".
std::string render(const std::string& source) {
  const auto now = std::chrono::system_clock::from_time_t(1768478400);  // 2026-01-15 12:00 UTC
  Result<ChatTemplate> parsed = ChatTemplate::parse(source);
  if (!parsed.ok()) return "error: " + parsed.status().message();
  RenderLimits limits;
  limits.time = std::chrono::seconds(10);
  Result<std::string> text = parsed->render(variables(), limits, now);
  return text.ok() ? *text : "error: " + text.status().message();
}

struct Row {
  const char* expression;
  const char* expected;
};

void check(std::initializer_list<Row> rows) {
  for (const Row& row : rows) {
    EXPECT_EQ(render("{{ " + std::string(row.expression) + " }}"), row.expected) << row.expression;
  }
}

TEST(JinjaLanguage, Filters) {
  check({
      {R"~(i|abs)~", R"~(7)~"},
      {R"~(neg|abs)~", R"~(7)~"},
      {R"~(s|attr('upper') is callable)~", R"~(True)~"},
      {R"~(l|batch(2, 'x')|list)~", R"~([[3, 1], [2, 'x']])~"},
      {R"~('hello WORLD'|capitalize)~", R"~(Hello world)~"},
      {R"~('ab'|center(6))~", R"~(  ab  )~"},
      {R"~(l|count)~", R"~(3)~"},
      {R"~(none|default('x') ~ missing|default('x') ~ ''|d('y', true))~", R"~(Nonexy)~"},
      {R"~({'b': 1, 'A': 2}|dictsort)~", R"~([('A', 2), ('b', 1)])~"},
      {R"~('<a href="x">'|e)~", R"~(&lt;a href=&#34;x&#34;&gt;)~"},
      {R"~('<'|safe|e)~", R"~(<)~"},
      {R"~('<'|safe|forceescape)~", R"~(&lt;)~"},
      {R"~(1500|filesizeformat)~", R"~(1.5 kB)~"},
      {R"~(l|first)~", R"~(3)~"},
      {R"~('2.5'|float + 1)~", R"~(3.5)~"},
      {R"~('%s-%05.1f'|format('a', 2.5))~", R"~(a-002.5)~"},
      {R"~(people|groupby('age')|map('last')|map('length')|list)~", R"~([1, 2])~"},
      {R"~('a\nb\n\nc'|indent(2))~", R"~(a
  b

  c)~"},
      {R"~('a\nb'|indent(2, first=true))~", R"~(  a
  b)~"},
      {R"~('42'|int + '0x1f'|int(base=16) + 'x'|int(5))~", R"~(78)~"},
      {R"~(['a', 1, none]|join('-'))~", R"~(a-1-None)~"},
      {R"~({'a': 1}|items|list)~", R"~([('a', 1)])~"},
      {R"~(l|last)~", R"~(2)~"},
      {R"~(l|length ~ 'é'|length ~ {'a': 1}|length)~", R"~(311)~"},
      {R"~('abc'|list)~", R"~(['a', 'b', 'c'])~"},
      {R"~('ÀB'|lower)~", R"~(àb)~"},
      {R"~(['a', 'b']|map('upper')|list)~", R"~(['A', 'B'])~"},
      {R"~(people|map(attribute='name')|join(','))~", R"~(Zoe,adam,Bob)~"},
      {R"~(l|max ~ l|min)~", R"~(31)~"},
      {R"~(l|reject('odd')|list)~", R"~([2])~"},
      {R"~(people|rejectattr('age', 'gt', 30)|map(attribute='name')|list)~", R"~(['adam'])~"},
      {R"~('a.b.c'|replace('.', '-', 1))~", R"~(a-b.c)~"},
      {R"~('abc'|reverse ~ [1, 2]|reverse|list)~", R"~(cba[2, 1])~"},
      {R"~(2.567|round(1) ~ 2.5|round ~ 2.1|round(0, 'ceil'))~", R"~(2.62.03.0)~"},
      {R"~('<a>'|safe ~ '<b>')~", R"~(<a><b>)~"},
      {R"~(l|select('odd')|list)~", R"~([3, 1])~"},
      {R"~(people|selectattr('age', 'equalto', 25)|map(attribute='name')|list)~", R"~(['adam'])~"},
      {R"~(range(5)|slice(2)|list)~", R"~([[0, 1, 2], [3, 4]])~"},
      {R"~(['b', 'A', 'c']|sort ~ l|sort(reverse=true))~", R"~(['A', 'b', 'c'][3, 2, 1])~"},
      {R"~(5|string ~ 'x'|string)~", R"~(5x)~"},
      {R"~('<b>x</b> &amp; y'|striptags)~", R"~(x & y)~"},
      {R"~({'class': 'a "b"', 'id': 5, 'x': none, 'y': nosuch}|xmlattr ~ {'a': 1}|xmlattr(false))~",
       R"~( class="a &#34;b&#34;" id="5"a="1")~"},
      {R"~(l|sum ~ people|sum(attribute='age'))~", R"~(687)~"},
      {R"~('foo bar-baz'|title)~", R"~(Foo Bar-Baz)~"},
      {R"~({'a': [1, 2.0, none, true, "é\n<"]}|tojson)~", R"~({"a": [1, 2.0, null, true, "é\n<"]})~"},
      {R"~({'b': 1, 'a': []}|tojson(indent=2, sort_keys=true))~", R"~({
  "a": [],
  "b": 1
})~"},
      {R"~([1, {'a': 2}]|tojson(separators=(',', ':')))~", R"~([1,{"a":2}])~"},
      {R"~('  x '|trim ~ 'xxaxx'|trim('x'))~", R"~(xa)~"},
      {R"~('foo bar baz qux'|truncate(9))~", R"~(foo...)~"},
      {R"~([1, 2, 1, 'A', 'a']|unique|list)~", R"~([1, 2, 'A'])~"},
      {R"~('ß'|upper)~", R"~(SS)~"},
      {R"~('a b/c?'|urlencode ~ {'a': 'b c'}|urlencode)~", R"~(a%20b/c%3Fa=b+c)~"},
      {R"~('two words'|wordcount)~", R"~(2)~"},
  });
}

TEST(JinjaLanguage, Tests) {
  check({
      {R"~(s is string ~ i is string)~", R"~(TrueFalse)~"},
      {R"~(i is number ~ t is number ~ s is number)~", R"~(TrueTrueFalse)~"},
      {R"~(i is integer ~ t is integer ~ d is float)~", R"~(TrueFalseTrue)~"},
      {R"~(t is boolean ~ t is true ~ t is false)~", R"~(TrueTrueFalse)~"},
      {R"~(none is none ~ missing is none ~ missing is defined ~ missing is undefined)~",
       R"~(TrueFalseFalseTrue)~"},
      {R"~(dd is mapping ~ l is mapping)~", R"~(TrueFalse)~"},
      {R"~(l is sequence ~ i is sequence ~ s is iterable ~ i is iterable)~", R"~(TrueFalseTrueFalse)~"},
      {R"~(i is odd ~ i is even ~ i is divisibleby(7))~", R"~(TrueFalseTrue)~"},
      {R"~(s is callable ~ s.upper is callable)~", R"~(FalseTrue)~"},
      {R"~('ab' is lower ~ 'AB' is upper)~", R"~(TrueTrue)~"},
      {R"~(i is sameas 7 ~ i is eq 7 ~ i is ne 7)~", R"~(TrueTrueFalse)~"},
      {R"~(i is gt 3 ~ i is lt 3 ~ i is ge 7 ~ i is le 7)~", R"~(TrueFalseTrueTrue)~"},
      {R"~(i is in [7] ~ 'a' is not in 'abc')~", R"~(TrueFalse)~"},
      {R"~('upper' is filter ~ 'odd' is test)~", R"~(TrueTrue)~"},
      {R"~('<'|safe is escaped)~", R"~(True)~"},
  });
}

TEST(JinjaLanguage, Methods) {
  check({
      {R"~('abc'.upper() ~ 'ABC'.lower() ~ 'aBc'.swapcase() ~ 'ab cd'.title() ~ 'ab'.capitalize())~",
       R"~(ABCabcAbCAb CdAb)~"},
      {R"~(' x '.strip() ~ ' x '.lstrip() ~ ' x '.rstrip() ~ 'xax'.strip('x'))~", R"~(xx  xa)~"},
      {R"~('a b  c'.split() ~ 'a,b,c'.split(',', 1) ~ 'a,b,c'.rsplit(',', 1) ~ 'a\nb'.splitlines())~",
       R"~(['a', 'b', 'c']['a', 'b,c']['a,b', 'c']['a', 'b'])~"},
      {R"~('abc'.startswith('ab') ~ 'abc'.endswith(('x', 'bc')))~", R"~(TrueTrue)~"},
      {R"~('abcabc'.find('c') ~ 'abcabc'.rfind('c') ~ 'abc'.index('b') ~ 'aab'.count('a'))~", R"~(2512)~"},
      {R"~('aab'.replace('a', 'x') ~ 'aab'.replace('a', 'x', 1))~", R"~(xxbxab)~"},
      {R"~('-'.join(['a', 'b']))~", R"~(a-b)~"},
      {R"~('ab'.ljust(4) ~ 'ab'.rjust(4) ~ 'ab'.center(5) ~ '7'.zfill(3))~", R"~(ab    ab  ab 007)~"},
      {R"~('a=b'.partition('=') ~ 'a=b=c'.rpartition('='))~", R"~(('a', '=', 'b')('a=b', '=', 'c'))~"},
      {R"~('prefix'.removeprefix('pre') ~ 'prefix'.removesuffix('fix'))~", R"~(fixpre)~"},
      {R"~('1'.isdigit() ~ 'a'.isalpha() ~ 'a1'.isalnum() ~ ' '.isspace() ~ 'A'.isupper() ~ 'a'.islower())~",
       R"~(TrueTrueTrueTrueTrueTrue)~"},
      {R"~('{} {0}'[:2].format(1) ~ '{x:>4}'.format(x='a') ~ '{:.2f}'.format(2.5))~", R"~(1   a2.50)~"},
      {R"~({'a': 1}.get('a') ~ {'a': 1}.get('b') ~ {'a': 1}.get('b', 2))~", R"~(1None2)~"},
      {R"~({'a': 1}.items()|list ~ {'a': 1}.keys()|list ~ {'a': 1}.values()|list ~ {'a': 1}.items())~",
       R"~([('a', 1)]['a'][1]dict_items([('a', 1)]))~"},
      {R"~([1, 2, 1].index(2) ~ [1, 2, 1].count(1))~", R"~(12)~"},
  });
}

TEST(JinjaLanguage, Language) {
  check({
      {R"~(1 + 2 * 3 - 4 / 2)~", R"~(5.0)~"},
      {R"~(7 // 2 ~ -7 // 2 ~ -7 % 3 ~ 2 ** 3 ~ -2 ** 2)~", R"~(3-4284)~"},
      {R"~((1 < 2 < 3) ~ (1 < 3 < 2))~", R"~(TrueFalse)~"},
      {R"~(not 1 == 2 and 'a' in 'abc' or false)~", R"~(True)~"},
      {R"~('a' ~ 1 ~ none ~ true ~ 1.0 ~ [1, 'x', none] ~ {'a': (1,)})~",
       R"~(a1NoneTrue1.0[1, 'x', None]{'a': (1,)})~"},
      {R"~('%s %d %.1f %%' % ('a', 2, 2.55))~", R"~(a 2 2.5 %)~"},
      {R"~(1e16 ~ ' ' ~ 1e-5 ~ ' ' ~ 100000.0 ~ ' ' ~ 0.1)~", R"~(1e+16 1e-05 100000.0 0.1)~"},
      {R"~(s[0] ~ s[-1] ~ s[1:3] ~ s[::-1] ~ l[1:] ~ l[-1])~", R"~(HdeldlroW ,olleH[1, 2]2)~"},
      {R"~('héé'[1:2] ~ 'héé'|length)~", R"~(é3)~"},
      {R"~('x' if t else 'y')~", R"~(x)~"},
      {R"~(('x' if f) is defined)~", R"~(False)~"},
      {R"~(missing ~ '|' ~ dd.missing ~ '|' ~ dd['missing'])~", R"~(||)~"},
      {R"~(dd.a.x[0] ~ dd['a']['x'][0] ~ l.0)~", R"~(113)~"},
      {R"~('a' 'b' "c" ~ '\x41\u00e9\n'|length)~", R"~(abc3)~"},
      {R"~(range(3)|list ~ range(1, 6, 2)|list)~", R"~([0, 1, 2][1, 3, 5])~"},
      {R"~(dict(a=1).a ~ namespace(b=2).b)~", R"~(12)~"},
      {R"~(cycler('a', 'b').next() ~ joiner()())~", R"~(a)~"},
      {R"~(strftime_now('%d %b %Y'))~", R"~(15 Jan 2026)~"},
      {R"~('<b>'|safe + '<i>')~", R"~(<b>&lt;i&gt;)~"},
      {R"~("it's" ~ ["it's", 'a"b', 'é', '\n'])~", R"~(it's["it's", 'a"b', 'é', '\n'])~"},
  });
}

TEST(JinjaLanguage, WhiteSpace) {
  EXPECT_EQ(render("text\n"), "text");
  EXPECT_EQ(render("text\n\n"), "text\n");
  EXPECT_EQ(render("a\r\nb\r"), "a\nb");
  EXPECT_EQ(render("a\n  {% if t %}\n  b\n  {% endif %}\nc"), "a\n  b\nc");
  EXPECT_EQ(render("a\n  {%- if t -%}\n  b\n  {%- endif %}\nc"), "abc");
  EXPECT_EQ(render("a  {%+ if t %}\nb{% endif +%}\nc"), "a  b\nc");
  EXPECT_EQ(render("  {{ i }}  \n x"), "  7  \n x");
  EXPECT_EQ(render("a {{- i -}} \n b"), "a7b");
  EXPECT_EQ(render("{# c #}\nb\n  {#- d -#}  e"), "be");
  EXPECT_EQ(render("{% raw %} {{ x }} {% endraw %}\ny"), " {{ x }} y");
  EXPECT_EQ(render("x{%- raw -%} {% if %} {%- endraw -%} y"), "x{% if %}y");
}

TEST(JinjaLanguage, Loops) {
  EXPECT_EQ(render("{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ "
                   "loop.length }}{{ loop.revindex }};{% endfor %}"),
            "10TrueFalse33;21FalseFalse32;32FalseTrue31;");
  EXPECT_EQ(render("{% for x in l if x > 1 %}{{ x }}{% else %}none{% endfor %}"), "32");
  EXPECT_EQ(render("{% for x in [] %}a{% else %}none{% endfor %}"), "none");
  EXPECT_EQ(render("{% for k, v in dd.a.items() %}{{ k }}{{ v|length }}{% endfor %}"), "x3");
  EXPECT_EQ(render("{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% break %}{% endfor %}"),
            "3");
  EXPECT_EQ(render("{% for x in [1, [2, [3]]] recursive %}{% if x is sequence %}({{ loop(x) }}){% else %}{{ "
                   "x }}{% endif %}{% endfor %}"),
            "1(2(3))");
  EXPECT_EQ(
      render(
          "{% for x in l %}{{ loop.previtem }}-{{ loop.nextitem }}{{ loop.cycle('a', 'b') }} {% endfor %}"),
      "-1a 3-2b 1-a ");
}

// "else" belongs to a loop of which no turn came to its end.
TEST(JinjaLanguage, ElseOfALoopThatWasCutShort) {
  EXPECT_EQ(render("{% for x in l %}{{ x }}{% continue %}{% else %}none{% endfor %}"), "312none");
  EXPECT_EQ(render("{% for x in l %}{{ x }}{% break %}{% else %}none{% endfor %}"), "3none");
  EXPECT_EQ(render("{% for x in l %}{{ x }}{% if x == 1 %}{% break %}{% endif %}{% else %}none{% endfor %}"),
            "31");
}

TEST(JinjaLanguage, TheFilterOfALoopSeesTheTurnsBefore) {
  EXPECT_EQ(render("{% set ns = namespace(n=0) %}{% for x in l if ns.n < 2 %}{% set ns.n = ns.n + 1 %}{{ x "
                   "}}{% endfor %}"),
            "31");
  EXPECT_EQ(render("{% for x in l if x > 1 %}{{ loop.index }}/{{ loop.length }} {% endfor %}"), "1/2 2/2 ");
}

TEST(JinjaLanguage, Scopes) {
  EXPECT_EQ(render("{% set x = 0 %}{% for y in l %}{% set x = y %}{% endfor %}{{ x }}"), "0");
  EXPECT_EQ(
      render("{% set ns = namespace(x=0) %}{% for y in l %}{% set ns.x = ns.x + y %}{% endfor %}{{ ns.x }}"),
      "6");
  EXPECT_EQ(render("{% if t %}{% set x = 1 %}{% endif %}{{ x }}"), "1");
  EXPECT_EQ(render("{% set a, b = 1, 2 %}{{ a }}{{ b }}"), "12");
  EXPECT_EQ(render("{% set x | upper %}ab{% endset %}{{ x }}"), "AB");
  EXPECT_EQ(render("{% with x = 1 %}{{ x }}{% endwith %}{{ x }}"), "1");
  EXPECT_EQ(render("{% filter upper %}ab{% endfilter %}"), "AB");
  EXPECT_EQ(render("{% generation %}{{ s }}{% endgeneration %}"), "Hello, World");
}

// A name that does not exist fails where it runs if a condition stands around it, and otherwise the whole template.
TEST(JinjaLanguage, UnknownFiltersAndTests) {
  EXPECT_EQ(render("{% if f %}{{ s|nosuch }}{{ s is nosuch }}{% endif %}ok"), "ok");
  EXPECT_EQ(render("{{ s|nosuch if f else 'ok' }}{{ 'ok' if t else s is nosuch }}"), "okok");
  for (const char* source :
       {"{% for x in [] %}{{ x|nosuch }}{% endfor %}", "{% macro m() %}{{ s|nosuch }}{% endmacro %}",
        "{% if f %}{% for x in l %}{{ x|nosuch }}{% endfor %}{% endif %}",
        "{% if f %}{% set x %}{{ s|nosuch }}{% endset %}{% endif %}", "{{ t or s|nosuch }}"}) {
    EXPECT_NE(render(source).find("No filter named 'nosuch'."), std::string::npos) << source;
  }
  EXPECT_NE(render("{% macro m() %}{{ s is nosuch }}{% endmacro %}").find("No test named 'nosuch'."),
            std::string::npos);
}

TEST(JinjaLanguage, Macros) {
  EXPECT_EQ(render("{% macro m(a, b=2) %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) }}{{ m(1, b=3) }}{{ m() }}"),
            "[12][13][2]");
  EXPECT_EQ(render("{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, x=2) }}"), "(1,){'x': 2}");
  EXPECT_EQ(render("{% macro m() %}<{{ caller(1) }}>{% endmacro %}{% call(x) m() %}{{ x }}{% endcall %}"),
            "<1>");
  EXPECT_EQ(render("{% macro f(n) %}{% if n %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}"),
            "321");
  EXPECT_EQ(render("{% macro m() %}{{ v }}{% endmacro %}{% set v = 1 %}{{ m() }}{% set v = 2 %}{{ m() }}"),
            "12");
  EXPECT_EQ(render("{% set g = l|map('string') %}{{ g|list }}{{ g|list }}"), "['3', '1', '2'][]");
}

// Where Jinja2 fails, with the place.
TEST(JinjaLanguage, ErrorsNameLineAndColumn) {
  const std::pair<const char*, const char*> kRows[] = {
      {"a\n{{ 1 / 0 }}", "line 2, column 6: division by zero"},
      {"{{ missing.x }}", "line 1, column 11: 'missing' is undefined"},
      {"{{ s + l }}", "line 1, column 6: can only concatenate str (not \"list\") to str"},
      {"é{{ s|nosuch }}", "line 1, column 7: No filter named 'nosuch'."},
      {"{{ s is nosuch }}", "line 1, column 6: No test named 'nosuch'."},
      {"{{ l.append(1) }}", "access to attribute 'append' of 'list' object is unsafe."},
      {"{{ dd.update({}) }}", "access to attribute 'update' of 'dict' object is unsafe."},
      {"{{ s.__class__() }}", "access to attribute '__class__' of 'str' object is unsafe."},
      {"{% for x in none %}{% endfor %}", "line 1, column 4: 'NoneType' object is not iterable"},
      {"{% set s.x = 1 %}", "cannot assign attribute on non-namespace object"},
      {"x\n\n  {% if t %}", "line 3, column 13: unexpected end of template, expected 'endif'"},
      {"{% nosuch %}", "line 1, column 4: unknown tag 'nosuch'"},
      {"{{ 'a }}", "line 1, column 4: string literal has no end"},
      {"{{ (1] }}", "line 1, column 6: unexpected ']', expected ')'"},
      {"{% break %}", "line 1, column 4: 'break' outside of a loop"},
      {"{% include 'x' %}", "line 1, column 4: 'include' is not available"},
      {"{# x", "line 1, column 1: Missing end of comment tag"},
      {"{{ 9223372036854775807 + 1 }}", "integer out of range"},
      {"{{ l|map('string')|tojson }}", "Object of type generator is not JSON serializable"},
      {"{{ '{:d}'.format('x') }}", "Unknown format code 'd'"},
      {"{% for loop in l %}{% endfor %}", "can't assign to special loop variable"},
      {"{% for x in l %}{% set loop = 1 %}{% endfor %}", "can't assign to special loop variable"},
      {"{% macro m(a, a) %}{% endmacro %}", "duplicate argument 'a'"},
      {"{% macro m(caller) %}{{ caller() }}{% endmacro %}", "the special argument 'caller' must be omitted"},
      {"{{ dict(a=1, a=2) }}", "keyword argument repeated: a"},
      {"{% filter length %}x{% endfilter %}", "expected a string from the block, int found"},
      {"{{ dict(missing) }}", "'missing' is undefined"},
  };
  for (const auto& [source, message] : kRows) {
    const std::string text = render(source);
    EXPECT_TRUE(text.starts_with("error: chat template, line ")) << source << " -> " << text;
    EXPECT_NE(text.find(message), std::string::npos) << source << " -> " << text;
  }
}

TEST(JinjaLanguage, ARefusalIsTheTemplatesOwnWords) {
  Result<ChatTemplate> parsed =
      ChatTemplate::parse("{% if true %}{{ raise_exception('Only ' ~ 'users') }}{% endif %}");
  ASSERT_TRUE(parsed.ok());
  Result<std::string> text = parsed->render(ordered_json::object(), RenderLimits(), {});
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(text.status().message(), "Only users");
  EXPECT_EQ(text.status().reason(), "template_refused");
  EXPECT_EQ(text.status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace restkv

#!/usr/bin/env python3
"""Compares the template engine with Jinja2, set up as transformers does, on handwritten and random templates.

Usage: compare_jinja2.py PATH_OF_render_lines [--random N] [--seed S]
Exit code 77 where jinja2 is absent. Where Jinja2 fails, the engine must fail; otherwise the bytes must be equal.
"""
import argparse
import datetime
import json
import os
import random
import subprocess
import sys
import warnings

try:
    import jinja2
    import jinja2.ext
    import jinja2.sandbox
except ImportError:
    print("skipped: no jinja2")
    sys.exit(77)

os.environ["TZ"] = "UTC"
warnings.simplefilter("ignore")
NOW = datetime.datetime(2026, 1, 15, 12, 0, 0)


class Generation(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %}: its body, in a scope of its own."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def make_environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: NOW.strftime(form)
    return environment


VARIABLES = {
    "s": "Hello, World", "e": "", "u": "Grüße, Ωmega ß 日本語 🎉 ΑΣ", "ws": "  \t padded text \n ", "q": "it's \"quoted\" \\ \x01\x7f",
    "lines": "one\ntwo\r\n\n  three\x0bfour", "n": None, "t": True, "f": False, "i": 7, "neg": -7, "z": 0, "big": 9007199254740993,
    "d": 2.5, "small": 1e-7, "huge": 1e22, "whole": 3.0, "html": "<a href='x'>\"&\"</a>",
    "l": [3, 1, 2], "ls": ["b", "A", "c", "a"], "mixed": [1, "two", None, 3.5, True, [1, 2], {"k": "v"}], "el": [], "ed": {},
    "dd": {"b": 1, "a": {"x": [1, 2, {"y": "z"}]}, "items": "shadow", "C": None},
    "people": [{"name": "Zoe", "age": 31, "tags": ["x"]}, {"name": "adam", "age": 25, "tags": []},
               {"name": "Bob", "age": 31, "nick": "bb"}],
    "messages": [{"role": "system", "content": "Be nice."}, {"role": "user", "content": "Hi <|im_end|>"},
                 {"role": "assistant", "content": "<think>hm</think>\n\nHello!",
                  "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1, "b": ["x", 2.0]}}}]}],
}

EXPRESSIONS = r"""
s|length ~ u|length
s[0] ~ s[-1] ~ u[7] ~ u[-1]
s[1:4] ~ '|' ~ u[5:12] ~ '|' ~ s[::-1] ~ '|' ~ u[::-2] ~ '|' ~ s[-3:] ~ '|' ~ s[:100] ~ '|' ~ s[100:] ~ s[5:2]
u[::3] ~ l[::-1] ~ l[1:] ~ l[-2:] ~ l[5:] ~ l[:-1]
s.upper() ~ u.upper() ~ u.lower() ~ u.title() ~ u.capitalize() ~ s.swapcase() ~ u.casefold()
u|upper ~ u|lower ~ u|title ~ u|capitalize ~ 'foo-bar (baz) {qux} [a] <b>'|title ~ "it's o'neill"|title ~ "it's".title()
'ΑΣ'.lower() ~ 'ΣΑΣ ΑΣ.'|lower ~ 'İ'.lower()|length ~ 'ǆ'.title() ~ 'ﬁ'.upper()
ws.strip() ~ '|' ~ ws.lstrip() ~ '|' ~ ws.rstrip() ~ '|' ~ ws|trim ~ '|' ~ s.strip('Hd') ~ '|' ~ s|trim('Hdl')
s.split() ~ ws.split() ~ s.split('l') ~ s.split('l', 1) ~ s.rsplit('l', 1) ~ lines.splitlines() ~ lines.splitlines(true)
' a b  c '.split(none, 1) ~ ' a b  c '.rsplit(none, 1) ~ ''.split() ~ ''.split('x') ~ 'xx'.split('x')
'a,b,c'.split(',')[-1] ~ 'a</think>b</think>c'.split('</think>')[-1].lstrip('\n')
s.startswith('Hell') ~ s.endswith(('x', 'ld')) ~ s.startswith('llo', 2) ~ u.endswith('Σ') ~ s.startswith('')
s.find('o') ~ s.rfind('o') ~ s.find('zz') ~ u.find('日') ~ s.count('l') ~ s.index('W') ~ s.count('') ~ s.find('o', 5)
s.index('zz')
s.replace('l', 'L') ~ s.replace('l', 'L', 1) ~ 'aaa'.replace('', '-') ~ s|replace('o', '0') ~ s|replace('o', '0', 1) ~ u.replace('ß', 'ss')
', '.join(ls) ~ ls|join ~ ls|join('-') ~ l|join(',') ~ people|join(',', attribute='name') ~ mixed|join('|')
', '.join(l)
s.center(20) ~ '|' ~ s|center(21) ~ '|' ~ s.ljust(15, '.') ~ s.rjust(15) ~ '-42'.zfill(6) ~ '7'.zfill(3) ~ 'ab'.center(5, '*') ~ 'abc'.center(6, '*')
'x'.isalpha() ~ '1'.isdigit() ~ '²'.isdigit() ~ '½'.isnumeric() ~ ' '.isspace() ~ 'aB'.islower() ~ 'AB'.isupper() ~ 'A1'.isalnum() ~ ''.isalpha() ~ 'Ab Cd'.istitle()
'abc'.isascii() ~ 'é'.isascii() ~ 'a_1'.isidentifier() ~ '1a'.isidentifier() ~ 'é'.isprintable() ~ '\x01'.isprintable()
s.partition(', ') ~ s.rpartition('o') ~ s.partition('zz') ~ s.removeprefix('Hello') ~ s.removesuffix('World') ~ s.removeprefix('x')
'a\tb'.expandtabs(4) ~ 'abc\tde'.expandtabs()
'{} {} {0}'.format(1, 2)
'{} {}'.format(1, 'x') ~ '{1}{0}'.format('a', 'b') ~ '{x} {y[0]} {z[k]}'.format(x=1, y=[5], z={'k': 'v'}) ~ '{{}}'.format()
'{:>6}|{:<6}|{:^6}|{:*^7}'.format('a', 'b', 'c', 'd') ~ '{:05d} {:+d} {:,} {:x} {:#o} {:b}'.format(42, 7, 1234567, 255, 8, 5)
'{:.2f} {:8.3f} {:e} {:g} {:%} {!r} {!s}'.format(3.14159, 2.5, 12345.678, 0.0001, 0.25, 'q', 'z')
'%s and %d' % ('a', 3) ~ '%5.1f|%-5s|%05d|%x|%%' % (2.25, 'ab', 42, 255) ~ '%(a)s %(b)s' % {'a': 1, 'b': 'x'} ~ '%r' % 'q'
'%s' % none ~ '%s' % [1, 2] ~ '%s %s' % (1,)
'%.3s|%c|%c|%+d|% d|%e|%g' % ('abcdef', 65, 'z', 5, 5, 1234.5, 1e-10)
'%s, %s!'|format('Hi', 'you') ~ '%(x)s'|format(x=1) ~ '%d' % 3.7 ~ '%i' % true
1 + 2 * 3 - 4 / 2 ~ ' ' ~ 7 // 2 ~ ' ' ~ -7 // 2 ~ ' ' ~ 7 % 3 ~ ' ' ~ -7 % 3 ~ ' ' ~ 7 % -3 ~ ' ' ~ 2 ** 10 ~ ' ' ~ 2 ** -1 ~ ' ' ~ 7.5 // 2 ~ ' ' ~ -7.5 % 2
-2 ** 2 ~ ' ' ~ (-2) ** 2 ~ ' ' ~ 2 ** 3 ** 2 ~ ' ' ~ -i|abs ~ ' ' ~ (neg|abs) ~ +i ~ - -i
1 / 0
1 // 0
1 % 0
10 / 4 ~ ' ' ~ 10 / 5 ~ ' ' ~ 1e3 ~ ' ' ~ 1.5e-5 ~ ' ' ~ 1e16 ~ ' ' ~ 123456789012345678 ~ ' ' ~ 0.1 + 0.2 ~ ' ' ~ 1_000 ~ ' ' ~ 0xff ~ ' ' ~ 0b101 ~ ' ' ~ 0o17
d ~ small ~ huge ~ whole ~ big ~ 1e15 ~ 1e17 ~ 0.0001 ~ 0.00001 ~ 100.0 ~ 5e-324 ~ 1.7976931348623157e308
'a' * 3 ~ [1] * 2 ~ (1, 2) * 2 ~ 'ab' + 'cd' ~ [1] + [2] ~ (1,) + (2,) ~ 3 * 'x' ~ 'x' * -1
'a' + 1
1 + 'a'
[1] + (2,)
none + 'a'
'a' + n
s + l
'x' - 1
t + t ~ t * 3 ~ (t|int) ~ (f ~ n)
t and f ~ 'x'
(t and 'yes') ~ (f or 'no') ~ (n or e or 0) ~ ('' and 1) ~ (not n) ~ (not s)
not t ~ not f == true
1 < 2 < 3 ~ (1 < 3 < 2) ~ (1 == 1.0) ~ (t == 1) ~ ('1' == 1) ~ (n == f) ~ ('a' < 'b') ~ ([1, 2] < [1, 3]) ~ ((1, 'a') == (1, 'a'))
1 < 'a'
n < 1
'ell' in s ~ ('x' not in s) ~ (1 in l) ~ ('b' in dd) ~ (9 in l) ~ ('a' in ['a']) ~ (n in mixed) ~ ('k' in {'k': 1})
1 in 'abc'
1 in 5
'a' in n
'a' in undefinedvar
undefinedvar ~ '|' ~ (undefinedvar is defined) ~ (undefinedvar is undefined) ~ (undefinedvar == undefinedvar2) ~ (not undefinedvar) ~ undefinedvar|length
undefinedvar.x
undefinedvar['x']
undefinedvar + 1
undefinedvar()
undefinedvar[1:]
dd.missing ~ '|' ~ dd['missing'] ~ '|' ~ dd.b ~ dd['b'] ~ dd.a.x[2].y ~ dd.get('b') ~ dd.get('zz') ~ dd.get('zz', 5)
dd.missing.more
dd.items() ~ dd['items'] ~ dd.keys() ~ dd.values()|list ~ dd.items()|list
dd.items|string|length > 0
n.x ~ i.x ~ l.x ~ s.x
n[0] ~ n['x'] ~ i[0] ~ l[10] ~ s[100] ~ l['x'] ~ dd[5]
n[0].x
n[1:]
l.0 ~ l.1 ~ people.0.name ~ people[0].tags.0
l.append(4)
dd.update({'x': 1})
l.pop()
dd.pop('b')
s.__class__
s.__class__.__name__
l.__len__()
s|attr('upper') is callable ~ (people[0]|attr('name')) ~ (i|attr('zz'))
l.index(2) ~ l.count(1) ~ (1, 2, 1).count(1) ~ l.copy() ~ dd.copy().b
l.index(99)
'a' if t else 'b'
('a' if f) ~ '|' ~ ('a' if f else 'b' if f else 'c') ~ ('x' if n is none else 'y')
('a' if f).x
[1, 2, 3][0] ~ {'a': 1}['a'] ~ (1, 2)[1] ~ {'a': {'b': 2}}.a.b ~ [] ~ {} ~ () ~ (1,) ~ [1, 'a', none, true, 1.0] ~ {'a': 1, 2: 'b', none: 1}
{1: 'a', true: 'b', 1.0: 'c'}
{[1]: 2}
q ~ [q] ~ ['\n\t\r\\', "'", '"', '\'"', '\x00', 'é', '\u200b', '🎉', '\xa0'] ~ u
mixed ~ dd ~ [n, t] ~ ['a\'b']
mixed|tojson ~ dd|tojson ~ u|tojson ~ q|tojson ~ d|tojson ~ small|tojson ~ huge|tojson ~ n|tojson ~ t|tojson ~ (1, 2)|tojson
dd|tojson(indent=2)
dd|tojson(indent=4, sort_keys=true)
mixed|tojson(separators=(',', ':')) ~ u|tojson(ensure_ascii=true) ~ html|tojson ~ el|tojson(indent=2) ~ ed|tojson(indent=2) ~ [[], {}]|tojson(indent=1)
{1: 2, none: 3, true: 4, 1.5: 5}|tojson ~ '\x7f\u2028'|tojson ~ l|tojson(indent='--') ~ l|tojson(indent=0)
l|map('string')|tojson
range(3)|tojson
undefinedvar|tojson
dd.items()|tojson
l|sort ~ ls|sort ~ ls|sort(case_sensitive=true) ~ ls|sort(reverse=true) ~ l|sort(true)
people|sort(attribute='age')|map(attribute='name')|list
people|sort(attribute='age,name')|map(attribute='name')|join(' ') ~ people|sort(attribute='name', case_sensitive=true)|map(attribute='name')|join(' ')
mixed|sort
dd|dictsort
{'b': 2, 'A': 1, 'c': 0}|dictsort ~ {'b': 2, 'A': 1}|dictsort(true) ~ {'b': 2, 'a': 3}|dictsort(by='value') ~ {'b': 2, 'a': 3}|dictsort(false, 'key', true)
{'a': 1, 'b': 2}|items|list ~ {'a': 1}|items|first
s|items|list
undefinedvar|items|list
l|first ~ l|last ~ s|first ~ s|last ~ el|first ~ '|' ~ el|last ~ u|last ~ dd|first ~ dd|last
el|first|upper ~ el|first is defined
l|max ~ l|min ~ ls|max ~ ls|min ~ el|max ~ people|map(attribute='age')|max ~ people|max(attribute='age')
l|sum ~ people|sum(attribute='age') ~ [1.5, 2]|sum ~ [[1], [2]]|sum(start=[]) ~ el|sum
ls|sum
l|reverse|list ~ s|reverse ~ l|reverse|first ~ range(4)|reverse|list ~ u|reverse
ls|unique|list ~ [1, 1.0, true, 2]|unique|list ~ people|unique(attribute='age')|map(attribute='name')|list ~ ls|unique(true)|list
l|batch(2)|list ~ l|batch(2, 'x')|list ~ range(7)|slice(3)|list ~ range(7)|slice(3, 'f')|list ~ el|batch(3)|list
ls|map('upper')|list ~ ls|map('upper')|join ~ people|map(attribute='name')|list ~ people|map(attribute='nick', default='-')|list ~ people|map(attribute='tags.0')|list
ls|map('replace', 'a', 'z')|list ~ l|map('float')|list
ls|map|list
l|select('odd')|list ~ l|reject('odd')|list ~ mixed|select|list ~ mixed|reject|list ~ mixed|select('string')|list ~ l|select('gt', 1)|list ~ l|select('in', [1, 2])|list
people|selectattr('nick')|list|length ~ people|selectattr('age', 'equalto', 31)|map(attribute='name')|list ~ people|rejectattr('nick', 'defined')|map(attribute='name')|list ~ people|selectattr('name', 'in', ['Bob'])|list|length
messages|selectattr('role', '==', 'user')|list|length ~ messages|selectattr('role', 'eq', 'user')|first|string|length
people|groupby('age')|list|length
people|selectattr|list
l|select('nosuch')|list
l|nosuch
l is nosuch
l|length ~ dd|count ~ e|length ~ (range(5)|length) ~ undefinedvar|count
i|length
n|length
l|map('string')|length
s|default('x') ~ undefinedvar|default('x') ~ e|default('x') ~ e|default('x', true) ~ n|default('x') ~ n|d('x', true) ~ undefinedvar|d ~ dd.zz|default(5)
'42'|int ~ '4.7'|int ~ 'x'|int ~ 'x'|int(5) ~ '0x1f'|int(base=16) ~ 3.9|int ~ t|int ~ n|int ~ ' 12 '|int ~ '1_0'|int ~ l|int(9) ~ '-3.5'|int ~ '1e3'|int ~ '11'|int(0, 2)
'4.5'|float ~ 'x'|float ~ 3|float ~ ' 2 '|float ~ n|float(1.5)
undefinedvar|int
2.5|round ~ 3.5|round ~ 2.567|round(2) ~ 2.1|round(0, 'ceil') ~ 2.9|round(method='floor') ~ 7|round ~ -2.5|round ~ 1234|round(-2) ~ 2.675|round(2) ~ 1.005|round(2, 'floor')
neg|abs ~ -2.5|abs ~ t|abs
s|string ~ l|string ~ n|string ~ d|string ~ mixed|string|length
html|e ~ html|escape ~ html|safe ~ html|forceescape ~ html|safe|e ~ html|e|e
html|safe + '<x>' ~ '|' ~ ('<y>' + html|safe) ~ '|' ~ (html|safe ~ '<z>') ~ '|' ~ (html|safe)[0:3] ~ [html|safe] ~ (html|safe).upper()
('<b>'|safe + '<i>').replace('<', '(') ~ ('%s'|safe) % '<x>' ~ ('<a>'|safe).join(['<', '>']) ~ (html|safe is string) ~ (html|safe is escaped) ~ ('{}'|safe).format('<')
lines|indent ~ '|' ~ lines|indent(2, true) ~ '|' ~ lines|indent('> ', blank=true) ~ '|' ~ 'x'|indent ~ 'a\n'|indent(1, first=true) ~ '|' ~ ''|indent(2, true)
'a b c d e f'|truncate(8) ~ 'abcdefghijklmnop'|truncate(8, true) ~ 'abcdefghij klm'|truncate(5, false, '!', 0) ~ 'foo bar baz'|truncate(9)
'a b, c-d e_f'|wordcount ~ u|wordcount
'a b&c=d/é?'|urlencode ~ {'a b': 'c&d', 'x': 1}|urlencode ~ [('a', 'b')]|urlencode ~ 5|urlencode
{'class': 'a "b"', 'id': 5, 'x': none, 'y': undefinedvar, 'h': html|safe, 'z': [1, '<']}|xmlattr ~ {'a': 1}|xmlattr(false) ~ {'a': 1, 'b<': ''}|xmlattr(autospace=false) ~ {}|xmlattr ~ {'a b': none}|xmlattr
{'a b': 1}|xmlattr
{'a\x0b': 1}|xmlattr
{'a=': 1}|xmlattr
{'a/': 1}|xmlattr
{1: 1}|xmlattr
{1: none}|xmlattr
{'a\x1cb\u2028é': 1}|xmlattr ~ {'': 1}|xmlattr
l|xmlattr
s|xmlattr
n|xmlattr
undefinedvar|xmlattr
'<p>Hi <b>you</b>  &amp; <!-- no --> me</p>'|striptags ~ 1000|filesizeformat ~ 1500000|filesizeformat ~ 2048|filesizeformat(true) ~ 1|filesizeformat ~ 500|filesizeformat
s is string ~ i is string ~ dd is mapping ~ l is mapping ~ l is sequence ~ s is sequence ~ dd is sequence ~ i is sequence ~ l is iterable ~ i is iterable ~ s is iterable ~ n is iterable
i is number ~ d is number ~ t is number ~ s is number ~ i is integer ~ t is integer ~ d is float ~ i is float ~ t is boolean ~ i is boolean ~ t is true ~ f is false ~ i is true ~ n is none ~ n is not none ~ s is not string
range(3) is sequence ~ dd.items() is sequence ~ (l|map('string')) is sequence ~ (l|map('string')) is iterable ~ undefinedvar is iterable ~ undefinedvar is sequence ~ undefinedvar is mapping ~ undefinedvar is string ~ undefinedvar is none
i is odd ~ i is even ~ neg is odd ~ i is divisibleby 7 ~ i is divisibleby(2) ~ s is lower ~ 'abc' is lower ~ 'ABC' is upper ~ 'ß1' is lower ~ i is sameas 7 ~ n is sameas none ~ t is sameas true
i is eq 7 ~ i is equalto(8) ~ i is ne 7 ~ i is gt 3 ~ i is lt 3 ~ i is ge 7 ~ i is le 6 ~ i is in [7] ~ 'a' is in 'abc' ~ i is not in [1] ~ i is greaterthan(1) ~ s is callable ~ range is callable ~ s.upper is callable
'upper' is filter ~ 'nosuch' is filter ~ 'odd' is test ~ 'x' is test ~ html|safe is escaped ~ html is escaped
s is defined and i is defined ~ (s is defined or f) ~ (s is defined == true)
range(5)|list ~ range(2, 5)|list ~ range(5, 0, -2)|list ~ range(0)|list ~ range(3) ~ range(1, 9, 3) ~ range(3)[1] ~ range(3)[-1] ~ range(5)[1:3]|list ~ (2 in range(3))
range(100000)|length
range(100001)|length
range(1, 2, 0)
range('a')
dict(a=1, b='x') ~ dict({'c': 3}, d=4) ~ dict([('a', 1), ('b', 2)]) ~ dict() ~ dict(a=1).a ~ dict(**{'k': 1})
namespace(a=1).a ~ namespace({'b': 2}).b ~ namespace().x ~ namespace(a=[1]) ~ (namespace(a=0).a == 0)
strftime_now('%Y-%m-%d %H:%M:%S') ~ strftime_now('%d %b %Y') ~ strftime_now('%A, %B %d, %Y') ~ strftime_now('%-d/%-m') ~ strftime_now('%j %y %p %I %f%%') ~ strftime_now('plain é')
raise_exception('No way: ' ~ s)
joiner() ~ joiner('; ')() ~ cycler(1, 2).next() ~ cycler('a', 'b').current
'\n' ~ "\t" ~ '\\' ~ '\'' ~ "\"" ~ '\x41' ~ '\u00e9' ~ '\U0001F389' ~ '\101' ~ '\q' ~ '\0' ~ 'a' 'b' "c" ~ '\v\f\a\b'
'multi
line' ~ 'a\
b'
messages[0]['role'] ~ messages[-1].content ~ messages[1:][0].role ~ messages[0:1]|length ~ (messages|last).tool_calls[0].function.arguments|tojson
messages[2].tool_calls[0]['function']['arguments'].items()|list ~ messages|length - 1 ~ messages[messages|length - 1].role
messages[2].content.split('</think>')[-1].lstrip('\n') ~ ('</think>' in messages[2].content) ~ messages[2].content.split('</think>')[0].rstrip('\n').split('<think>')[-1]
loop
caller()
(1, 2) ~ ((1)) ~ ((1),) ~ () ~ [(), []]
1 if 1 else 2 if 0 else 3
l[0] + l[1] * l[2] ~ -l[0] ~ l[i % 3] ~ l[l[1]]
s.upper().lower().title() ~ s|upper|lower|title ~ (s|upper).lower() ~ s.split(', ')[1]|upper
s|upper() ~ s | upper ~ s|replace("l","L")|replace("o","0")
'a' ~ 1 + 2 ~ 'b'
1 ~ 2 * 3 ~ 4
'a' in 'abc' == true
not 'a' in 'abc'
2 in [1, 2] and 3 not in [1, 2]
'x' if 'a' in 'abc' and not f else 'y'
d.is_integer() ~ whole.is_integer()
[1, 2, 3,] ~ {'a': 1,} ~ dict(a=1,)
u|list ~ dd|list ~ e|list
n|list
5|list
n|join
'abc'|map('upper')|list ~ [['b', 1], ['a', 2]]|sort ~ [['b', 1], ['a', 2]]|map('first')|list ~ [['b', 1], ['a', 2]]|map(attribute=0)|list ~ [{'a': {'b': 1}}]|map(attribute='a.b')|list
[1, 2]|select('divisibleby', 2)|list ~ [{'x': none}, {}]|selectattr('x', 'none')|list ~ [{'x': none}, {}]|selectattr('x', 'defined')|list
(l|map('string')|list)[0] is string ~ l|map('abs')|sum
l|map(attribute='real')|list|length
'%s' % (1, 2)
'%d' % 'x'
'{:d}'.format('x')
'{'.format()
s.nosuch()
i()
s.upper(1)
s|upper(1)
s.split(1)
s.replace('a')
dict(1)
[1, 2
{'a': }
(1, 2]
s|
s.
1 +
'unterminated
{{ 1 }}
a b
s is
@
1.2.3
x = 1
""".strip("\n").split("\n")

TEMPLATES = [
    "", "\n", "\n\n", "text\n", "text\n\n", "a\r\nb\rc\n", "{{ 1 }}\n", "  {{ 1 }}  \n  x",
    "a\n  {% if t %}\n  b\n  {% endif %}\nc", "a\n  {%- if t %}\n  b\n  {%- endif %}\nc", "a\n  {% if t -%}\n  b\n  {% endif -%}\n  c",
    "a  {%+ if t %}  b  {%+ endif %}  c\n  {%+ if t %}x{% endif +%}\n y", "x {% if t %} y {% endif %} z", "  {% if t %}a{% endif %}\n  {{ 1 }}\n",
    "{# comment #}a{# c2 #}\nb\n  {# c3 #}\nc {#- c4 -#}  d {#+ c5 +#}\n e", "{#\nmulti\n#}\nx", "a{# unterminated",
    "{% raw %}{{ x }} {% if %}{% endraw %}b", "a\n{% raw %}\n  x {{ y }}\n{% endraw %}\nb", "a {%- raw -%}  x  {%- endraw -%}  b", "{% raw %}x",
    "\t{% set x = 1 %}\n\t{{ x }}", "{% set x = 1 %}{% set y = x + 1 %}{{ x }}{{ y }}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a, b = [1] %}{{ a }}",
    "{% set x %}block {{ s }}{% endset %}[{{ x }}]{{ x is string }}", "{% set x | upper | trim %} abc {% endset %}[{{ x }}]", "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{% set ns.b = [ns.a] %}{{ ns.a }}{{ ns.b }}{{ ns.c }}",
    "{% set x.y = 1 %}", "{% set d2 = {} %}{% set d2.y = 1 %}", "{% set ns = namespace(n=0) %}{% for x in l %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}",
    "{% set x = 0 %}{% for y in l %}{% set x = x + y %}{{ x }} {% endfor %}{{ x }}", "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.previtem }}|{{ loop.nextitem }};{% endfor %}",
    "{% for x in l %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{{ loop.cycle('a', 'b') }}{{ loop.changed(x > 1) }}{{ loop.depth }}{% endfor %}",
    "{% for x in el %}a{% else %}empty{% endfor %}", "{% for x in l if x > 1 %}{{ x }}{{ loop.index }}/{{ loop.length }} {% else %}none{% endfor %}", "{% for x in l if x > 9 %}{{ x }}{% else %}none{% endfor %}",
    "{% for k, v in dd.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k, v in dd|items %}{{ k }}{% endfor %}", "{% for k, v in dd|dictsort %}{{ k }}{% endfor %}", "{% for k in dd %}{{ k }}{% endfor %}", "{% for c in u %}{{ c }}.{% endfor %}",
    "{% for x in n %}{% endfor %}", "{% for x in 5 %}{% endfor %}", "{% for x in undefinedvar %}a{% else %}b{% endfor %}", "{% for a, b in l %}{% endfor %}", "{% for (a, b) in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}", "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% else %}never{% endfor %}", "{% break %}", "{% for x in [1, 2] %}{% for y in [1, 2] %}{% if y == 2 %}{% break %}{% endif %}{{ x }}{{ y }}{{ loop.index }} {% endfor %}{{ loop.index }}{% endfor %}",
    "{% for x in [[1, [2, 3]], [4]] recursive %}{% if x is sequence %}[{{ loop(x) }}]{% else %}{{ x }}{{ loop.depth }}{% endif %}{% endfor %}", "{% for x in l %}{{ loop(x) }}{% endfor %}",
    "{% for x in 1, 2, 3 %}{{ x }}{% endfor %}", "{% for x in l|sort %}{{ x }}{% endfor %}{{ x }}", "{% for x in [1, 2] %}{% set y = x %}{% endfor %}{{ y }}", "{% for x in [1, 2] %}{{ y }}{% set y = x %}{% endfor %}",
    "{% if n %}a{% elif z %}b{% elif s %}c{% else %}d{% endif %}", "{% if t %}{% set x = 5 %}{% endif %}{{ x }}", "{% if f %}{% set x = 5 %}{% endif %}{{ x }}|{{ s }}", "{% if t: %}x{% endif %}",
    "{% macro m(a, b=2, c='x') %}[{{ a }},{{ b }},{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c='z') }}{{ m() }}{{ m(b=1, a=2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(x=2) }}",
    "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}", "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}", "{% macro m(a) %}{{ caller() }}{{ a }}{% endmacro %}{% call m(5) %}body {{ s }}{% endcall %}", "{% macro m() %}{{ caller(1, 2) }}{% endmacro %}{% call(x, y=0) m() %}{{ x }}{{ y }}{% endcall %}",
    "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}", "{% macro fact(x) %}{% if x > 1 %}{{ x * fact(x - 1)|int }}{% else %}1{% endif %}{% endmacro %}{{ fact(5) }}", "{{ m() }}{% macro m() %}x{% endmacro %}", "{% macro m() %}{{ v }}{% endmacro %}{% set v = 1 %}{{ m() }}{% set v = 2 %}{{ m() }}",
    "{% macro m() %}{% set v = 9 %}{{ v }}{% endmacro %}{% set v = 1 %}{{ m() }}{{ v }}", "{% macro m() %}{{ x }}{% endmacro %}{% for x in l %}{{ m() }}{% endfor %}", "{% for x in l %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}", "{% macro m(x) %}{{ m.name }}{{ m.arguments }}{% endmacro %}{{ m(1) }}{{ m }}",
    "{% macro a() %}A{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}", "{% macro m(a, caller) %}{{ a }}{% endmacro %}{{ m(1) }}", "{% macro m(a=1, b) %}{% endmacro %}", "{% macro m() -%}  x  {%- endmacro %}[{{ m() }}]{{ m()|length }}{{ m() is string }}",
    "{% macro show(d) %}{% for k, v in d.items() %}{{ k }}:{% if v is mapping %}{{ show(v) }}{% else %}{{ v }}{% endif %};{% endfor %}{% endmacro %}{{ show({'a': 1, 'b': {'c': 2}}) }}",
    "{% filter upper %}abc {{ s }}{% endfilter %}", "{% filter replace('a', 'b')|upper %}aaa{% endfilter %}", "{% with x = 1, y = 2 %}{{ x }}{{ y }}{% endwith %}{{ x }}", "{% with %}{% set q2 = 1 %}{{ q2 }}{% endwith %}{{ q2 }}", "{% generation %}{{ s }}{% set zz = 1 %}{% endgeneration %}|{{ zz }}", "{% print s, 1 %}", "{% block b %}{{ s }}{% endblock %}", "{% block b %}x{% endblock b %}y",
    "{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}", "{% nosuch %}", "{% if %}{% endif %}", "{% if t %}", "{% endif %}", "{% for x in l %}{% endif %}", "{% set = 1 %}", "{% set 1 = 1 %}", "{% set none = 1 %}", "{{ }}", "{{ 1", "{{ 1 }", "{% if t", "{{ 'a }}", "{{ {'a': {'b': 1}}}}", "{{ {'a': '}}'} }}", "{{ '%}' }}{% if '}}' %}x{% endif %}", "}} %} #}", "{ { x } }", "{{{}}}", "{{-1}}", "{{- 1 -}} \n x", "{{+1}}",
    "a\n\n  {%- for x in l %}\n  {{ x }}\n  {%- endfor %}\n\nb", "{%- for m in messages %}\n{{- '<|' + m.role + '|>\\n' }}\n{{- m.content|trim + eos }}\n{%- endfor %}", "{%- for m in messages %}\n    {{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    "{% set g = l|map('string') %}{{ g|list }}{{ g|list }}{{ g is iterable }}", "{% set g = dd.items() %}{{ g|list|length }}{{ g|list|length }}{{ g|length }}", "{% set g = l|select %}{{ g|first }}{% for x in g %}{{ x }}{% endfor %}", "{% if l|map('string') %}truthy{% endif %}{% if range(0) %}a{% else %}b{% endif %}{% if {}.items() %}a{% else %}b{% endif %}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.next() }}", "{% set j = joiner('|') %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}", "{% set f2 = s.upper %}{{ f2() }}", "{% set messages = messages[1:] %}{{ messages|length }}{% for m in messages %}{{ m.role }}{% endfor %}",
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = message['content'] %}{% if loop.index0 == 0 %}{{ bos_token }}{% endif %}{{ content }}{% endfor %}", "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}{% else %}{% set system_message = '' %}{% endif %}{{ system_message }}",
    "{% if f %}{{ s|nosuch }}{% endif %}ok", "{% if f %}{% if s is nosuch %}{% endif %}{% endif %}ok", "{% if t %}{{ s|nosuch }}{% endif %}ok", "{% set x = [] %}{% set x = x + [1] %}{{ x }}", "{% for i in range(3) %}{{ i }}{% if not loop.last %}, {% endif %}{% endfor %}", "{{ 'a' }}\n{{ 'b' }}\n\n{% if t %}\n{{ 'c' }}\n{% endif %}\n",
    "{% set x = namespace(v=none) %}{% for m in messages if m.role == 'user' %}{% set x.v = m.content %}{% endfor %}{{ x.v }}", "{% for m in messages[::-1] %}{{ m.role }}{{ loop.index0 }}{% endfor %}", "{% for m in messages|reverse %}{{ m.role }}{% endfor %}", "{%- set ns = namespace(multi=true, last=messages|length - 1) %}{%- for m in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}{%- if ns.multi and m.role == 'user' %}{%- set ns.multi = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}{{ ns.last }}",
    "{% for x in l %}{{ x }}{% continue %}{% else %}none{% endfor %}", "{% for x in l %}{% break %}{% else %}none{% endfor %}", "{% set ns = namespace(n=0) %}{% for x in l if ns.n < 2 %}{% set ns.n = ns.n + 1 %}{{ x }}{% endfor %}", "{% for x in el %}{{ x|nosuch }}{% endfor %}", "{% macro m() %}{{ s is nosuch }}{% endmacro %}ok", "{{ s|nosuch if f else 'ok' }}", "{% if f %}{% set x | nosuch %}{% endset %}{% endif %}", "{% for loop in l %}{% endfor %}", "{% for x in l %}{% set loop = x %}{% endfor %}", "{% macro m(caller) %}{{ caller() }}{% endmacro %}", "{% macro m(a, a) %}{% endmacro %}", "{{ dict(a=1, a=2) }}", "{% filter length %}x{% endfilter %}", "{{ l|truncate(9) ~ undefinedvar|truncate }}", "{{ dict(undefinedvar) }}", "{{ cycler(1, x=2) }}", "{% block b scoped %}x{% endblock %}",
    "\ufeff{{ s }}", "{% set é = 1 %}{{ é }}", "{{ s }}{%\n  if t\n%}x{% endif\n%}", "{{\n s\n }}", "a {{- ' b ' -}} c", "a\u00a0{%- if t %}b{% endif -%}\u00a0c", "x{%- set y = 1 -%}   {{ y }}",
]


def run_oracle(environment, template, variables):
    try:
        return {"text": environment.from_string(template).render(**json.loads(json.dumps(variables)))}
    except RecursionError:
        raise
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


class Generator:
    """Random templates from the same names; errors are welcome on both sides."""

    FILTERS = ["upper", "lower", "trim", "length", "string", "list", "first", "last", "sort", "reverse", "join", "join('-')", "int", "float",
               "tojson", "default('d')", "default('d', true)", "title", "capitalize", "abs", "round", "unique|list", "map('string')|list",
               "select|list", "reject|list", "map(attribute='name')|list", "selectattr('name')|list", "dictsort", "items|list", "sum", "max", "min",
               "replace('l', 'L')", "indent(2)", "tojson(indent=2)", "batch(2)|list", "wordcount", "e", "safe", "count", "urlencode", "reverse|list", "xmlattr"]
    TESTS = ["defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number", "integer", "float", "boolean", "true", "false",
             "odd", "even", "lower", "upper", "callable", "in [1, 'a']", "eq(1)", "divisibleby(2)", "sameas(none)"]
    METHODS = ["upper()", "lower()", "strip()", "split()", "split('l')", "split(',', 1)", "title()", "items()|list", "keys()|list", "get('a')", "get('zz', 1)",
               "startswith('H')", "endswith('d')", "replace('o', '0')", "lstrip('H')", "rstrip('d')", "count('l')", "find('o')", "splitlines()", "join(ls)",
               "isdigit()", "name", "a", "x", "role", "values()|list", "index('a')", "center(12)", "zfill(5)", "partition('l')"]
    BINARY = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or"]

    def __init__(self, seed):
        self.random = random.Random(seed)

    def atom(self):
        pick = self.random.choice
        kind = self.random.random()
        if kind < 0.65:
            return pick([k for k in VARIABLES if k != "huge"] + ["undefinedvar"])
        if kind < 0.8:
            return pick(["1", "0", "-1", "2.5", "3", "'a'", "''", "'Hello'", "none", "true", "false", "'é'", "'x y'", "10"])
        if kind < 0.9:
            return pick(["[1, 2]", "['a', none]", "{}", "{'a': 1, 'b': [2]}", "(1, 'b')", "[]", "range(4)", "dict(a=1)"])
        return pick(["messages[0]", "people[1]", "dd.a", "mixed[6]"])

    def expression(self, depth):
        if depth == 0:
            return self.atom()
        inner = self.expression(depth - 1)
        kind = self.random.random()
        pick = self.random.choice
        if kind < 0.22:
            return f"({inner})|{pick(self.FILTERS)}"
        if kind < 0.34:
            return f"({inner}).{pick(self.METHODS)}"
        if kind < 0.42:
            return f"({inner}) is {pick(['', 'not '])}{pick(self.TESTS)}"
        if kind < 0.54:
            index = pick(["0", "-1", "1:", ":-1", "::-1", "'a'", "'name'", "1:3", "::2", "5", "-2:"])
            return f"({inner})[{index}]"
        if kind < 0.84:
            return f"({inner}) {pick(self.BINARY)} ({self.expression(depth - 1)})"
        if kind < 0.9:
            return f"({inner}) if ({self.expression(depth - 1)}) else ({self.atom()})"
        if kind < 0.95:
            return f"[{inner}, {self.atom()}]"
        return f"not ({inner})"

    def template(self, depth=2):
        pick = self.random.choice
        parts = []
        for _ in range(self.random.randint(1, 4)):
            kind = self.random.random()
            left, right = pick(["{%", "{%-", "{%+", "{%"]), pick(["%}", "-%}", "%}", "+%}"])
            space = pick(["", " ", "\n", "\n  ", "  ", "\n\n", "x", " y \n"])
            parts.append(space)
            if kind < 0.5 or depth == 0:
                parts.append(pick(["{{ ", "{{- "]) + self.expression(self.random.randint(0, 2)) + pick([" }}", " -}}"]))
            elif kind < 0.65:
                parts.append(f"{left} if {self.expression(1)} {right}{self.template(depth - 1)}{left} else {right}{self.template(depth - 1)}{left} endif {right}")
            elif kind < 0.8:
                parts.append(f"{left} for v in {self.expression(1)} {right}{{{{ v }}}}{self.template(depth - 1)}{left} endfor {right}")
            elif kind < 0.9:
                parts.append(f"{left} set v = {self.expression(2)} {right}{{{{ v }}}}")
            else:
                parts.append(pick(["{# c #}", "{#- c #}\n", "{# c -#} \n", "{% raw %} {{ }} {% endraw %}\n"]))
        return "".join(parts)


def is_about_addresses(text):
    return " object at 0x" in text or "built-in method" in text or "<bound method" in text or "<function" in text or "<class" in text


def is_folded_constant(answer):
    """Jinja2 computes slices of constants ahead, by another rule than at run time: (1)[1:] is undefined, i[1:] an error."""
    error = answer.get("error", "")
    return "not subscriptable" in error or "unhashable type: 'slice'" in error


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("render_lines")
    parser.add_argument("--random", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    environment = make_environment()
    templates = ["{{ " + e + " }}" for e in EXPRESSIONS] + TEMPLATES
    generator = Generator(options.seed)
    templates += ["{{ " + generator.expression(generator.random.randint(1, 3)) + " }}" for _ in range(options.random // 2)]
    templates += [generator.template() for _ in range(options.random - options.random // 2)]
    lines = "".join(json.dumps({"template": t, "variables": VARIABLES}) + "\n" for t in templates)
    output = subprocess.run([options.render_lines], input=lines.encode(), stdout=subprocess.PIPE, check=True).stdout
    answers = [json.loads(line) for line in output.decode().split("\n") if line]
    assert len(answers) == len(templates), f"{len(answers)} answers to {len(templates)} templates"
    compared = rendered = wrong = 0
    for template, answer in zip(templates, answers):
        expected = run_oracle(environment, template, VARIABLES)
        if "text" in expected and (is_about_addresses(expected["text"]) or is_folded_constant(answer)):
            continue
        compared += 1
        rendered += "text" in expected
        if ("text" in expected) != ("text" in answer) or expected.get("text") != answer.get("text"):
            wrong += 1
            if wrong <= 60:
                print(f"DIFFERS {template!r}\n   jinja2: {expected!r}\n   engine: {answer!r}")
    print(f"compared {compared} templates ({rendered} render), {wrong} differ")
    return 0 if wrong == 0 and rendered > 100 else 1


if __name__ == "__main__":
    sys.exit(main())

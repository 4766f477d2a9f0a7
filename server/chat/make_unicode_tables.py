#!/usr/bin/env python3
"""Writes unicode_tables.cpp: the character classes and case mappings of Python's str, as sorted ranges.

Usage: python3 server/chat/make_unicode_tables.py > server/chat/unicode_tables.cpp
"""
import sys
import unicodedata

LAST = 0x110000


def ranges(predicate):
    found, start = [], None
    for code in range(LAST + 1):
        inside = code < LAST and predicate(code)
        if inside and start is None:
            start = code
        elif not inside and start is not None:
            found.append((start, code - 1))
            start = None
    return found


def shifts(mapping):
    """Runs (first, last, step, delta) of single-character mappings with equal delta and a step of 1 or 2."""
    runs = []
    for code in range(LAST):
        if 0xD800 <= code < 0xE000:
            continue
        to = mapping(chr(code))
        if len(to) != 1 or ord(to) == code:
            continue
        delta = ord(to) - code
        if runs:
            first, last, step, old = runs[-1]
            gap = code - last
            if old == delta and gap in (1, 2) and step in (0, gap):
                runs[-1] = (first, code, gap, old)
                continue
        runs.append((code, code, 0, delta))
    return [(a, b, s or 1, d) for a, b, s, d in runs]


def longer(mapping):
    return [(c, mapping(chr(c))) for c in range(LAST) if not 0xD800 <= c < 0xE000 and len(mapping(chr(c))) > 1]


def emit_rows(rows):
    line = " "
    for row in rows:
        item = " {" + ", ".join(row) + "},"
        if len(line) + len(item) > 110:
            print(line)
            line = " "
        line += item
    print(line)


def emit_ranges(name, predicate):
    rows = ranges(predicate)
    print(f"const CodeRange {name}[] = {{")
    emit_rows([(hex(a), hex(b)) for a, b in rows])
    print("};")
    print(f"const size_t {name}Count = {len(rows)};\n")


def emit_case(name, mapping):
    rows = shifts(mapping)
    print(f"const CaseRun {name}[] = {{")
    emit_rows([(hex(a), hex(b), str(s), str(d)) for a, b, s, d in rows])
    print("};")
    print(f"const size_t {name}Count = {len(rows)};\n")
    rows = longer(mapping)
    print(f"const LongCase {name}Long[] = {{")
    emit_rows([(hex(c), '"' + "".join(f"\\x{b:02x}" for b in to.encode()) + '"') for c, to in rows])
    print("};")
    print(f"const size_t {name}LongCount = {len(rows)};\n")


print("// Character classes and case mappings as Python's str has them, Unicode " + unicodedata.unidata_version + ".")
print("// Written by make_unicode_tables.py; do not edit. Ranges are sorted and inclusive.\n// clang-format off")
print('#include "server/chat/unicode_tables.h"\n\nnamespace restkv::chat {\n')
emit_ranges("kAlpha", lambda c: chr(c).isalpha())
emit_ranges("kDecimal", lambda c: chr(c).isdecimal())
emit_ranges("kDigit", lambda c: chr(c).isdigit() and not chr(c).isdecimal())
emit_ranges("kNumeric", lambda c: chr(c).isnumeric() and not chr(c).isdigit())
emit_ranges("kSpace", lambda c: chr(c).isspace())
emit_ranges("kPrintable", lambda c: chr(c).isprintable())
emit_ranges("kIdentifierMark", lambda c: ("a" + chr(c)).isidentifier() and not chr(c).isidentifier())
emit_case("kToLower", str.lower)
emit_case("kToUpper", str.upper)
emit_case("kToTitle", str.title)
emit_case("kToFold", str.casefold)
print("}  // namespace restkv::chat")
sys.stdout.flush()

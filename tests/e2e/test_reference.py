"""docs/reference is what the program's tables say (tools/make_reference.py)."""

import sys

import pytest
from conftest import BINARY, ROOT

sys.path.insert(0, str(ROOT / "tools"))
import make_reference  # noqa: E402


def test_reference_pages_are_current(server):
    made = make_reference.pages(str(BINARY), server.url)
    assert {"flags.md", "yaml.md", "metrics.md", "http.md", "grpc.md"} == set(made)
    written = {path.name: path.read_text(encoding="utf-8") for path in make_reference.FOLDER.glob("*.md")}
    stale = sorted(name for name, text in made.items() if written.get(name) != text)
    if stale:
        pytest.fail(f"{', '.join(stale)} in docs/reference: run tools/make_reference.py BINARY MODEL")
    assert set(written) == set(made)


def test_pages_of_openapi():
    page = make_reference.http_page({"paths": {"/v1/x": {"post": {"summary": "Does x"}, "parameters": []}}, "components": {"schemas": {
        "X": {"properties": {"a|b": {"type": "integer", "minimum": 1, "maximum": 4, "description": "How many"},
                             "d": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                             "c": {"anyOf": [{"type": "string"}, {"enum": ["p", "q"]}]}}}}}})
    assert "| `POST /v1/x` | Does x |" in page
    assert "| `a|b` | integer, 1 to 4 |  | How many |" in page and "| `c` | string or `p`, `q` |" in page
    assert "| `d` | number, above 0 to 1 |" in page


def test_page_of_protos():
    page = make_reference.grpc_page()
    assert "| `Generate` | GenerateRequest | stream GenerateResponse |" in page and "| `ModelStreamInfer` |" in page
    assert "### CacheTrace.Head" in page and "| `limit` | 4 | int64 |" in page

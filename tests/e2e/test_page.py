"""The page at `/`: it is public, loads nothing from elsewhere, and speaks to routes that are there."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest


def test_page_is_html_that_may_load_nothing(server):
    status, headers, body = server.request("GET", "/")
    assert status == 200
    headers = {name.lower(): value for name, value in headers.items()}
    assert headers["content-type"] == "text/html; charset=utf-8"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    text = body.decode()
    assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    assert not re.search(r"""(?:src|href)\s*=|https?://|innerHTML""", text)


def test_page_needs_no_key_and_its_routes_do(start_server, stories_model, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("sk-of-the-page\n")
    keyed = start_server(stories_model, "--api-key", keys)
    status, _, body = keyed.request("GET", "/")
    assert status == 200
    for path in sorted(set(re.findall(r'"(v1/[a-z/]+)"', body.decode()))):
        method = "GET" if path == "v1/models" else "POST"
        assert keyed.request(method, "/" + path)[0] == 401, path
        allowed = keyed.request(method, "/" + path, body="{}", headers={"Authorization": "Bearer sk-of-the-page"})[0]
        assert allowed in (200, 400), path


def test_script_of_the_page_is_javascript(server, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = re.search(r"<script>(.*)</script>", server.request("GET", "/")[2].decode(), re.DOTALL).group(1)
    file = tmp_path / "page.js"
    file.write_text(script)
    assert subprocess.run([node, "--check", file], check=False).returncode == 0

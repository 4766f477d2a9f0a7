"""The page at `/`: it is public, loads nothing from elsewhere, and speaks to routes that are there."""

from __future__ import annotations

import http.client
import http.server
import json
import queue
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

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


class Proxy(http.server.BaseHTTPRequestHandler):
    """The server's page with the driver's script behind its own; everything else goes to the server as it is."""

    server_port, driver = 0, ""
    results: queue.Queue = queue.Queue()

    def do_GET(self):
        self.forward(None)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/result":
            self.results.put(json.loads(body))
        else:
            self.forward(body)

    def forward(self, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.server_port, timeout=60)
        connection.request(self.command, self.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        self.send_response(response.status)
        self.send_header("Content-Type", response.getheader("Content-Type"))
        if self.path == "/":
            self.send_header("Content-Security-Policy", response.getheader("Content-Security-Policy"))
        self.end_headers()
        try:
            if self.path == "/":
                self.wfile.write(response.read() + f"<script>{self.driver}</script>".encode())
            while piece := response.read1(4096):
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(0.02)  # so that an answer is seen while it comes
        except OSError:
            pass  # the page has stopped the answer
        connection.close()

    def log_message(self, *_):
        pass


def test_page_in_a_browser(start_server, stories_model, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
    if browser is None:
        pytest.skip("chromium is not installed")
    template = tmp_path / "plain.jinja"
    template.write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    server = start_server(stories_model, "--chat-template", template)
    Proxy.server_port, Proxy.driver = server.port, (Path(__file__).parent / "page_driver.js").read_text()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        with subprocess.Popen([browser, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
                               f"--user-data-dir={tmp_path / 'profile'}", f"http://127.0.0.1:{proxy.server_port}/"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as page:
            try:
                seen = Proxy.results.get(timeout=60)
            finally:
                page.terminate()
                proxy.shutdown()
    assert len(seen) == 5, seen
    first, stopped, cleared, refused, text = seen
    assert first["user"] == ["<b>Lily</b>"] and first["markup"] == 0 and first["messages"] == 2
    # Without a rate where all tokens came in one event.
    assert re.fullmatch(r"\d+ \+ 12 tokens · ([\d.]+ tokens/s · )?cache [\d.]+ MiB \(restkv, budget \d+, kept \d+, evicted 0\)", first["facts"][0])
    assert stopped == {"isStop": True, "messages": 4, "kept": True}
    assert cleared == {"left": 0, "messages": 0}
    assert "cache.budget" in refused["problem"][0] and refused["empty"] == 0
    assert text == {"text": [server.complete("Once upon", max_tokens=4)["choices"][0]["text"]], "messages": 0}

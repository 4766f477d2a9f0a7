"""Fixtures of the end-to-end tests: the real binary, a tiny real model and running servers.

The binary is build/release/bin/restkv or what RESTKV_BINARY names; nothing is built here. The tiny model, stories260K,
is converted from the shared folder into a temporary one; the demo model is used where tools/get_demo_model.sh has put
it. What is absent makes its tests skip, with the reason.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_hub import FakeHub

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("RESTKV_SHARED_DIR", ROOT.parent / "shared"))
BINARY = Path(os.environ.get("RESTKV_BINARY", ROOT / "build" / "release" / "bin" / "restkv"))
DEMO_MODEL = (Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
              / "restkv" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf")

GRPC = re.compile(r"gRPC on 127\.0\.0\.1:(\d+)")
LISTENING = re.compile(r"Listening on (http://[0-9.]+:(\d+))")
START_SECONDS = 60
STOP_SECONDS = 15


def clean_environment() -> dict[str, str]:
    """The environment without settings of the user's shell, which the option table would read."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RESTKV_")}


def run_restkv(*arguments, timeout: float = 120, stdin: str | bytes | None = None, cwd=None, environment=None):
    """Runs the program to its end. Result: CompletedProcess with text stdout and stderr."""
    done = subprocess.run([BINARY, *map(str, arguments)], input=stdin.encode() if isinstance(stdin, str) else stdin or b"",
                          capture_output=True, timeout=timeout, check=False, cwd=cwd,
                          env=clean_environment() | (environment or {}))
    done.stdout = done.stdout.decode("utf-8", "replace")
    done.stderr = done.stderr.decode("utf-8", "replace")
    return done


class Server:
    """One `restkv serve MODEL --port 0 FLAGS...`; its output goes to `log`."""

    def __init__(self, model: Path | str, log: Path, *flags, port: int = 0) -> None:
        self.model = str(model)
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen([BINARY, "serve", self.model, "--port", str(port), *map(str, flags)],
                                            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                            env=clean_environment(), start_new_session=True)
        self.url, self.port = self._wait_for_url()
        status, _, body = self.request("GET", "/v1/models")
        self.model_id = json.loads(body)["data"][0]["id"] if status == 200 else ""  # a server with keys may not tell

    def _wait_for_url(self) -> tuple[str, int]:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            match = LISTENING.search(self.output())
            if match:
                return match.group(1), int(match.group(2))
            if self.process.poll() is not None:
                raise AssertionError(f"restkv serve ended with {self.process.returncode}:\n{self.output()}")
            time.sleep(0.02)
        self.process.kill()
        raise AssertionError(f"restkv serve did not listen within {START_SECONDS} s:\n{self.output()}")

    @property
    def grpc_address(self) -> str:
        match = GRPC.search(self.output())
        assert match, f"the server has no gRPC:\n{self.output()}"
        return f"127.0.0.1:{match.group(1)}"

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def request(self, method: str, path: str, body=None, headers=None, timeout: float = 60):
        """One request on a connection of its own. A dict or list is sent as JSON. Result: (status, headers, bytes)."""
        headers = dict(headers or {})
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def get_json(self, path: str):
        status, _, body = self.request("GET", path)
        assert status == 200, (path, status, body[:500])
        return json.loads(body)

    def post_json(self, path: str, body, expected: int = 200):
        status, _, answer = self.request("POST", path, body)
        assert status == expected, (path, status, answer[:500])
        return json.loads(answer)

    def complete(self, prompt, **fields):
        """A completion, not streamed; greedy unless the fields say otherwise."""
        body = {"model": self.model_id, "prompt": prompt, "temperature": 0, **fields}
        return self.post_json("/v1/completions", body)

    def stream(self, prompt, timeout: float = 60, **fields):
        """Yields the JSON events of a streamed completion, as they come; the last line must be [DONE]."""
        body = json.dumps({"model": self.model_id, "prompt": prompt, "temperature": 0, "stream": True, **fields})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, (response.status, response.read(500))
            assert response.getheader("Content-Type", "").startswith("text/event-stream")
            is_done = False
            for line in response:
                if not line.startswith(b"data: "):
                    continue
                assert not is_done, "an event after [DONE]"
                data = line[len(b"data: "):].strip()
                if data == b"[DONE]":
                    is_done = True
                else:
                    yield json.loads(data)
            assert is_done, "the stream ended without [DONE]"
        finally:
            connection.close()

    def cpu_seconds(self) -> float:
        """User and system time of the process so far: what still computes shows here."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait_until_idle(self, seconds: float = 10) -> None:
        """Returns when the process has computed nothing for a quarter of a second."""
        deadline = time.monotonic() + seconds
        before = self.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(0.25)
            now = self.cpu_seconds()
            if now - before <= 0.02:
                return
            before = now
        raise AssertionError(f"the server still computes after {seconds} s:\n{self.output()[-2000:]}")

    def wait_for_exit(self, seconds: float = STOP_SECONDS) -> int:
        """The exit code; a server that does not end is killed, and that is a failure."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server was still there after {seconds} s:\n{self.output()[-2000:]}") from None

    def stop(self, number: int = signal.SIGTERM, seconds: float = STOP_SECONDS) -> int:
        """Sends the signal and waits for the end."""
        self.process.send_signal(number)
        return self.wait_for_exit(seconds)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="session")
def binary() -> Path:
    if not BINARY.is_file():
        pytest.skip(f"{BINARY} is not built (cmake --build build/release, or set RESTKV_BINARY)")
    return BINARY


@pytest.fixture(scope="session")
def stories_folder(tmp_path_factory) -> Path:
    """stories260K in both formats: the folder holds what tests/model/convert_stories.py writes."""
    source = SHARED / "data" / "models" / "stories260K"
    weights, vocabulary = sorted(source.glob("stories*.bin")), sorted(source.glob("tok*.bin"))
    if not weights or not vocabulary:
        pytest.skip(f"the model stories260K is not in {source} (set RESTKV_SHARED_DIR)")
    folder = tmp_path_factory.mktemp("stories260K")
    subprocess.run([sys.executable, ROOT / "tests" / "model" / "convert_stories.py", weights[0], vocabulary[0], folder],
                   check=True, timeout=120)
    return folder


@pytest.fixture(scope="session")
def stories_model(stories_folder) -> Path:
    """The GGUF file of stories260K."""
    files = sorted(stories_folder.rglob("*.gguf"))
    assert files, f"convert_stories.py wrote no .gguf file: {sorted(stories_folder.rglob('*'))}"
    return files[0]


@pytest.fixture(scope="session")
def demo_model() -> Path:
    if not DEMO_MODEL.is_file():
        pytest.skip(f"the demo model is not at {DEMO_MODEL} (tools/get_demo_model.sh gets it)")
    return DEMO_MODEL


@pytest.fixture(scope="session")
def server_logs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def server(binary, stories_model, server_logs):
    """One server with stories260K for all tests that leave it as it was."""
    running = Server(stories_model, server_logs / "server.log")
    yield running
    running.kill()


@pytest.fixture(scope="session")
def demo_server(binary, demo_model, server_logs):
    """One server with the demo model, by the name `demo`."""
    running = Server("demo", server_logs / "demo_server.log")
    yield running
    running.kill()


@pytest.fixture
def hub():
    with FakeHub() as one:
        yield one


@pytest.fixture
def start_server(binary, server_logs, request):
    """start_server(MODEL, FLAGS..., port=0): a server of this test alone; killed when the test ends."""
    started = []

    def start(model, *flags, port: int = 0) -> Server:
        log = server_logs / f"{re.sub('[^A-Za-z0-9_]', '_', request.node.name)}-{len(started)}.log"
        started.append(Server(model, log, *flags, port=port))
        return started[-1]

    start.started = started  # for the report of a failure
    yield start
    for one in started:
        one.kill()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows the end of the log of each server it used."""
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" and report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            servers = [value] if isinstance(value, Server) else getattr(value, "started", [])
            for one in servers:
                report.sections.append((f"log of {name} {one.url}", one.output()[-4000:]))

"""The log of a server: JSON lines, one a request, with ids and times and without content."""

import fcntl
import http.client
import json
import os
import re
import socket
import subprocess
import time

import pytest
from conftest import clean_environment, run_restkv

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def logged(binary, stories_model, server_logs):
    from conftest import Server
    running = Server(stories_model, server_logs / "logged.log", "--log-format", "json", "--slow-request", "1ms")
    yield running
    running.kill()


def lines(server, event, request_id, seconds=5):
    """The log's lines of that event and request; waits for the first."""
    deadline = time.monotonic() + seconds
    while True:
        parsed = [json.loads(line) for line in server.output().splitlines()]
        found = [line for line in parsed if line["event"] == event and line.get("id") == request_id]
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [False, True])
def test_line_of_a_request(logged, stream):
    name = f"log-{stream}"
    status, headers, body = logged.request("POST", "/v1/completions", {
        "prompt": "A secret rabbit", "max_tokens": 20, "temperature": 0, "stream": stream}, {
        "X-Request-Id": name, "traceparent": f"00-{TRACE}-{SPAN}-01"})
    assert status == 200 and {key.lower(): value for key, value in headers.items()}["x-request-id"] == name
    (line,) = lines(logged, "request", name)
    assert (line["method"], line["path"], line["status"], line["level"]) == ("POST", "/v1/completions", 200, "info")
    assert (line["trace_id"], line["parent_id"]) == (TRACE, SPAN)
    assert line["completion_tokens"] == 20 and 0 < line["prompt_tokens"] < 30 and line["ms"] > 0
    (slow,) = lines(logged, "slow request", name)
    assert slow["level"] == "warning" and slow["trace_id"] == TRACE and slow["completion_tokens"] == 20
    parts = [slow[part] for part in ("queue_ms", "prefill_ms", "decode_ms", "other_ms")]
    assert min(parts) >= 0 and slow["decode_ms"] > 0 and slow["receive_ms"] >= 0
    assert sum(parts) == pytest.approx(slow["ms"], rel=0.05, abs=0.5)
    assert "rabbit" not in logged.output() and "secret" not in logged.output()


def test_refused_request(logged):
    logged.request("POST", "/v1/completions", {"prompt": 5}, {"X-Request-Id": "log-bad", "traceparent": "00-nonsense"})
    (line,) = lines(logged, "request", "log-bad")
    assert line["status"] == 400 and "trace_id" not in line and "completion_tokens" not in line


def test_client_that_goes(logged):
    body = json.dumps({"prompt": "Once", "max_tokens": 400, "ignore_eos": True})
    with socket.create_connection(("127.0.0.1", logged.port)) as client:
        client.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-Request-Id: log-gone\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        time.sleep(0.05)
    found = lines(logged, "request", "log-gone")
    assert [line["status"] for line in found] in ([499], [200]), "one line, whoever was faster"


def test_probes_are_quiet_and_nothing_is_slow_by_default(server):
    server.request("GET", "/health", headers={"X-Request-Id": "log-probe"})
    server.complete("Once", max_tokens=2)
    assert not [line for line in server.output().splitlines() if "log-probe" in line or "slow request" in line]


def test_name_of_a_field_that_is_cut(logged):
    """The log shows the first 64 bytes of an unknown field's name, and these may end within a character."""
    logged.complete("Once", max_tokens=1, **{"x" + "\u00e9" * 40: 1})
    shown = [json.loads(line) for line in logged.log.read_bytes().decode("utf-8", "strict").splitlines()]
    assert [line["field"] for line in shown if line["event"] == "unknown request field ignored"] == ["x" + "\u00e9" * 31 + "\ufffd"]


def test_errors_of_a_start_are_lines_too(logged, stories_model, tmp_path):
    for arguments in [(stories_model, "--port", logged.port), (tmp_path / "a\udcff\"b.gguf", "--port", 0), ("no/model-of-the-hub", "--port", 0)]:
        done = run_restkv("serve", *arguments, "--log-format", "json", environment={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
        parsed = [json.loads(line) for line in done.stderr.splitlines()]
        assert done.returncode == 1 and parsed[-1]["level"] == "error" and parsed[-1]["event"], done.stderr


def test_grpc_call(logged):
    grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
    from test_grpc import make_stubs
    pb, stub = make_stubs()[:2]
    with grpc.insecure_channel(logged.grpc_address) as channel:
        client = stub.InferenceStub(channel)
        metadata = [("x-request-id", "log-grpc"), ("traceparent", f"00-{TRACE}-{SPAN}-01")]
        list(client.Generate(pb.GenerateRequest(prompt="A secret rabbit", max_tokens=20, temperature=0), metadata=metadata))
        client.Tokenize(pb.TokenizeRequest(prompt="x"), metadata=[("x-request-id", "log-unary"), metadata[1]])
    (line,) = lines(logged, "request", "log-grpc")
    assert (line["method"], line["path"], line["status"]) == ("gRPC", "restkv.v1.Inference/Generate", 0)
    assert (line["trace_id"], line["parent_id"], line["completion_tokens"]) == (TRACE, SPAN, 20)
    (slow,) = lines(logged, "slow request", "log-grpc")
    assert slow["decode_ms"] > 0 and slow["trace_id"] == TRACE
    (line,) = lines(logged, "request", "log-unary")
    assert line["trace_id"] == TRACE and "completion_tokens" not in line
    assert "rabbit" not in logged.output()


def test_a_log_that_nobody_reads_holds_nobody_up(binary, stories_model):
    """Stderr is a pipe whose reader stands still, as that of a container's log may; later it goes on."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 8192)
    process = subprocess.Popen([binary, "serve", stories_model, "--port", "0"], stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=writer, env=clean_environment())
    os.close(writer)
    try:
        output = b""
        while b"Listening on" not in output:
            output += os.read(reader, 4096)
        port = int(re.search(rb"Listening on http://[^:]+:(\d+)", output)[1])

        def ask():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("POST", "/v1/completions", json.dumps({"prompt": 5}), {"Content-Type": "application/json"})
            assert connection.getresponse().status == 400
            connection.close()

        for _ in range(120):  # far more lines than the pipe holds
            ask()
        output = os.read(reader, 65536)
        ask()
        while not output.endswith(b'key=""\n') or b"were lost" not in output:
            output += os.read(reader, 65536)
        lost = re.search(rb"nobody read the log: lines were lost lines=(\d+)\n", output)
        assert lost and int(lost[1]) + output.count(b"status=400") == 121
        process.terminate()
        assert process.wait(timeout=15) == 0
    finally:
        process.kill()
        os.close(reader)

"""restkv serve: what it refuses at start, nonsense and clients that go, signals."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import BINARY, clean_environment, run_restkv
from test_cli import expect_failure

pytestmark = pytest.mark.usefixtures("binary")


def test_port_in_use(server, stories_model):
    start = time.monotonic()
    done = run_restkv("serve", stories_model, "--port", server.port)
    expect_failure(done, 1, str(server.port))
    assert time.monotonic() - start < 5
    assert server.complete("Once", max_tokens=1)["usage"]["completion_tokens"] == 1


def test_open_address_is_refused(stories_model):
    expect_failure(run_restkv("serve", stories_model, "--host", "0.0.0.0", "--port", "0"), 2, "0.0.0.0", "--insecure")


@pytest.mark.parametrize("body", [b"", b"nonsense", b"{", b"[]", b'{"prompt": "x"}\0x', b'{"prompt": "x",}',
                                  b'{"prompt": 1e999}', b'{"prompt": "\\ud800"}', b"[" * 100_000,
                                  b'{"prompt": "x", "ignored": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
                                  b'{"prompt": "x", "max_tokens": "many"}', b"\xff\xfe{}"],
                         ids=["empty", "word", "open", "list", "NUL", "comma", "1e999", "surrogate", "deep", "deep ignored",
                              "type", "not UTF-8"])
def test_nonsense_json(server, body):
    start = time.monotonic()
    status, _, answer = server.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    assert status == 400, (status, answer[:300])
    error = json.loads(answer)["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and error["message"]
    assert time.monotonic() - start < 1
    assert server.request("GET", "/health")[0] == 200


def test_killed_client_stops_the_engine(demo_server):
    """kill -9 in the middle of a stream of 4,000 tokens: seconds later nothing computes, and others are served."""
    program = (
        "import sys, urllib.request\n"
        "request = urllib.request.Request(sys.argv[1] + '/v1/completions', sys.argv[2].encode(),\n"
        "                                 {'Content-Type': 'application/json'})\n"
        "for line in urllib.request.urlopen(request):\n"
        "    print(line, flush=True)\n")
    body = json.dumps({"model": demo_server.model_id, "prompt": "Once upon a time", "max_tokens": 4000, "stream": True,
                       "ignore_eos": True})
    demo_server.wait_until_idle()
    with subprocess.Popen([sys.executable, "-c", program,
                           demo_server.url, body], stdout=subprocess.PIPE) as client:
        for _ in range(10):
            assert client.stdout.readline()
        client.kill()
    before = demo_server.cpu_seconds()
    demo_server.wait_until_idle(3)
    # Two steps of this model are some tens of milliseconds on a slow machine; the whole answer is most of a minute.
    assert demo_server.cpu_seconds() - before < 2
    assert demo_server.complete("Hello", max_tokens=2)["usage"]["completion_tokens"] == 2


def test_reset_connection_stops_the_engine(demo_server):
    """A client that closes with unread data sends a reset instead of the ordinary end."""
    body = json.dumps({"model": demo_server.model_id, "prompt": "Once", "max_tokens": 4000, "stream": True,
                       "ignore_eos": True}).encode()
    demo_server.wait_until_idle()
    with socket.create_connection(("127.0.0.1", demo_server.port), timeout=30) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
                       b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        assert client.recv(4096)
    before = demo_server.cpu_seconds()
    demo_server.wait_until_idle(3)
    assert demo_server.cpu_seconds() - before < 2


def test_sigterm_ends_an_idle_server(start_server, stories_model):
    server = start_server(stories_model)
    start = time.monotonic()
    assert server.stop(signal.SIGTERM) == 0
    assert time.monotonic() - start < 2


def test_sigterm_lets_running_requests_finish(start_server, demo_model):
    server = start_server("demo")
    events = server.stream("Once upon a time", max_tokens=60, ignore_eos=True)
    first = next(events)
    server.process.send_signal(signal.SIGTERM)
    rest = list(events)  # whole, with [DONE]
    assert [choice["finish_reason"] for event in rest for choice in event["choices"] if choice["finish_reason"]] == ["length"]
    assert first["choices"]
    assert server.wait_for_exit() == 0


def start_raw(command, port, **more):
    """A server that is started without the fixture, once it is ready."""
    process = subprocess.Popen([*map(str, command)], env=clean_environment(), **more)
    for _ in range(400):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5):
                return process
        except OSError:
            assert process.poll() is None, process.returncode
            time.sleep(0.02)
    process.kill()
    raise AssertionError("the server does not get ready")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def answers_and_ends(process, port):
    body = json.dumps({"prompt": "Once", "max_tokens": 2}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body), timeout=30) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0


def test_who_reads_the_log_goes(stories_model):
    """`restkv serve 2>&1 | head -1`: SIGPIPE is nothing to a server, not even while it loads."""
    port = free_port()
    reader, writer = os.pipe()
    os.close(reader)
    process = start_raw([BINARY, "serve", stories_model, "--port", port, "--no-grpc"], port, stderr=writer)
    os.close(writer)
    answers_and_ends(process, port)


def test_full_disk_for_the_log(stories_model):
    port = free_port()
    with open("/dev/full", "wb") as full:
        process = start_raw([BINARY, "serve", stories_model, "--port", port, "--no-grpc"], port, stderr=full)
    answers_and_ends(process, port)


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>&-", ">&-"])
def test_closed_standard_streams(stories_model, closed):
    """Their numbers are not given to sockets and files: a log line would go to a client or into the model."""
    port = free_port()
    command = ["sh", "-c", f'exec "$0" "$@" {closed}', BINARY, "serve", stories_model, "--port", port, "--no-grpc"]
    process = start_raw(command, port, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in (0, 1, 2)] == ["/dev/null"] * 3
    answers_and_ends(process, port)


def test_new_work_while_draining(start_server, demo_model):
    server = start_server("demo", "--drain-timeout", "20s")
    events = server.stream("Once upon a time", max_tokens=100, ignore_eos=True)
    next(events)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})):
        status, headers, answer = server.request("POST", path, body)
        assert (status, json.loads(answer)["error"]["code"]) == (503, "draining") and int(headers["Retry-After"]) >= 1
    assert server.request("GET", "/health")[0] == 503 and server.request("GET", "/health/live")[0] == 200
    list(events)
    assert server.wait_for_exit() == 0


def test_second_interrupt_stops_at_once(start_server, demo_model):
    server = start_server("demo")
    events = server.stream("Once upon a time", max_tokens=4000, ignore_eos=True)
    next(events)
    server.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert server.process.poll() is None, "the first one drains"
    start = time.monotonic()
    server.stop(signal.SIGINT)
    assert time.monotonic() - start < 1
    events.close()

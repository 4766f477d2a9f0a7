"""restkv serve: what it refuses at start, nonsense and clients that go, signals."""

import concurrent.futures
import json
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

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


def test_upload_while_draining(start_server, stories_model):
    """Nothing else runs: the server ends when its client has the answer."""
    server = start_server(stories_model, "--drain-timeout", "20s")
    body = json.dumps({"prompt": "a"}).encode().ljust(300_000)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:200_000])
        while not re.search(r"^restkv_http_body_bytes\S* [1-9]", server.request("GET", "/metrics")[2].decode(), re.MULTILINE):
            time.sleep(0.02)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        client.sendall(body[200_000:])
        head, answer = b"".join(iter(lambda: client.recv(65536), b"")).split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ") and b"\r\nConnection: close" in head and b"\r\nRetry-After: " in head
    assert json.loads(answer)["error"]["code"] == "draining"
    assert server.wait_for_exit() == 0 and time.monotonic() - start < 10


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


def test_drain_timeout_ends_requests_with_an_error(start_server, demo_model):
    """Who has not finished in time is told, on its connection: a 503, or the last event of the stream."""
    server = start_server("demo", "--drain-timeout", "300ms")
    body = {"prompt": "Once upon a time", "max_tokens": 8000, "ignore_eos": True, "cache": {"budget": 256}}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        whole = pool.submit(server.request, "POST", "/v1/completions", body)
        streamed = pool.submit(server.request, "POST", "/v1/completions", body | {"stream": True})
        while json.loads(server.request("GET", "/load")[2])["server_load"] < 2:
            time.sleep(0.02)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_for_exit() == 0
        assert time.monotonic() - start < 2
        status, headers, answer = whole.result()
        assert (status, json.loads(answer)["error"]["code"]) == (503, "draining") and int(headers["Retry-After"]) >= 1
        status, _, answer = streamed.result()
        events = [line[6:] for line in answer.decode().splitlines() if line.startswith("data: ")]
        assert status == 200 and events[-1] == "[DONE]" and json.loads(events[-2])["error"]["code"] == "draining"
    assert "drain timeout" in server.output()


@pytest.fixture
def loading_server(stories_model, tmp_path):
    """start(PREFIX...): a server that stays in the middle of its load, waiting for a pipe to be written to."""
    pipe = tmp_path / "allocation"
    os.mkfifo(pipe)
    started = []

    def start(*prefix):
        process = subprocess.Popen([*map(str, prefix), BINARY, "serve", stories_model, "--port", "0", "--no-grpc", "--allocation-file", pipe],
                                   env=clean_environment(), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        started.append(process)
        for line in process.stderr:
            if "loading the model" in line:
                return process
        pytest.skip("the server was not started: " + " ".join(map(str, prefix)))

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_loading(loading_server, number):
    process = loading_server()
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None, "SIGHUP asks for what is about to be read"
    process.send_signal(number)
    assert process.wait(5) == -number


def test_sigterm_while_loading_as_process_1(loading_server):
    """In a container: there the kernel drops signals that nobody handles, and `docker stop` would wait for its end in vain."""
    prefix = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no process namespaces here: {error}")
    process = loading_server(*prefix)
    (child,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    os.kill(child, signal.SIGTERM)
    assert process.wait(5) == 128 + signal.SIGTERM


def with_limit(kind, soft, hard=None):
    return lambda: resource.setrlimit(kind, (soft, hard or soft))


def test_little_address_space(stories_model):
    """`ulimit -v`: the cache is planned within it, and where nothing fits an error says so."""
    if b"__asan_init" in BINARY.read_bytes() or b"__tsan_init" in BINARY.read_bytes():
        pytest.skip("sanitizers need terabytes of address space")
    port = free_port()
    command = [BINARY, "serve", stories_model, "--port", port, "--no-grpc", "--threads", 1]
    process = start_raw(command, port, preexec_fn=with_limit(resource.RLIMIT_AS, 2 << 30))
    answers_and_ends(process, port)
    for size, said in ((200 << 20, "0 MiB are left"), (140 << 20, "no memory is left for the work space")):
        done = subprocess.run(list(map(str, command)), env=clean_environment(), capture_output=True, text=True, timeout=60, check=False,
                              preexec_fn=with_limit(resource.RLIMIT_AS, size))
        assert done.returncode == 1 and said in done.stderr, (size, done.returncode, done.stderr)


def test_open_files(stories_model):
    """The soft limit is raised as far as the hard one lets it; what is missing is said."""
    port = free_port()
    command = [BINARY, "serve", stories_model, "--port", port, "--no-grpc", "--max-connections", 500]
    process = start_raw(command, port, preexec_fn=with_limit(resource.RLIMIT_NOFILE, 64, 1000), stderr=subprocess.PIPE, text=True)
    assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (564, 1000)
    answers_and_ends(process, port)
    assert "open_files" not in process.stderr.read()
    process = start_raw(command, port, preexec_fn=with_limit(resource.RLIMIT_NOFILE, 40), stderr=subprocess.PIPE, text=True)
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(45)]
    time.sleep(0.2)
    for client in clients:
        client.close()
    answers_and_ends(process, port)
    log = process.stderr.read()
    assert "open_files=40" in log and log.count("connections wait") == 1, log


def test_end_of_the_log_file(stories_model, tmp_path):
    """`ulimit -f`: the log ends there, the server does not."""
    port = free_port()
    with (tmp_path / "log").open("wb") as log:
        process = start_raw([BINARY, "serve", stories_model, "--port", port, "--no-grpc"], port, stderr=log,
                            preexec_fn=with_limit(resource.RLIMIT_FSIZE, 300))
    answers_and_ends(process, port)
    assert (tmp_path / "log").stat().st_size == 300

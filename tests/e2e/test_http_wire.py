"""The wire, byte by byte: what a careful or a hostile client sends over a raw socket, against the real binary."""

import json
import socket
import struct
import time

import pytest


class Wire:
    """One raw connection."""

    def __init__(self, server, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", server.port))
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all was sent; the answer is there to read

    def read_until(self, end: bytes) -> bytes:
        while end not in self.buffer:
            data = self.socket.recv(65536)
            assert data, f"closed before {end!r}: {self.buffer[-300:]!r}"
            self.buffer += data
        head, _, self.buffer = self.buffer.partition(end)
        return head + end

    def read_to_close(self) -> bytes:
        while data := self.socket.recv(65536):
            self.buffer += data
        result, self.buffer = self.buffer, b""
        return result

    def read_response(self) -> tuple[int, dict[str, str], bytes]:
        """A response with a Content-Length."""
        lines = self.read_until(b"\r\n\r\n").decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:] if line)}
        length = int(headers["content-length"])
        while len(self.buffer) < length:
            self.buffer += self.socket.recv(65536)
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return int(lines[0].split()[1]), headers, body

    def kill(self) -> None:
        """As a killed process leaves its connection: with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def post(path: str, body, headers: str = "") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n{headers}\r\n".encode() + data


def completion(**fields) -> dict:
    return {"prompt": "Once upon a time", "temperature": 0, **fields}


def status_of(server, data: bytes) -> int:
    """Status of the answer to `data`, after which the server closes."""
    with Wire(server) as wire:
        wire.send(data)
        answer = wire.read_to_close()
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head
    if body:
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
    return int(answer[9:12])


@pytest.mark.parametrize(("data", "status"), [
    pytest.param(b"GET / HTTP/1.1\nHost: a\n\n", 400, id="bare-LF"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400, id="folded-header"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: a/v1/x?\r\n\r\n", 400, id="host-with-path"),
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no-host"),
    pytest.param(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 400,
                 id="length-and-chunked"),
    pytest.param(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400,
                 id="two-lengths"),
    pytest.param(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 400, id="other-coding"),
    pytest.param(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\n", 400,
                 id="negative-chunk"),
    pytest.param(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 8388609\r\n\r\n", 413, id="body-one-past"),
    pytest.param(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 65537, 413,
                 id="chunks-one-past"),
    pytest.param(b"GET /" + b"a" * 8192 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, id="long-request-line"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100 + b"\r\n", 431, id="headers-one-past"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 16384 + b"\r\n\r\n", 431, id="large-headers"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X" * 100_000, 431, id="endless-header"),
    pytest.param(b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, id="http2"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\r\n\r\n", 400, id="tls-hello"),
])
def test_refused(server, data, status):
    assert status_of(server, data) == status


def test_limits_hold_at_the_limit(server):
    with Wire(server) as wire:
        padding = b" " * (8 * 1024 * 1024 - len(b'{"prompt":"a"}'))
        wire.send(post("/tokenize", b'{"prompt":"a"}' + padding))
        assert wire.read_response()[0] == 200
        wire.send(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 65535
                  + b"e\r\n" + b'{"prompt":"a"}' + b"\r\n0\r\n\r\n")
        assert wire.read_response()[0] == 200
        wire.send(b"GET /ping HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 99 + b"\r\n")
        assert wire.read_response()[0] == 200


def test_keep_alive_pipelining_and_head(server):
    with Wire(server) as wire:
        wire.send(b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\nHEAD /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
                  b"GET /version HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert wire.read_response()[0] == 200
        head = wire.read_until(b"\r\n\r\n")
        assert b"Content-Length: " in head
        assert not wire.buffer.startswith(b"{")
        status, headers, body = wire.read_response()
        assert (status, headers["connection"]) == (200, "close")
        assert "version" in json.loads(body)
        assert wire.read_to_close() == b""


def test_http_10_closes(server):
    with Wire(server) as wire:
        wire.send(b"GET /ping HTTP/1.0\r\n\r\n")
        assert b" 200 OK\r\n" in wire.read_to_close()
    body = json.dumps(completion(stream=True, max_tokens=4)).encode()
    with Wire(server) as wire:
        wire.send(b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        answer = wire.read_to_close()
    assert b"Transfer-Encoding" not in answer
    assert answer.endswith(b"data: [DONE]\n\n")


def test_expect_continue(server):
    with Wire(server) as wire:
        wire.send(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\nExpect: 100-continue\r\n\r\n")
        assert wire.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.send(b'{"prompt":"a"}')
        assert wire.read_response()[0] == 200


def test_byte_by_byte(server):
    with Wire(server) as wire:
        for byte in post("/tokenize", {"prompt": "hello"}):
            wire.send(bytes([byte]))
        assert wire.read_response()[0] == 200


def test_request_id_and_processing_time(server):
    with Wire(server) as wire:
        wire.send(b"GET /ping HTTP/1.1\r\nHost: a\r\nX-Request-Id: trace-7\r\n\r\n")
        _, headers, _ = wire.read_response()
        assert headers["x-request-id"] == "trace-7"
        assert int(headers["openai-processing-ms"]) >= 0
        wire.send(b"GET /ping HTTP/1.1\r\nHost: a\r\nX-Request-Id: \x1b[31m evil\r\n\r\n")
        assert wire.read_to_close().startswith(b"HTTP/1.1 400")


def test_stream_events_exactly(server):
    """Each event is one data line and an empty line; the usage chunk and [DONE] come last."""
    with Wire(server) as wire:
        wire.send(post("/v1/completions", completion(stream=True, max_tokens=8, stream_options={"include_usage": True})))
        head = wire.read_until(b"\r\n\r\n").decode().lower()
        assert "content-type: text/event-stream; charset=utf-8" in head
        assert "transfer-encoding: chunked" in head
        text = b""
        while length := int(wire.read_until(b"\r\n"), 16):
            while len(wire.buffer) < length + 2:
                wire.buffer += wire.socket.recv(65536)
            text += wire.buffer[:length]
            assert wire.buffer[length:length + 2] == b"\r\n"
            wire.buffer = wire.buffer[length + 2:]
        assert wire.read_until(b"\r\n") == b"\r\n"
        events = text.decode().split("\n\n")
        assert events.pop() == ""
        assert all(event.startswith("data: ") and "\n" not in event for event in events)
        assert events.pop() == "data: [DONE]"
        chunks = [json.loads(event[6:]) for event in events]
        usage = chunks.pop()
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == 8
        assert all(chunk["usage"] is None for chunk in chunks)
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"
        assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1
        wire.send(b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n")  # the connection lives on
        assert wire.read_response()[0] == 200


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("kill", [True, False], ids=["killed", "closed"])
def test_a_client_that_goes_stops_the_engine(start_server, stories_model, stream, kill):
    server = start_server(stories_model)
    server.complete("Once", max_tokens=1)
    wire = Wire(server)
    wire.send(post("/v1/completions", completion(prompt=["a"] * 60, stream=stream, ignore_eos=True, max_tokens=400, n=16)))
    if stream:
        wire.read_until(b"data: ")
    else:
        time.sleep(0.1)
    if kill:
        wire.kill()
    else:
        wire.socket.close()
    before = server.cpu_seconds()
    server.wait_until_idle(5)
    assert server.cpu_seconds() - before < 3
    server.complete("Once", max_tokens=1)


def test_slow_headers_time_out(start_server, stories_model):
    server = start_server(stories_model, "--header-timeout", "500ms")
    with Wire(server) as wire:
        wire.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-")
        begin = time.monotonic()
        assert wire.read_to_close().startswith(b"HTTP/1.1 408")
        assert 0.3 < time.monotonic() - begin < 5


def test_slow_bodies_time_out(start_server, stories_model):
    server = start_server(stories_model, "--body-timeout", "500ms")
    with Wire(server) as wire:
        wire.send(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        assert wire.read_to_close().startswith(b"HTTP/1.1 408")


def test_full_queue_is_429_and_quick(start_server, stories_model):
    server = start_server(stories_model, "--max-queue-requests", 4, "--max-num-seqs", 1)
    for _ in range(10):  # the tiny model may be done before the second request arrives
        # One runs, four wait for it: one more does not fit.
        busy = [Wire(server) for _ in range(5)]
        for wire in busy:
            wire.send(post("/v1/completions", completion(stream=True, ignore_eos=True, max_tokens=500)))
        busy[0].read_until(b"data: ")
        begin = time.monotonic()
        status, headers, body = server.request("POST", "/v1/completions", completion())
        seconds = time.monotonic() - begin
        for wire in busy:
            wire.kill()
        if status == 429:
            break
        server.wait_until_idle()
    assert status == 429
    assert seconds < 0.5
    assert int(headers["Retry-After"]) >= 1
    assert json.loads(body)["error"]["type"] == "rate_limit_error"
    server.wait_until_idle()
    server.complete("Once", max_tokens=1)


def test_health_is_quick_under_load(server):
    busy = []
    for _ in range(8):
        wire = Wire(server)
        wire.send(post("/v1/completions", completion(stream=True, ignore_eos=True, max_tokens=400)))
        busy.append(wire)
    times = []
    for _ in range(50):
        begin = time.monotonic()
        assert server.request("GET", "/health")[0] == 200
        times.append(time.monotonic() - begin)
    for wire in busy:
        wire.kill()
    server.wait_until_idle()
    assert sorted(times)[25] < 0.2, times


def test_many_streams_at_once_are_whole(server):
    expected = server.complete("Once upon a time", max_tokens=32)["choices"][0]["text"]
    wires = [Wire(server) for _ in range(40)]
    for wire in wires:
        wire.send(post("/v1/completions", completion(stream=True, max_tokens=32), "Connection: close\r\n"))
    for wire in wires:
        answer = wire.read_to_close()
        wire.socket.close()
        lines = [line for line in answer.split(b"\n") if line.startswith(b"data: ")]
        assert lines[-1] == b"data: [DONE]"
        text = "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1])
        assert text == expected


def test_the_log_has_no_content_and_no_foreign_lines(start_server, stories_model):
    server = start_server(stories_model)
    server.complete("a very secret prompt", max_tokens=4)
    server.request("POST", "/v1/completions", {"prompt": "x", "field\nINFO forged": 1})
    server.request("GET", "/%0aINFO%20forged")
    assert server.stop() == 0
    log = server.output()
    assert "secret" not in log
    assert "\nINFO forged" not in log
    assert "\x1b" not in log

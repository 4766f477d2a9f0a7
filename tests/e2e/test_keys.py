"""API keys against the real binary: who is let in where, limits, reloads, what is refused at start."""

import http.client
import json
import signal
import socket
import threading
import time

import conftest
import pytest
from conftest import run_restkv

KEYS = """\
keys:
  - name: alice
    key: sk-alice-secret
  - name: bob
    key: sk-bob-secret
    requests_per_minute: 2
  - name: carol
    key: sk-carol-secret
    max_concurrent: 1
  - name: dave
    key: sk-dave-secret
    tokens_per_minute: 30
  - name: frank
    key: sk-frank-secret
    requests_per_minute: 2
    tokens_per_minute: 20000
    max_concurrent: 1
"""
BODY = {"prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}


def bearer(name: str) -> dict:
    return {"Authorization": f"Bearer sk-{name}-secret"}


class Keyed:
    """A server with a key file. Not conftest's Server.get_json, which sends no key."""

    def __init__(self, server, path) -> None:
        self.server, self.path = server, path

    def complete(self, name: str | None = "alice", **fields):
        return self.server.request("POST", "/v1/completions", {**BODY, **fields}, bearer(name) if name else {})

    def wait_for_log(self, text: str, seconds: float = 5) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.server.output():
            assert time.monotonic() < deadline, f"not in the log: {text}\n{self.server.output()}"
            time.sleep(0.02)


@pytest.fixture
def keyed(start_server, stories_model, tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(KEYS)
    return Keyed(start_server(stories_model, "--api-key", path), path)


@pytest.mark.parametrize("framing", ["Content-Length: 8000000", "Transfer-Encoding: chunked", "Content-Length: 90\r\nExpect: 100-continue"])
def test_no_body_is_taken_from_who_may_not_send_it(keyed, framing):
    with socket.create_connection(("127.0.0.1", keyed.server.port), timeout=3) as client:
        client.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer sk-mallory\r\n{framing}\r\n\r\n".encode())
        answer = client.makefile("rb").read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 ") and b"\r\nConnection: close" in head and b"\r\nWWW-Authenticate: Bearer" in head
    assert json.loads(body)["error"]["code"] == "invalid_api_key"


def test_only_known_keys_are_let_in(keyed):
    server = keyed.server
    assert keyed.complete()[0] == 200
    assert server.request("POST", "/v1/completions", BODY, {"x-api-key": "sk-alice-secret"})[0] == 200
    for headers in ({}, {"Authorization": "Bearer sk-alice-secre"}, {"Authorization": "Bearer "}, {"Authorization": "Basic eA=="}):
        status, answer, body = server.request("POST", "/v1/completions", BODY, headers)
        error = json.loads(body)["error"]
        assert (status, error["type"], error["code"]) == (401, "authentication_error", "invalid_api_key")
        assert answer["WWW-Authenticate"] == "Bearer" and "secre" not in body.decode()
    for path in ("/health", "/health/live", "/health/ready", "/ping", "/version", "/metrics"):
        assert server.request("GET", path)[0] == 200, path
    for method, path in (("GET", "/v1/models"), ("GET", "/v1/models/x"), ("POST", "/tokenize"), ("POST", "/detokenize"),
                         ("POST", "/apply-template"), ("POST", "/v1/chat/completions")):
        assert server.request(method, path, "{}")[0] == 401, path
    assert server.request("GET", "/v1/models", headers=bearer("alice"))[0] == 200
    log = server.output()
    assert "secret" not in log.replace(str(keyed.path), "") and "key=alice" in log


def test_rates_concurrency_and_retry_after(keyed):
    assert [keyed.complete("bob")[0] for _ in range(2)] == [200, 200]
    status, headers, body = keyed.complete("bob")
    error = json.loads(body)["error"]
    assert (status, error["type"], error["code"]) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(headers["Retry-After"]) <= 30
    assert keyed.complete("dave", max_tokens=60, ignore_eos=True)[0] == 200
    status, headers, _ = keyed.complete("dave")
    assert status == 429 and int(headers["Retry-After"]) > 30, "tokens of the answer count"
    assert keyed.complete("alice")[0] == 200


def test_what_is_refused_is_not_charged(keyed):
    # Long enough that it runs while the others come, on any machine.
    long_answer = {**BODY, "max_tokens": 480, "n": 16, "temperature": 1, "logprobs": 5, "ignore_eos": True, "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", keyed.server.port, timeout=60)
    for _ in range(3):
        status, _, body = keyed.complete("frank", max_tokens=1_000_000)
        assert (status, json.loads(body)["error"]["code"]) == (400, "context_length_exceeded"), body
    connection.request("POST", "/v1/completions", json.dumps(long_answer), bearer("frank"))
    stream = connection.getresponse()
    assert stream.readline().startswith(b"data: ")
    for prompt in ["Once upon a time", "Once", ["a list", "of two"]] * 2:
        status, _, body = keyed.complete("frank", prompt=prompt)
        assert (status, json.loads(body)["error"]["code"]) == (429, "concurrency_limit"), body
    stream.read()
    connection.close()
    keyed.server.wait_until_idle()
    assert keyed.complete("frank")[0] == 200
    status, _, body = keyed.complete("frank")
    assert (status, json.loads(body)["error"]["code"]) == (429, "rate_limit_exceeded"), "two of two"


def test_reload_by_signal_and_by_change_is_all_or_nothing(keyed):
    server, path = keyed.server, keyed.path
    assert keyed.complete("alice")[0] == 200
    path.write_text(KEYS.replace("alice", "erin"))
    deadline = time.monotonic() + 5
    while keyed.complete("erin")[0] != 200:
        assert time.monotonic() < deadline, server.output()
        time.sleep(0.1)
    assert keyed.complete("alice")[0] == 401

    path.write_text(KEYS + "  - name: alice\n    key: sk-alice-secret\n    ratee: 1\n")
    server.process.send_signal(signal.SIGHUP)
    keyed.wait_for_log("before stay")
    assert f"{path}:{KEYS.count(chr(10)) + 3}:5: unknown key 'ratee'" in server.output()
    assert keyed.complete("erin")[0] == 200
    path.write_text("")
    keyed.wait_for_log("no API key in it")
    assert keyed.complete("erin")[0] == 200
    path.unlink()
    server.process.send_signal(signal.SIGHUP)
    keyed.wait_for_log("names no file")
    assert keyed.complete("erin")[0] == 200 and keyed.complete(None)[0] == 401
    assert server.stop() == 0


PROFILES = """\
version: 1
cache:
  budget: 512
  max_budget: 600
  profiles:
    small: {budget: 48, window: 16, pin: 4}
    rival: {policy: snapkv, budget: 64, api_keys: [bob]}
    tight: {policy: snapkv, budget: 40, window: 16, api_keys: [carol]}
"""
PROFILE_KEYS = KEYS.replace("key: sk-alice-secret", "key: sk-alice-secret\n    profile: small").replace(
    "    requests_per_minute: 2\n", "")


def cache_of(keyed, name, **cache):
    status, _, body = keyed.complete(name, cache=cache)
    assert status == 200, body
    usage = json.loads(body)["usage"]["cache"]
    return usage["policy"], usage["budget"]


@pytest.fixture
def profiled(start_server, stories_model, tmp_path):
    path, config = tmp_path / "keys.yaml", tmp_path / "serve.yaml"
    path.write_text(PROFILE_KEYS)
    config.write_text(PROFILES)
    keyed = Keyed(start_server(stories_model, "--api-key", path, "--config", config), path)
    keyed.config = config
    return keyed


def test_profile_of_a_key(profiled):
    assert cache_of(profiled, "alice") == ("restkv", 48), "by the key file"
    assert cache_of(profiled, "bob") == ("snapkv", 64), "by the profile's api_keys"
    assert cache_of(profiled, "carol") == ("snapkv", 40)
    assert cache_of(profiled, "dave") == ("restkv", 512)
    assert cache_of(profiled, "alice", budget=60) == ("restkv", 60), "the request's own fields win"
    assert cache_of(profiled, "dave", profile="small") == ("restkv", 48)
    status, _, body = profiled.complete("alice", cache={"profile": "tight"})
    error = json.loads(body)["error"]
    assert status == 400 and error["param"] == "cache.profile" and "(small)" in error["message"], "not those of other keys"


def test_profiles_reload_all_or_nothing(profiled):
    server, config = profiled.server, profiled.config

    def reload(text, expected):
        config.write_text(text)
        server.process.send_signal(signal.SIGHUP)
        profiled.wait_for_log(expected)

    def unchanged():
        return cache_of(profiled, "alice") == ("restkv", 48) and cache_of(profiled, "bob") == ("snapkv", 64)

    reload(PROFILES.replace("budget: 64,", "budget: 601,"), "cache.profiles.rival: cache.budget")
    assert unchanged()
    reload(PROFILES.replace("small:", "smaller:"), "the key 'alice': cache.profile: 'small' is not one of")
    assert unchanged(), "a key whose profile would be gone"
    reload(PROFILES.replace("window: 16, api_keys", "windo: 16, api_keys"), f"{config}:8:")
    assert "unknown key 'windo' in cache.profiles.tight" in server.output() and unchanged()
    profiled.path.write_text(PROFILE_KEYS.replace("profile: small", "profile: large"))
    reload(PROFILES.replace("budget: 64,", "budget: 72,"), "'large' is not one of this server's profiles")
    assert unchanged(), "the profiles were right, the keys were not"

    profiled.path.write_text(PROFILE_KEYS)  # both are seen by themselves
    config.write_text(PROFILES.replace("budget: 64,", "budget: 72,").replace("budget: 512", "budget: 500"))
    deadline = time.monotonic() + 5
    while cache_of(profiled, "bob") != ("snapkv", 72):
        assert time.monotonic() < deadline, server.output()
        time.sleep(0.1)
    assert cache_of(profiled, "alice") == ("restkv", 48) and cache_of(profiled, "dave") == ("restkv", 512)
    profiled.wait_for_log("settings=cache.budget")
    assert server.stop() == 0


@pytest.mark.parametrize("profile, expected", [("small", "there are none"), ("a b", "1 to 64 letters")])
def test_a_profile_that_is_not_there_is_refused_at_start(binary, stories_model, tmp_path, profile, expected):
    path = tmp_path / "keys.yaml"
    path.write_text(KEYS.replace("key: sk-alice-secret", f"key: sk-alice-secret\n    profile: {profile}"))
    done = run_restkv("serve", stories_model, "--port", 0, "--api-key", path)
    assert done.returncode == 2 and expected in done.stderr, done.stderr


def test_a_key_sees_its_own_requests_and_traces_alone(keyed):
    server = keyed.server

    def get(path, name, method="GET"):
        status, _, body = server.request(method, path, headers=bearer(name))
        return status, json.loads(body)

    status, _, body = keyed.complete("alice", prompt="Once upon a time there was a girl. " * 8, cache={"budget": 48, "trace": True})
    trace = f"/v1/cache/traces/{json.loads(body)['id']}"
    assert get(trace, "alice")[0] == 200
    assert get(trace, "carol")[0] == 404 and get(trace, "carol")[1]["error"]["code"] == "not_found"

    results = []
    body = {**BODY, "max_tokens": 480, "n": 8, "ignore_eos": True, "request_id": "mine"}
    for _ in range(20):  # until one was seen while it ran
        thread = threading.Thread(target=lambda: results.append(
            server.request("POST", "/v1/completions", body, bearer("alice"))[0]))
        thread.start()
        deadline = time.monotonic() + 5
        own = []
        while not own and thread.is_alive() and time.monotonic() < deadline:
            own = get("/v1/requests", "alice")[1]["data"]
        others = get("/v1/requests", "carol")[1]["data"]
        foreign = get("/v1/requests/cmpl-mine", "carol", "DELETE")[0]
        deleted = get("/v1/requests/cmpl-mine", "alice", "DELETE")[0]
        thread.join()
        assert others == [] and foreign == 404
        if own and deleted == 200:
            break
    assert own[0]["id"] == "cmpl-mine" and deleted == 200 and results[-1] == 499
    assert all(status == 200 for status in results[:-1]), "another key's DELETE ended one"


def test_a_reload_drops_no_request(keyed):
    results = []
    body = {**BODY, "max_tokens": 480, "n": 8, "ignore_eos": True}
    threads = [threading.Thread(target=lambda: results.append(
        keyed.server.request("POST", "/v1/completions", body, bearer("alice"))[0])) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    keyed.path.write_text(KEYS.replace("alice", "erin"))
    keyed.server.process.send_signal(signal.SIGHUP)
    for thread in threads:
        thread.join()
    assert results == [200] * 6


def test_grpc_takes_the_same_keys(keyed):
    grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
    with grpc.insecure_channel(keyed.server.grpc_address) as channel:
        def call(method, data=b"", metadata=None, stream=False):
            kind = channel.unary_stream if stream else channel.unary_unary
            try:
                answer = kind(method)(data, metadata=metadata)
                return list(answer) and "OK" if stream else "OK"
            except grpc.RpcError as error:
                return error.code().name

        key = [("authorization", "Bearer sk-alice-secret")]
        prompt = b"\x12\x04Once"
        assert call("/restkv.v1.Inference/Generate", prompt, key, stream=True) == "OK"
        for method in ("/restkv.v1.Inference/ListModels", "/inference.GRPCInferenceService/ServerMetadata",
                       "/inference.GRPCInferenceService/ModelReady"):
            assert call(method) == "UNAUTHENTICATED", method
            assert call(method, metadata=[("authorization", "Bearer wrong-key-9")]) == "UNAUTHENTICATED"
            assert call(method, metadata=key) == "OK"
        for method in ("/restkv.v1.Inference/Generate", "/restkv.v1.Inference/Chat"):
            # What is no message of the method is refused by the library before anything of ours.
            message = prompt if method.endswith("Generate") else b""
            assert call(method, message, stream=True) == "UNAUTHENTICATED", method
        assert call("/grpc.health.v1.Health/Check") == "OK"
        assert call("/inference.GRPCInferenceService/ServerReady") == "OK"
        reflect = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        with pytest.raises(grpc.RpcError) as error:
            list(reflect(iter([b"\x3a\x00"])))
        assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
        limited = [call("/restkv.v1.Inference/Generate", prompt, [("authorization", "Bearer sk-bob-secret")], stream=True)
                   for _ in range(3)]
        assert limited == ["OK", "OK", "RESOURCE_EXHAUSTED"]


@pytest.mark.parametrize(("flags", "environment", "expected"), [
    (["--api-key", "sk-a-secret-key"], {}, "env:NAME"),
    (["--api-key", "env:NO_SUCH_VARIABLE"], {}, "is not set"),
    (["--host", "0.0.0.0"], {}, "RESTKV_API_KEY"),
    (["--grpc-host", "0.0.0.0"], {}, "RESTKV_API_KEY"),
    (["--host", "0.0.0.0"], {"RESTKV_API_KEY": "short"}, "8 to 512"),
])
def test_refused_at_start(binary, stories_model, flags, environment, expected):
    done = run_restkv("serve", stories_model, "--port", 0, *flags, environment=environment)
    assert done.returncode == 2 and expected in done.stderr, done.stderr
    assert "secret" not in done.stderr


def test_container_rules(start_server, stories_model, monkeypatch):
    """As an image starts it: every address, and the key or the permission from the environment."""
    plain = conftest.clean_environment
    monkeypatch.setattr(conftest, "clean_environment", lambda: plain() | {"RESTKV_API_KEY": "sk-container-secret"})
    server = start_server(stories_model, "--host", "0.0.0.0")
    assert server.request("GET", "/v1/models", headers={"Authorization": "Bearer sk-container-secret"})[0] == 200
    assert server.request("GET", "/v1/models")[0] == 401
    assert server.request("GET", "/metrics")[0] == 401, "not loopback: /metrics needs the key"
    assert server.request("GET", "/health")[0] == 200
    monkeypatch.setattr(conftest, "clean_environment", lambda: plain() | {"RESTKV_INSECURE": "1"})
    server = start_server(stories_model, "--host", "0.0.0.0")
    assert server.request("GET", "/v1/models")[0] == 200


def test_the_documented_key_file(start_server, stories_model, tmp_path):
    """The YAML block of README's section on keys."""
    readme = (conftest.ROOT / "README.md").read_text(encoding="utf-8")
    path = tmp_path / "keys.yaml"
    path.write_text(readme.split("## API keys")[1].split("```yaml\n")[1].split("```")[0])
    server = start_server(stories_model, "--api-key", path)
    assert server.request("GET", "/v1/models", headers={"Authorization": "Bearer sk-alice-change-me"})[0] == 200
    assert server.request("GET", "/v1/models")[0] == 401

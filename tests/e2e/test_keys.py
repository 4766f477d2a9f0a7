"""API keys against the real binary: who is let in where, limits, reloads, what is refused at start."""

import json
import signal
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
    keyed.wait_for_log("the ones before stay")
    assert f"{path}:15:5: unknown key 'ratee'" in server.output()
    assert keyed.complete("erin")[0] == 200
    path.write_text("")
    keyed.wait_for_log("no API key in it")
    assert keyed.complete("erin")[0] == 200
    path.unlink()
    server.process.send_signal(signal.SIGHUP)
    keyed.wait_for_log("names no file")
    assert keyed.complete("erin")[0] == 200 and keyed.complete(None)[0] == 401
    assert server.stop() == 0


def test_a_reload_drops_no_request(keyed):
    import threading
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

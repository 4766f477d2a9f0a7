"""The verbs around a server: doctor, healthcheck, completion; and the flags of vLLM and llama.cpp."""

import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import threading

import pytest
from conftest import BINARY, run_restkv
from test_cli import expect_failure

pytestmark = pytest.mark.usefixtures("binary")


# --- doctor ---

def doctor(*arguments, expected=0, **environment):
    done = run_restkv("doctor", "--json", *arguments, environment=environment)
    assert done.returncode == expected, (done.stdout, done.stderr)
    report = json.loads(done.stdout)
    assert report["ok"] == (expected == 0)
    for check in report["checks"]:
        assert check["level"] in ("ok", "warn", "fail") and check["found"]
        assert bool(check["todo"]) == (check["level"] != "ok"), check
    return {check["name"]: check for check in report["checks"]}


def test_doctor(tmp_path):
    checks = doctor("--port", "0", HF_HOME=str(tmp_path))
    assert {"settings", "processor", "memory", "port", "files", "model cache", "certificates", "models"} <= set(checks)
    assert any(name.startswith("gpu") for name in checks)
    assert str(tmp_path) in checks["model cache"]["found"]
    text = run_restkv("doctor", "--port", "0", environment={"HF_HOME": str(tmp_path)}).stdout
    for name in checks:
        assert re.search(rf"^(ok|warn|fail) +{name} ", text, re.MULTILINE), (name, text)


def test_doctor_finds_what_is_wrong(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        checks = doctor("--port", str(taken.getsockname()[1]), expected=1)
    assert checks["port"]["level"] == "fail" and "--port" in checks["port"]["todo"]
    checks = doctor("/no/such/model.gguf", "--port", "0", expected=1)
    assert checks["model"]["level"] == "fail" and "/no/such/model.gguf" in checks["model"]["found"]
    config = tmp_path / "bad.yaml"
    config.write_text("version: 1\nserver:\n  prot: 1\n")
    checks = doctor("--config", config, "--port", "0", expected=1)
    assert checks["settings"]["level"] == "fail" and "bad.yaml:3:3" in checks["settings"]["found"]
    checks = doctor("--host", "0.0.0.0", "--port", "0", expected=1)
    assert "0.0.0.0" in checks["settings"]["found"]
    expect_failure(run_restkv("doctor", "--prot", "1"), 2, "--port")


def test_doctor_of_a_model(stories_model, tmp_path):
    assert str(stories_model) in doctor(stories_model, "--port", "0")["model"]["found"]
    checks = doctor("org/absent", "--port", "0", HF_HOME=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9")
    assert checks["model"]["level"] == "warn" and "restkv pull org/absent" in checks["model"]["todo"]


def test_doctor_warns_of_few_files(tmp_path):
    done = subprocess.run(["bash", "-c", f"ulimit -n 256; exec {BINARY} doctor --json --port 0"], capture_output=True, text=True,
                          check=False, timeout=60)
    (files,) = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "files"]
    assert files["level"] == "warn" and "256" in files["found"] and "ulimit -n" in files["todo"]


# --- healthcheck ---

def test_healthcheck(server):
    done = run_restkv("healthcheck", server.url)
    assert (done.returncode, done.stdout) == (0, "ready\n")
    assert run_restkv("healthcheck", "--port", server.port).returncode == 0
    assert run_restkv("healthcheck", environment={"RESTKV_PORT": str(server.port)}).returncode == 0
    # Not by a proxy, whatever the environment says.
    assert run_restkv("healthcheck", server.url, environment={"http_proxy": "http://127.0.0.1:9"}).returncode == 0


def test_healthcheck_of_what_is_not_ready():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        expect_failure(run_restkv("healthcheck", "--port", closed.getsockname()[1]), 1, "not ready")
    expect_failure(run_restkv("healthcheck", "localhost"), 2, "URL")

    class Draining(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(503)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Draining) as draining:
        threading.Thread(target=draining.handle_request, daemon=True).start()
        done = run_restkv("healthcheck", f"http://127.0.0.1:{draining.server_address[1]}/")
    expect_failure(done, 1, "not ready", "503")


# --- completion ---

def complete_in_bash(*words):
    """What bash offers for the last word."""
    script = ('source <("$0" completion bash)\nCOMP_WORDS=("$@")\nCOMP_CWORD=$(($# - 1))\n_restkv\nprintf "%s\\n" "${COMPREPLY[@]}"\n')
    done = subprocess.run(["bash", "-c", script, BINARY, *words], capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.split()


def test_completion_in_bash():
    assert {"serve", "pull", "doctor", "completion"} <= set(complete_in_bash("restkv", ""))
    assert complete_in_bash("restkv", "ser") == ["serve"]
    assert complete_in_bash("restkv", "serve", "--max-model") == ["--max-model-len"]
    assert complete_in_bash("restkv", "serve", "--log-format", "") == ["text", "json"]
    assert complete_in_bash("restkv", "completion", "z") == ["zsh"]
    assert complete_in_bash("restkv", "serve", "de")[0] == "demo"
    assert "--port" not in complete_in_bash("restkv", "tokenize", "--")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_of_other_shells(shell):
    script = run_restkv("completion", shell)
    assert script.returncode == 0
    for word in ("serve", "max-model-len", "log-format"):
        assert word in script.stdout
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed: its syntax is not checked")
    done = subprocess.run([shell, "-n"], input=script.stdout, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr


def test_completion_of_an_unknown_shell():
    expect_failure(run_restkv("completion", "tcsh"), 2, "bash, zsh or fish")


# --- vLLM's and llama.cpp's flags ---

@pytest.mark.parametrize("flags, key, value", [
    (["--gpu-memory-utilization", "0.7"], "memory_fraction", "0.7"),
    (["-c", "32k"], "max_model_len", "32000"), (["--ctx-size", "32K"], "max_model_len", "32768"),
    (["-np", "8"], "max_num_seqs", "8"), (["--max_num_seqs=9"], "max_num_seqs", "9"),
    (["-m", "demo"], "path", "demo"), (["-hf", "org/repo:Q4_K_M"], "path", "org/repo:Q4_K_M"),
    (["-a", "name"], "served_model_name", "name"), (["--alias", "name"], "served_model_name", "name"),
    (["--kv-cache-dtype", "f16"], "dtype", "f16"), (["-t", "2"], "threads", "2"), (["-b", "1k"], "max_num_batched_tokens", "1000")])
def test_aliases(flags, key, value):
    done = run_restkv("config", "show", *flags)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^ +{key}: ['\"]?{re.escape(value)}['\"]? ", done.stdout, re.MULTILINE), (key, done.stdout)


@pytest.mark.parametrize("flags", [
    ["--jinja"], ["--metrics"], ["--enable-prefix-caching"], ["--generation-config", "auto"], ["--enable-chunked-prefill"], ["--dtype", "auto"], ["-fa", "on"], ["--flash-attn=auto"], ["-cb"],
    ["--tensor-parallel-size", "1"], ["--no-context-shift"], ["--swap_space", "0"], ["-ngl", "99"], ["--gpu-layers", "all"]])
def test_flags_that_say_what_is_so_anyway(flags):
    done = run_restkv("config", "show", *flags)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("flags, word", [
    (["-ngl", "20"], "one device"), (["--n-gpu-layers=0"], "--device cpu"), (["--dtype", "float16"], "only auto"),
    (["--quantization", "awq"], "ORG/REPO:Q4_K_M"), (["--no-enable-prefix-caching"], "--prefix-fraction 0"), (["--tensor-parallel-size", "2"], "only 1"), (["--no-jinja"], "Jinja"),
    (["--trust-remote-code"], "never run"), (["--hf-token", "hf_secret"], "HF_TOKEN"), (["--context-shift"], "budget"),
    (["--ssl-keyfile", "x"], "reverse proxy"), (["-fa", "off"], "only on"), (["--dtype"], "only auto")])
def test_flags_that_cannot_be_honoured(flags, word):
    done = run_restkv("serve", "demo", *flags)
    expect_failure(done, 2, flags[0].split("=")[0], "cannot be honoured", word)
    assert "hf_secret" not in done.stderr


# --- the service manager ---

@pytest.mark.parametrize("is_abstract", [False, True], ids=["path", "abstract"])
def test_service_manager_is_told(start_server, stories_model, tmp_path, monkeypatch, is_abstract):
    """sd_notify: ready when it listens, stopping when it drains."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"@restkv-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
        manager.bind(name.replace("@", "\0"))
        manager.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        server = start_server(stories_model)
        assert manager.recv(4096).decode().split("\n") == ["READY=1", f"STATUS={server.url}"]
        assert server.stop() == 0
        assert manager.recv(4096) == b"STOPPING=1"


def test_service_manager_that_is_gone(start_server, stories_model, tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    server = start_server(stories_model)
    assert "NOTIFY_SOCKET" in server.output()
    assert server.stop() == 0


def test_config_show_hides_what_may_be_a_key(binary, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("sk-one\n")
    (tmp_path / "literal.yaml").write_text("version: 1\nserver:\n  api_key: sk-literal\n")
    shown = run_restkv("config", "show", "--config", tmp_path / "literal.yaml")
    assert shown.returncode == 0
    assert "sk-literal" not in shown.stdout + shown.stderr
    assert "api_key: '(not shown" in shown.stdout
    assert f"api_key: '{keys}'" in run_restkv("config", "show", "--api-key", keys).stdout

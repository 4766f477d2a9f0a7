"""What is in the hub's cache: serving from it, offline too, ls, rm, and the same for Hugging Face's own tools (fake_hub.py)."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from conftest import BINARY, clean_environment, run_restkv
from fake_hub import git_sha1
from hub_case import GGUFS, SMALL, assert_complete, list_models, pull, snapshot_of
from test_cli import expect_failure

pytestmark = pytest.mark.usefixtures("binary")


# --- serving, offline ---

@pytest.fixture
def stories_hub(hub, stories_model):
    hub.add("tiny-org/stories", {"stories-F32.gguf": stories_model.read_bytes()})
    return hub


def test_complete_from_the_hub_and_offline(stories_hub, tmp_path):
    def complete(**environment):
        return run_restkv("complete", "tiny-org/stories", "Once upon", "--max-tokens", "4", timeout=60,
                          environment=stories_hub.environment(tmp_path, **environment))
    expect_failure(complete(HF_HUB_OFFLINE="1"), 1, "not in the cache", "restkv pull tiny-org/stories")
    assert not stories_hub.log
    online = complete()
    assert online.returncode == 0, online.stderr
    requests = len(stories_hub.log)
    offline = complete(HF_HUB_OFFLINE="1")
    assert offline.returncode == 0 and offline.stdout == online.stdout
    assert len(stories_hub.log) == requests
    # The hub goes away: what is in the cache serves, and says so.
    gone = complete(HF_ENDPOINT="http://127.0.0.1:9")
    assert gone.returncode == 0 and gone.stdout == online.stdout
    assert "cannot be reached" in gone.stderr and "cache" in gone.stderr
    expect_failure(run_restkv("pull", "tiny-org/stories", environment=stories_hub.environment(tmp_path, HF_HUB_OFFLINE="1")), 1,
                   "HF_HUB_OFFLINE")
    expect_failure(run_restkv("complete", "tiny-org/stories:Q8_0", environment=stories_hub.environment(tmp_path, HF_HUB_OFFLINE="1")),
                   1, "Q8_0")


def test_serve_from_the_hub(stories_hub, tmp_path, start_server, monkeypatch):
    for name, value in stories_hub.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    server = start_server("tiny-org/stories:F32")
    assert server.model_id == "tiny-org/stories:F32"
    assert server.complete("Once upon", max_tokens=2)["usage"]["completion_tokens"] == 2
    assert server.get_json("/v1/models/tiny-org/stories:F32")["id"] == server.model_id


def test_a_folder_of_that_name_wins(stories_hub, stories_model, tmp_path):
    (tmp_path / "tiny-org").mkdir()
    shutil.copy(stories_model, tmp_path / "tiny-org" / "stories")
    done = run_restkv("inspect", "tiny-org/stories", cwd=tmp_path, environment=stories_hub.environment(tmp_path))
    assert done.returncode == 0, done.stderr
    assert not stories_hub.log


# --- ls, rm ---

def test_ls(hub, tmp_path):
    assert list_models(hub, tmp_path)["models"] == []
    repo = hub.add("org/tiny", SMALL)
    pull(hub, tmp_path, "org/tiny")
    hub.add("org/ggufs", GGUFS)
    for quant in ("Q8_0", "Q4_0"):
        pull(hub, tmp_path, f"org/ggufs:{quant}")
    (tmp_path / "hub" / "datasets--org--x").mkdir()
    (tmp_path / "hub" / "models--..--x").mkdir()
    found = list_models(hub, tmp_path)
    assert found["cache"] == str(tmp_path / "hub")
    ggufs, tiny = found["models"]
    assert (tiny["repo"], tiny["commit"], tiny["refs"]) == ("org/tiny", repo.commit, ["main"])
    assert tiny["size"] == sum(len(SMALL[name]) for name in tiny["files"])
    assert sorted(ggufs["quants"]) == ["Q4_0", "Q8_0"]
    text = run_restkv("ls", environment=hub.environment(tmp_path, XDG_CACHE_HOME=str(tmp_path / "none"))).stdout
    assert "org/tiny" in text and repo.commit[:8] in text and "main" in text


def test_rm(hub, tmp_path):
    hub.add("org/tiny", SMALL)
    environment = hub.environment(tmp_path)
    pull(hub, tmp_path, "org/tiny")
    expect_failure(run_restkv("rm", "org/other", "--yes", environment=environment), 1, "org/other", "not in the cache")
    expect_failure(run_restkv("rm", "org/tiny", environment=environment), 2, "--yes")
    assert len(list_models(hub, tmp_path)["models"]) == 1
    done = run_restkv("rm", "org/tiny", "--yes", environment=environment)
    assert done.returncode == 0 and "removed org/tiny" in done.stderr
    assert list_models(hub, tmp_path)["models"] == []
    assert not (tmp_path / "hub" / "models--org--tiny").exists()


def test_rm_keeps_what_another_snapshot_needs(hub, tmp_path):
    environment = hub.environment(tmp_path)
    first = hub.add("org/tiny", SMALL)
    pull(hub, tmp_path, "org/tiny", "--revision", first.commit)
    second = hub.add("org/tiny", SMALL | {"config.json": b'{"model_type": "gemma"}'})
    pull(hub, tmp_path, "org/tiny")
    blobs = tmp_path / "hub" / "models--org--tiny" / "blobs"
    assert len(list(blobs.iterdir())) == 4
    assert run_restkv("rm", "org/tiny", "--revision", first.commit, "-y", environment=environment).returncode == 0
    assert sorted(path.name for path in blobs.iterdir()) == sorted(
        second.digest(name) for name in ("config.json", "model.safetensors", "tokenizer.json"))
    assert_complete(hub, tmp_path, "org/tiny", ["config.json", "model.safetensors", "tokenizer.json"])
    # main goes by its name, and the folder with its last snapshot.
    assert run_restkv("rm", "org/tiny", "--revision", "main", "-y", environment=environment).returncode == 0
    assert not blobs.exists()


def test_rm_of_one_type(hub, tmp_path):
    environment = hub.environment(tmp_path)
    hub.add("org/ggufs", GGUFS)
    for quant in ("Q8_0", "Q4_0"):
        pull(hub, tmp_path, f"org/ggufs:{quant}")
    expect_failure(run_restkv("rm", "org/ggufs:Q6_K", "-y", environment=environment), 1, "Q6_K")
    assert run_restkv("rm", "org/ggufs:q8_0", "-y", environment=environment).returncode == 0
    (left,) = list_models(hub, tmp_path)["models"]
    assert left["quants"] == ["Q4_0"]
    assert len(list((tmp_path / "hub" / "models--org--ggufs" / "blobs").iterdir())) == 1


def test_rm_does_not_follow_links_out(hub, tmp_path):
    hub.add("org/tiny", SMALL)
    pull(hub, tmp_path, "org/tiny")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x")
    repo = tmp_path / "hub" / "models--org--tiny"
    (repo / "snapshots" / ("b" * 40)).symlink_to(outside)
    (snapshot_of(tmp_path, "org/tiny", hub.repos["org/tiny"].commit) / "link").symlink_to(outside)
    assert run_restkv("rm", "org/tiny", "-y", environment=hub.environment(tmp_path)).returncode == 0
    assert (outside / "precious").exists() and not repo.exists()


# --- shared with Hugging Face's own tools ---

def test_cache_is_huggingface_hubs(hub, tmp_path):
    """What restkv pulled is complete for huggingface_hub, and the reverse."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (tests/requirements.txt)")
    program = ("import sys, huggingface_hub as h\n"
               "print(h.snapshot_download('org/tiny', allow_patterns=['*.json', 'model.safetensors'], "
               "local_files_only=sys.argv[1] == 'offline'))\n"
               "print([(r.repo_id, r.size_on_disk, sorted(next(iter(r.revisions)).refs)) for r in h.scan_cache_dir().repos])\n")

    def python(mode, home):
        environment = clean_environment() | hub.environment(home)  # an empty variable is one to Python
        done = subprocess.run([sys.executable, "-c", program, mode], capture_output=True, text=True, timeout=60, check=False,
                              env={name: value for name, value in environment.items() if value})
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    repo = hub.add("org/tiny", {name: content for name, content in SMALL.items() if "/" not in name})
    ours = pull(hub, tmp_path / "a", "org/tiny").stdout.strip()
    size = sum(len(SMALL[name]) for name in ("config.json", "tokenizer.json", "model.safetensors"))
    assert python("offline", tmp_path / "a") == [ours, f"[('org/tiny', {size}, ['main'])]"]
    theirs = python("online", tmp_path / "b")[0]
    assert git_sha1(SMALL["config.json"]) in os.readlink(f"{theirs}/config.json")
    hub.store_log.clear()
    done = pull(hub, tmp_path / "b", "org/tiny")
    assert done.stdout.strip() == theirs and not hub.store_log
    assert_complete(hub, tmp_path / "b", "org/tiny", ["config.json", "model.safetensors", "tokenizer.json"])
    assert list_models(hub, tmp_path / "b")["models"][0]["commit"] == repo.commit


def test_readiness_while_the_model_comes(hub, tmp_path, stories_model):
    """The port answers from the first moment: alive, not ready, nothing else; then the same port serves."""
    hub.add("org/tiny", {"tiny-F32.gguf": stories_model.read_bytes()})
    hub.bytes_per_second = 1 << 20  # a good second
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    seen = []

    def get(path):
        try:
            with urllib.request.urlopen(url + path, timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except urllib.error.URLError:
            return 0, None

    log = tmp_path / "log"
    with log.open("wb") as output, subprocess.Popen(
            [BINARY, "serve", "org/tiny", "--port", str(port), "--grpc-port", "0"], stdout=output, stderr=output,
            env=clean_environment() | hub.environment(tmp_path)) as process:
        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and (not seen or seen[-1] != 200):
                status, body = get("/health/ready")
                seen.append(status)
                if status == 503:
                    assert body["error"]["code"] == "loading"
                    assert get("/health/live")[0] in (200, 0) and get("/v1/models")[0] in (503, 200, 0)
                    if seen.count(503) == 1:
                        done = run_restkv("healthcheck", url)
                        assert done.returncode == 1 and "503" in done.stderr
                time.sleep(0.02)
            assert seen.count(503) >= 5 and seen[-1] == 200, (seen, log.read_text())
            assert 0 not in seen[seen.index(503):], "nobody was refused in between"
            assert get("/v1/models")[1]["data"][0]["id"] == "org/tiny"
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0

"""restkv pull, ls, rm and `serve ORG/REPO` against a fake hub on loopback (fake_hub.py). No test reaches the network."""

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from conftest import BINARY, clean_environment, run_restkv
from fake_hub import FakeHub, git_sha1
from test_cli import expect_failure

pytestmark = pytest.mark.usefixtures("binary")

SMALL = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "README.md": b"# read me\n",
         "model.safetensors": random.Random(1).randbytes(300_000), "onnx/model.onnx": b"not ours"}
GGUFS = {f"Tiny-{quant}.gguf": quant.encode() * 1000 for quant in ("Q8_0", "Q4_K_M", "Q4_0", "IQ4_XS")}


@pytest.fixture
def hub():
    with FakeHub() as one:
        yield one


def pull(hub, home, name, *flags, expected=0, **environment):
    done = run_restkv("pull", name, *flags, environment=hub.environment(home, **environment))
    assert done.returncode == expected, (done.returncode, done.stdout, done.stderr)
    return done


def snapshot_of(home, name, commit):
    return home / "hub" / ("models--" + name.replace("/", "--")) / "snapshots" / commit


def assert_complete(hub, home, name, files):
    """The files are there, as links into blobs/, with the right content; nothing incomplete is left."""
    repo = hub.repos[name]
    folder = snapshot_of(home, name, repo.commit)
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()) == sorted(files)
    for file in files:
        path = folder / file
        assert path.is_symlink() and not os.readlink(path).startswith("/")
        assert path.resolve() == folder.parents[1] / "blobs" / repo.digest(file)
        assert path.read_bytes() == repo.files[file]
    assert not list((folder.parents[1] / "blobs").glob("*.incomplete"))
    assert (folder.parents[1] / "refs" / "main").read_text() == repo.commit


# --- pull ---

def test_safetensors_repository(hub, tmp_path):
    hub.add("org/tiny", SMALL)
    done = pull(hub, tmp_path, "org/tiny")
    wanted = ["config.json", "model.safetensors", "tokenizer.json"]
    assert_complete(hub, tmp_path, "org/tiny", wanted)
    assert done.stdout == f"{snapshot_of(tmp_path, 'org/tiny', hub.repos['org/tiny'].commit)}\n"
    assert "model.safetensors" in done.stderr and "complete" in done.stderr
    assert "\x1b" not in done.stderr, "no terminal, no bars"
    # The second time nothing is downloaded.
    before = len(hub.log) + len(hub.store_log)
    pull(hub, tmp_path, "org/tiny")
    assert len(hub.log) + len(hub.store_log) == before + 1


def test_shards_are_those_of_the_index(hub, tmp_path):
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors",
                        "c": "model-00001-of-00002.safetensors"}}).encode(),
        "model-00001-of-00002.safetensors": b"1" * 5000, "model-00002-of-00002.safetensors": b"2" * 7000,
        "consolidated.safetensors": b"3" * 9000, "tokenizer.model": b"pieces", "chat_template.jinja": b"{{ 1 }}"}
    hub.add("org/sharded", files)
    pull(hub, tmp_path, "org/sharded")
    assert_complete(hub, tmp_path, "org/sharded", [name for name in files if name != "consolidated.safetensors"])


def test_index_that_names_a_missing_or_outside_file(hub, tmp_path):
    for shard, word in (("model-00009.safetensors", "model-00009"), ("../../../x", "out of its folder")):
        index = json.dumps({"weight_map": {"a": shard}}).encode()
        hub.add("org/bad", {"config.json": b"{}", "model.safetensors.index.json": index})
        expect_failure(pull(hub, tmp_path, "org/bad", expected=1), 1, word, "index.json")


@pytest.mark.parametrize("name, file", [
    ("org/ggufs", "Tiny-Q4_K_M.gguf"), ("org/ggufs:Q8_0", "Tiny-Q8_0.gguf"), ("org/ggufs:q4_0", "Tiny-Q4_0.gguf"),
    ("org/ggufs:Tiny-IQ4_XS.gguf", "Tiny-IQ4_XS.gguf")])
def test_gguf_by_type(hub, tmp_path, name, file):
    hub.add("org/ggufs", GGUFS | {"config.json": b"{}", "mmproj-F16.gguf": b"vision"})
    done = pull(hub, tmp_path, name)
    assert_complete(hub, tmp_path, "org/ggufs", [file])
    assert done.stdout.endswith(f"/{file}\n")


def test_all_parts_of_a_split_gguf(hub, tmp_path):
    parts = [f"Q8_0/Big-Q8_0-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    hub.add("org/split", {part: part.encode() * 1000 for part in parts} | {"Big-Q4_0.gguf": b"one"})
    done = pull(hub, tmp_path, "org/split:Q8_0")
    assert_complete(hub, tmp_path, "org/split", parts)
    assert done.stdout.endswith(f"/{parts[0]}\n")
    (row,) = list_models(hub, tmp_path)["models"]
    assert row["quants"] == ["Q8_0"] and len(row["files"]) == 3
    done = run_restkv("rm", "org/split:Q8_0", "--yes", environment=hub.environment(tmp_path))
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "hub").rglob("*.gguf"))


@pytest.mark.parametrize("name, words", [
    ("org/ggufs:Q5_K_M", ["Q5_K_M", "Q4_0", "Q4_K_M", "Q8_0", "IQ4_XS"]),
    ("org/split:Q4_K_M", ["one of 3 parts", "Big-Q4_K_M-00003-of-00003.gguf' is not there"]),
    ("org/torch", ["pytorch_model.bin", "safetensors"]),
    ("org/tiny:Q4_0", ["no .gguf file"]),
    ("org/twins:Q4_0", ["several", "A-Q4_0.gguf", "B-Q4_0.gguf"]),
    ("org/unnamed", ["one.gguf", "two.gguf"])])
def test_what_cannot_be_chosen(hub, tmp_path, name, words):
    hub.add("org/ggufs", GGUFS)
    hub.add("org/split", {f"Big-Q4_K_M-0000{i}-of-00003.gguf": b"x" for i in (1, 2)})
    hub.add("org/torch", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    hub.add("org/tiny", SMALL)
    hub.add("org/twins", {"A-Q4_0.gguf": b"a", "B-Q4_0.gguf": b"b"})
    hub.add("org/unnamed", {"one.gguf": b"1", "two.gguf": b"2"})
    expect_failure(pull(hub, tmp_path, name, expected=1), 1, name.split(":")[0], *words)
    assert not hub.store_log


@pytest.mark.parametrize("name", ["org", "org/repo/more", "../repo", "org/..", "-org/repo", "org/repo:", "org/a--b", "org/repo:../x",
                                  "org/re po", "org/" + "a" * 97])
def test_names_that_are_none(hub, tmp_path, name):
    expect_failure(run_restkv("pull", "--", name, environment=hub.environment(tmp_path)), 2, "'")
    assert not hub.log and not list(tmp_path.iterdir())


# --- bad networks ---

@pytest.mark.parametrize("honours_ranges", [True, False], ids=["ranges", "no ranges"])
def test_cut_connections_are_resumed(hub, tmp_path, honours_ranges):
    hub.add("org/tiny", SMALL)
    hub.honours_ranges = honours_ranges
    hub.cuts["model.safetensors"] = [100_000, 50_000] if honours_ranges else [100_000]
    done = pull(hub, tmp_path, "org/tiny")
    assert_complete(hub, tmp_path, "org/tiny", ["config.json", "model.safetensors", "tokenizer.json"])
    assert "trying again" in done.stderr
    ranges = [headers.get("Range") for _, headers in hub.downloads("model.safetensors")]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"][:2 + honours_ranges]


@pytest.mark.slow
def test_a_server_without_ranges_that_always_cuts_is_given_up(hub, tmp_path):
    hub.add("org/tiny", SMALL)
    hub.honours_ranges = False
    hub.cuts["model.safetensors"] = [200_000, 100_000] * 20
    expect_failure(pull(hub, tmp_path, "org/tiny", expected=1), 1, "given up after 5 tries")
    assert len(hub.downloads("model.safetensors")) < 10


def test_killed_download_goes_on_where_it_was(hub, tmp_path):
    hub.add("org/tiny", SMALL)
    hub.bytes_per_second = 200_000
    process = subprocess.Popen([BINARY, "pull", "org/tiny"], env=clean_environment() | hub.environment(tmp_path),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    blobs = snapshot_of(tmp_path, "org/tiny", "x").parents[1] / "blobs"
    partial = blobs / (hub.repos["org/tiny"].digest("model.safetensors") + ".incomplete")
    deadline = time.monotonic() + 20
    while not (partial.is_file() and partial.stat().st_size > 20_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    size = partial.stat().st_size
    assert 20_000 < size < 300_000
    hub.bytes_per_second = 0
    hub.store_log.clear()
    pull(hub, tmp_path, "org/tiny")
    assert [headers["Range"] for _, headers in hub.downloads("model.safetensors")] == [f"bytes={size}-"]
    assert_complete(hub, tmp_path, "org/tiny", ["config.json", "model.safetensors", "tokenizer.json"])


def test_wrong_rest_of_an_earlier_try(hub, tmp_path):
    repo = hub.add("org/tiny", SMALL)
    blobs = snapshot_of(tmp_path, "org/tiny", "x").parents[1] / "blobs"
    blobs.mkdir(parents=True)
    for rest in (b"x" * 1000, b"y" * 400_000, SMALL["model.safetensors"]):
        (blobs / (repo.digest("model.safetensors") + ".incomplete")).write_bytes(rest)
        pull(hub, tmp_path, "org/tiny")
        assert_complete(hub, tmp_path, "org/tiny", ["config.json", "model.safetensors", "tokenizer.json"])
        shutil.rmtree(snapshot_of(tmp_path, "org/tiny", repo.commit))
        (blobs / repo.digest("model.safetensors")).unlink()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"], ids=["sha256", "git"])
def test_wrong_hash(hub, tmp_path, file):
    repo = hub.add("org/tiny", SMALL)
    hub.wrong_content[file] = bytes(len(SMALL[file]))
    done = pull(hub, tmp_path, "org/tiny", expected=1)
    expect_failure(done, 1, file, "hash")
    blobs = snapshot_of(tmp_path, "org/tiny", "x").parents[1] / "blobs"
    assert not list(blobs.glob(repo.digest(file) + "*"))
    assert not (blobs.parent / "refs" / "main").exists()


def test_longer_than_the_hub_said(hub, tmp_path):
    hub.add("org/tiny", SMALL)
    hub.wrong_content["model.safetensors"] = SMALL["model.safetensors"] + b"x" * 100_000
    expect_failure(pull(hub, tmp_path, "org/tiny", expected=1), 1, "model.safetensors", "more than the 300000 bytes")


def test_shorter_than_the_hub_said(hub, tmp_path):
    hub.add("org/tiny", SMALL)
    hub.wrong_content["model.safetensors"] = SMALL["model.safetensors"][:1000]
    expect_failure(pull(hub, tmp_path, "org/tiny", expected=1), 1, "model.safetensors")


def test_server_that_is_busy_for_a_while(hub, tmp_path):
    hub.add("org/tiny", SMALL)
    hub.answers_503 = 2
    pull(hub, tmp_path, "org/tiny")


def test_stalled_connection_is_cut(hub, tmp_path):
    hub.add("org/tiny", SMALL)
    hub.cuts["model.safetensors"] = [100_000]
    hub.stalls = True
    start = time.monotonic()
    done = pull(hub, tmp_path, "org/tiny", HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert "trying again" in done.stderr
    assert time.monotonic() - start < 15
    assert_complete(hub, tmp_path, "org/tiny", ["config.json", "model.safetensors", "tokenizer.json"])


def test_no_network(tmp_path, hub):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        start = time.monotonic()
        for verb in (["pull", "org/tiny"], ["serve", "org/tiny", "--port", "0"], ["inspect", "org/tiny"]):
            done = run_restkv(*verb, environment=hub.environment(tmp_path, HF_ENDPOINT=url))
            expect_failure(done, 1, "cannot be reached", url)
        assert time.monotonic() - start < 5


def test_two_programs_at_once(hub, tmp_path):
    hub.add("org/tiny", SMALL)
    hub.bytes_per_second = 300_000
    results = []
    threads = [threading.Thread(target=lambda: results.append(pull(hub, tmp_path, "org/tiny"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert len(hub.downloads("model.safetensors")) == 1
    assert_complete(hub, tmp_path, "org/tiny", ["config.json", "model.safetensors", "tokenizer.json"])


# --- names, refusals, tokens ---

def test_repository_that_does_not_exist(hub, tmp_path):
    expect_failure(pull(hub, tmp_path, "org/nothing", expected=1), 1, "there is no org/nothing", "HF_TOKEN")
    expect_failure(pull(hub, tmp_path, "org/nothing", expected=1, HF_TOKEN=hub.token), 1, "there is no org/nothing")
    expect_failure(run_restkv("serve", "org/nothing", "--port", "0", environment=hub.environment(tmp_path)), 1, "there is no org/nothing")


def test_revisions(hub, tmp_path):
    repo = hub.add("org/tiny", SMALL)
    expect_failure(pull(hub, tmp_path, "org/tiny", "--revision", "v9", expected=1), 1, "v9", "no such revision")
    expect_failure(pull(hub, tmp_path, "org/tiny", "--revision", "../x", expected=1), 1, "../x")
    pull(hub, tmp_path, "org/tiny", "--revision", repo.commit)
    folder = snapshot_of(tmp_path, "org/tiny", repo.commit).parents[1]
    assert not list((folder / "refs").iterdir())
    pull(hub, tmp_path, "org/tiny", "--revision", "refs/pr/1")
    assert (folder / "refs" / "refs" / "pr" / "1").read_text() == repo.commit


def test_renamed_repository(hub, tmp_path):
    hub.add("org/new", SMALL)
    hub.renamed["org/old"] = "org/new"
    pull(hub, tmp_path, "org/old")
    assert (snapshot_of(tmp_path, "org/old", hub.repos["org/new"].commit) / "config.json").is_file()


@pytest.mark.parametrize("status, code", [(403, "GatedRepo"), (401, "GatedRepo"), (401, "")])
def test_gated_repository(hub, tmp_path, status, code):
    hub.add("org/gated", SMALL).refusal = (status, code)
    done = pull(hub, tmp_path, "org/gated", expected=1)
    expect_failure(done, 1, "org/gated", "HF_TOKEN", hub.url)
    pull(hub, tmp_path, "org/gated", HF_TOKEN=hub.token)


def test_wrong_token_and_where_tokens_come_from(hub, tmp_path):
    hub.add("org/gated", SMALL).refusal = (403, "GatedRepo")
    done = pull(hub, tmp_path, "org/gated", expected=1, HF_TOKEN="hf_wrongsecret")
    expect_failure(done, 1, "HF_TOKEN")
    assert "hf_wrongsecret" not in done.stderr
    (tmp_path / "token").write_text(hub.token + "\n")
    pull(hub, tmp_path, "org/gated")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("hf_wrongsecret")
    pull(hub, tmp_path / "2", "org/gated", expected=1, HF_TOKEN_PATH=str(elsewhere))
    elsewhere.write_text(hub.token)
    pull(hub, tmp_path / "2", "org/gated", HF_TOKEN_PATH=str(elsewhere))
    for token in ("two words", "new\nHeader: x"):
        done = pull(hub, tmp_path / "3", "org/gated", expected=1, HF_TOKEN=token)
        expect_failure(done, 1, "HF_TOKEN does not hold a token")


def test_token_stays_with_the_hub(hub, tmp_path):
    hub.add("org/tiny", SMALL)
    pull(hub, tmp_path, "org/tiny", HF_TOKEN=hub.token)
    assert hub.log and all(headers.get("Authorization") == f"Bearer {hub.token}" for _, headers in hub.log)
    assert hub.store_log and all("Authorization" not in headers for _, headers in hub.store_log)


def test_https_needs_a_certificate_that_is_trusted(tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("the program openssl is not installed")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                    "-subj", "/CN=hub", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
                   check=True, capture_output=True, timeout=60)
    with FakeHub((str(certificate), str(key))) as hub:
        hub.add("org/tiny", SMALL)
        pull(hub, tmp_path / "good", "org/tiny", SSL_CERT_FILE=str(certificate), HF_TOKEN=hub.token)
        assert_complete(hub, tmp_path / "good", "org/tiny", [name for name in SMALL if name not in ("README.md", "onnx/model.onnx")])
        assert all(headers.get("Authorization") == f"Bearer {hub.token}" for _, headers in hub.log)
        seen = len(hub.log)
        done = pull(hub, tmp_path / "bad", "org/tiny", expected=1)
        assert "certificate" in done.stderr and "SSL_CERT_FILE" in done.stderr
        assert len(hub.log) == seen, "nothing is asked of a server that cannot be trusted"
        # The store behind the hub must not be reached in the clear.
        with FakeHub() as plain:
            hub.redirect_override = f"{plain.store_url}/org/tiny/model.safetensors"
            pull(hub, tmp_path / "down", "org/tiny", expected=1, SSL_CERT_FILE=str(certificate))
            assert not plain.store_log


def test_proxy(hub, tmp_path):
    """The fake hub as its own proxy: what comes names an address that does not exist."""
    hub.add("org/tiny", SMALL)
    direct = {"HF_ENDPOINT": "http://hub.invalid", "HF_TOKEN": hub.token}
    pull(hub, tmp_path, "org/tiny", http_proxy=hub.url, **direct)
    assert_complete(hub, tmp_path, "org/tiny", [name for name in SMALL if name not in ("README.md", "onnx/model.onnx")])
    assert hub.log and all(path.startswith("http://hub.invalid/") for path, _ in hub.log)
    assert not any("Authorization" in headers for _, headers in hub.log + hub.store_log), "a token in the clear"
    pull(hub, tmp_path / "none", "org/tiny", expected=1, http_proxy=hub.url, NO_PROXY="hub.invalid", no_proxy="hub.invalid", **direct)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "LOOP"])
def test_redirects_to_nowhere_good(hub, tmp_path, target):
    repo = hub.add("org/tiny", SMALL)
    hub.redirect_override = f"{hub.url}/org/tiny/resolve/{repo.commit}/model.safetensors" if target == "LOOP" else target
    done = pull(hub, tmp_path, "org/tiny", expected=1, HF_HUB_DOWNLOAD_TIMEOUT="2")
    expect_failure(done, 1, "redirect")


@pytest.mark.parametrize(("status", "words"), [(404, "check the name"), (200, "too long"), (302, "redirect")])
def test_answers_without_an_end(hub, tmp_path, status, words):
    hub.add("org/tiny", SMALL)
    hub.endless_status = status
    expect_failure(run_restkv("pull", "org/tiny", environment=hub.environment(tmp_path), timeout=30), 1, words)


def test_signed_addresses_are_in_no_message(hub, tmp_path):
    hub.add("org/tiny", SMALL)
    hub.cuts["model.safetensors"] = [0] * 20
    done = pull(hub, tmp_path, "org/tiny", expected=1)
    assert "Signature" not in done.stderr and "secret" not in done.stderr
    expect_failure(done, 1, "given up")


@pytest.mark.parametrize("name", ["../evil.gguf", "/etc/evil.gguf", "a/../../evil.gguf", "a//evil.gguf", "./evil.gguf",
                                  "a\\..\\evil.gguf", "evil\x00.gguf", "evil\n.gguf", "", "x" * 300 + ".gguf"])
def test_file_names_that_are_attacks(hub, tmp_path, name):
    entry = {"rfilename": name, "size": 4, "lfs": {"sha256": hashlib.sha256(b"evil").hexdigest(), "size": 4}}
    hub.add("org/evil", {}).listing_override = json.dumps({"sha": "a" * 40, "siblings": [entry]}).encode()
    expect_failure(pull(hub, tmp_path, "org/evil", expected=1), 1, "the hub's answer")
    assert not [path for path in tmp_path.rglob("*evil*") if path.is_file()]
    assert len(hub.log) == 1


@pytest.mark.parametrize("listing", [
    b"", b"[]", b"<html>", b'{"sha": "../../x", "siblings": []}', b'{"sha": "' + b"a" * 40 + b'"}', b"[" * 100_000,
    json.dumps({"sha": "a" * 40, "siblings": [{"rfilename": "a.gguf", "size": -1, "blobId": "b" * 40}]}).encode(),
    json.dumps({"sha": "a" * 40, "siblings": [{"rfilename": "a.gguf", "size": 2**63, "blobId": "b" * 40}]}).encode(),
    json.dumps({"sha": "a" * 40, "siblings": [{"rfilename": "a.gguf", "size": 1, "blobId": "../" + "b" * 37}]}).encode(),
    json.dumps({"sha": "a" * 40, "siblings": [{"rfilename": "a.gguf", "size": 1, "blobId": "b" * 40}] * 2}).encode(),
    b'{"x": "' + b"y" * (33 << 20) + b'"}'],
    ids=["empty", "list", "page", "commit", "no files", "deep", "negative", "huge", "hash", "twice", "33 MiB"])
def test_answers_that_are_none(hub, tmp_path, listing):
    hub.add("org/odd", {}).listing_override = listing
    expect_failure(pull(hub, tmp_path, "org/odd", expected=1), 1, "the hub's answer")


def test_settings_that_are_none(hub, tmp_path):
    for name, value in (("HF_ENDPOINT", "huggingface.co"), ("HF_ENDPOINT", "file:///x"), ("HF_HUB_DOWNLOAD_TIMEOUT", "soon")):
        done = run_restkv("pull", "org/tiny", environment=hub.environment(tmp_path, **{name: value}))
        expect_failure(done, 1, name)


def test_no_room_and_no_rights(hub, tmp_path):
    listing = json.dumps({"sha": "a" * 40, "siblings": [
        {"rfilename": "a.gguf", "size": 1 << 43, "lfs": {"sha256": "c" * 64, "size": 1 << 43}}]}).encode()
    hub.add("org/big", {}).listing_override = listing
    expect_failure(pull(hub, tmp_path, "org/big", expected=1), 1, "a.gguf", "free")
    (tmp_path / "file").write_bytes(b"")
    hub.add("org/tiny", SMALL)
    expect_failure(pull(hub, tmp_path, "org/tiny", expected=1, HF_HUB_CACHE=str(tmp_path / "file")), 1, str(tmp_path / "file"))


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

def list_models(hub, home):
    done = run_restkv("ls", "--json", environment=hub.environment(home, XDG_CACHE_HOME=str(home / "none")))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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

"""restkv pull from a fake hub on loopback (fake_hub.py): which files, and over bad networks. No test reaches the network."""

import json
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest
from conftest import BINARY, clean_environment, run_restkv
from hub_case import GGUFS, SMALL, assert_complete, list_models, pull, snapshot_of
from test_cli import expect_failure

pytestmark = pytest.mark.usefixtures("binary")


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

"""Names, tokens, redirects and files that restkv pull refuses or is refused, on a fake hub (fake_hub.py)."""

import hashlib
import json
import shutil
import subprocess

import pytest
from conftest import run_restkv
from fake_hub import FakeHub
from hub_case import SMALL, assert_complete, pull, snapshot_of
from test_cli import expect_failure

pytestmark = pytest.mark.usefixtures("binary")


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

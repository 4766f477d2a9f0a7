"""What the tests of the hub share: small repositories, `restkv pull` from them and what it must leave. The fixture `hub` is conftest's."""

import json
import os
import random

from conftest import run_restkv

SMALL = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "README.md": b"# read me\n",
         "model.safetensors": random.Random(1).randbytes(300_000), "onnx/model.onnx": b"not ours"}
GGUFS = {f"Tiny-{quant}.gguf": quant.encode() * 1000 for quant in ("Q8_0", "Q4_K_M", "Q4_0", "IQ4_XS")}


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


def list_models(hub, home):
    done = run_restkv("ls", "--json", environment=hub.environment(home, XDG_CACHE_HOME=str(home / "none")))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

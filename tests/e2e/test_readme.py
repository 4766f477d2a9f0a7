"""Every block of README is run here, on the tiny model under the name that README uses, or README says beside it that it is not."""

import json
import re
import shlex
import subprocess
import sys

import pytest
import yaml
from conftest import BINARY, ROOT, Server, clean_environment, run_restkv

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
NOT_RUN = "Not run here"


def blocks() -> list[tuple[str, str, str]]:
    """(language, text, what stands between it and the block or heading before)."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found, end = [], 0
    for match in BLOCK.finditer(text):
        before = text[end:match.start()]
        found.append((match.group(1), match.group(2), before[max(0, before.rfind("\n## ")):]))
        end = match.end()
    return found


def to_run(language: str) -> list[str]:
    return [text for kind, text, before in blocks() if kind == language and NOT_RUN not in before]


def commands() -> list[str]:
    lines = "\n".join(to_run("sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)


@pytest.fixture(scope="module")
def demo(binary, stories_model, server_logs, tmp_path_factory):
    template = tmp_path_factory.mktemp("template") / "plain.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    running = Server(stories_model, server_logs / "readme.log", "--served-model-name", "demo", "--chat-template", template)
    yield running
    running.kill()


def test_nothing_is_left_out():
    kinds = {"curl", "build/release/bin/restkv", "restkv", "source", "./tools/quickstart.sh", "./tools/test.sh", "pip", "python"}
    assert {words(command)[0] for command in commands()} <= kinds, "a new kind of command: run it below"
    assert {language for language, _, _ in blocks()} == {"sh", "python", "yaml"}
    assert any(NOT_RUN in before and "docker run" in text for _, text, before in blocks())
    for script in ("quickstart.sh", "test.sh"):
        assert (ROOT / "tools" / script).stat().st_mode & 0o111


def test_curl(demo):
    """As they stand, but for the port; with a key that this server does not ask for."""
    run = [command.replace("http://127.0.0.1:8000", demo.url) for command in commands() if command.startswith("curl")]
    assert len(run) == 3
    for command in run:
        done = subprocess.run(["bash", "-c", f"{command} --silent --show-error --fail-with-body"], capture_output=True, text=True,
                              timeout=60, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert "error" not in json.loads(done.stdout)


def run_python(code: str, folder, **environment) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, cwd=folder,
                          env=clean_environment() | environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_python_over_http(demo, tmp_path):
    pytest.importorskip("openai", reason="openai is not installed")
    streamed, chat = [code for code in to_run("python") if "grpc" not in code]
    code = (streamed + "\nprint('|')\nprint(" + chat.strip() + ".choices[0].message.content)").replace("http://127.0.0.1:8000", demo.url)
    text, _, answer = run_python(code, tmp_path).partition("|")
    assert len(text.split()) > 4 and answer.strip()


def test_python_over_grpc(demo, tmp_path):
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    (make,) = [command for command in commands() if "grpc_tools" in command]
    arguments = words(make.replace("--proto_path=proto", f"--proto_path={ROOT / 'proto'}").replace(
        " proto/restkv", f" {ROOT / 'proto'}/restkv"))
    subprocess.run([sys.executable, *arguments[1:]], cwd=tmp_path, check=True, timeout=120)
    (code,) = [code for code in to_run("python") if "grpc" in code]
    assert len(run_python(code.replace("127.0.0.1:8001", demo.grpc_address), tmp_path).split()) > 2


def test_yaml(binary, tmp_path):
    """The settings are legal and are those of the file that they name; the block of keys is run in test_keys.py."""
    (text,) = [text for text in to_run("yaml") if "version: 1" in text]
    name = text.splitlines()[0].removeprefix("# ")
    (tmp_path / "serve.yaml").write_text(text)
    done = run_restkv("config", "check", tmp_path / "serve.yaml")
    assert done.returncode == 0, done.stderr
    shipped = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    for section, settings in yaml.safe_load(text).items():
        assert section == "version" or settings.items() <= shipped[section].items(), section


def test_restkv_commands(binary):
    """Each verb is one, each flag is one of its own; what the verbs do, their own tests say."""
    seen = set()
    for command in commands():
        command = command.replace("source <(restkv", "restkv").replace(")", "")
        parts = words(command)
        if parts[0].split("/")[-1] != "restkv":
            continue
        verb = parts[1]
        text = run_restkv("help", verb).stdout
        assert text.startswith(f"restkv {verb}") or f"restkv {verb}" in text, verb
        for part in parts[2:]:
            if part.startswith("--"):
                assert re.search(rf"{part}\b", text), (command, part)
        seen.add(verb)
    assert {"serve", "chat", "complete", "bench", "config", "pull", "doctor", "healthcheck"} <= seen
    assert BINARY.name == "restkv"

"""What is installed: program, manual page, completions, systemd unit, settings. The Debian package itself is a slow test."""

import gzip
import os
import re
import shutil
import subprocess

import pytest
import yaml
from conftest import BINARY, ROOT, run_restkv

BUILD = BINARY.parents[1]
PACKAGING = ROOT / "packaging"
pytestmark = pytest.mark.usefixtures("binary")


def run(*command, **more):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=600, **more)


def tool(name):
    path = shutil.which(name)
    if not path:
        pytest.skip(f"{name} is not installed")
    return path


@pytest.fixture(scope="session")
def installed(binary, tmp_path_factory):
    if not (BUILD / "packaging/made/restkv.1.gz").is_file():
        pytest.skip(f"{BUILD} has no package files (cmake --build {BUILD.name} --target restkv_package_files)")
    prefix = tmp_path_factory.mktemp("prefix")
    done = run("cmake", "--install", BUILD, "--prefix", prefix)
    assert done.returncode == 0, done.stderr
    return prefix


def test_installed_files(installed):
    files = sorted(str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file())
    assert files == ["bin/restkv", "etc/restkv/config.yaml", "lib/systemd/system/restkv.service", "lib/sysusers.d/restkv.conf",
                     "share/bash-completion/completions/restkv", "share/doc/restkv/README.md", "share/doc/restkv/copyright",
                     "share/fish/vendor_completions.d/restkv.fish", "share/man/man1/restkv.1.gz", "share/restkv/schema.json",
                     "share/zsh/vendor-completions/_restkv"]
    assert run(installed / "bin/restkv", "version").stdout == run_restkv("version").stdout
    for shell, name in [("bash", "bash-completion/completions/restkv"), ("zsh", "zsh/vendor-completions/_restkv"),
                        ("fish", "fish/vendor_completions.d/restkv.fish")]:
        assert (installed / "share" / name).read_text() == run_restkv("completion", shell).stdout
    with gzip.open(installed / "share/man/man1/restkv.1.gz", "rt") as page:
        assert page.read() == run_restkv("help", "man").stdout


def test_settings_of_the_unit(tmp_path):
    """The shipped file is right but for the model, which it leaves open: the unit fails with the exit code that is not retried."""
    assert run_restkv("config", "check", PACKAGING / "config.yaml").returncode == 0
    done = run_restkv("serve", "--config", PACKAGING / "config.yaml")
    assert done.returncode == 2 and "MODEL" in done.stderr
    unit = (PACKAGING / "restkv.service").read_text()
    assert "RestartPreventExitStatus=2" in unit and "Type=notify" in unit
    drain = yaml.safe_load(run_restkv("config", "schema").stdout)["properties"]["server"]["properties"]["drain_timeout"]["default"]
    stop = re.search(r"TimeoutStopSec=(\d+)s", unit).group(1)
    assert int(stop) > int(drain.removesuffix("s"))
    model = tmp_path / "absent.gguf"
    config = tmp_path / "config.yaml"
    config.write_text((PACKAGING / "config.yaml").read_text().replace("# path:", f"path: {model}  #").replace("port: 8000", "port: 0"))
    done = run_restkv("serve", "--config", config)
    assert done.returncode == 1 and str(model) in done.stderr


def test_unit_is_understood_by_systemd(tmp_path):
    analyze = tool("systemd-analyze")
    unit = tmp_path / "restkv.service"
    # The program and the user of the installed unit are not on this machine.
    unit.write_text((PACKAGING / "restkv.service").read_text().replace("ExecStart=restkv", f"ExecStart={BINARY}")
                    .replace("=restkv\nGroup=restkv", "=root\nGroup=root").replace("Documentation=man:restkv(1)\n", ""))
    done = run(analyze, "verify", "--man=no", unit)
    words = [line for line in (done.stdout + done.stderr).splitlines() if "restkv.service" in line]
    assert words == [] and done.returncode == 0, done.stdout + done.stderr


def test_manual_page(tmp_path):
    page = tmp_path / "restkv.1"
    page.write_text(run_restkv("help", "man").stdout)
    assert not re.search(r"^[.'](?!\\\"|(TH|SH|SS|TP|B|I|BR)\b)", page.read_text(), re.MULTILINE), "only these requests"
    groff = tool("groff")
    done = run(groff, "-man", "-Tutf8", "-ww", "-P-cbou", page)
    assert done.returncode == 0 and done.stderr == "", done.stderr[:1000]
    text = re.sub(r"\s+", " ", done.stdout)
    for verb in ("serve", "calibrate", "healthcheck"):
        assert f" {verb} " in text
    for word in ("--max-model-len N, --ctx-size, -c", "server.drain_timeout", "full|restkv|snapkv", "[COMMAND | man]"):
        assert word in re.sub(r"(?<=[\w|-])[\u2010-] (?=\w)", "", text) or word in text, word


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_debian_package(installed, tmp_path):
    """cpack: what the package has, needs and does; its program runs when it is unpacked."""
    for name in ("cpack", "dpkg-deb", "dpkg-shlibdeps"):
        tool(name)
    done = run("cpack", "--config", BUILD / "CPackConfig.cmake", "-B", tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (package,) = tmp_path.glob("*.deb")
    (archive,) = tmp_path.glob("*.tar.gz")
    field = {name: run("dpkg-deb", "-f", package, name).stdout.strip() for name in ("Package", "Version", "Depends", "Section")}
    assert field["Package"] == "restkv" and run_restkv("version").stdout.split()[1] == field["Version"]
    assert {"libc6", "libcurl4", "libyaml-cpp0.7", "ca-certificates"} <= {word.split()[0] for word in field["Depends"].split(", ")}
    tree = tmp_path / "tree"
    assert run("dpkg-deb", "-R", package, tree).returncode == 0
    control = tree / "DEBIAN"
    assert (control / "conffiles").read_text() == "/etc/restkv/config.yaml\n"
    for script in ("postinst", "prerm", "postrm"):
        assert os.access(control / script, os.X_OK) and run("sh", "-n", control / script).returncode == 0
    files = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    assert {"usr/bin/restkv", "etc/restkv/config.yaml", "usr/lib/systemd/system/restkv.service", "usr/share/man/man1/restkv.1.gz"} <= files
    assert not any(file.startswith("usr/etc") for file in files)
    assert run(tree / "usr/bin/restkv", "version").stdout == run_restkv("version").stdout
    assert (tree / "usr/bin/restkv").stat().st_size < BINARY.stat().st_size / 2, "stripped"
    names = run("tar", "tzf", archive).stdout.split()
    assert any(name.endswith("/bin/restkv") for name in names)

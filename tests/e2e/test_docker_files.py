"""docker/: what can be known about images and manifests without a container engine.

The Dockerfiles are read by rule (pinned bases, no root, exec form, sources and packages that exist), the manifests by the
types of the official Kubernetes client, and the RUN steps of Dockerfile.cpu are replayed in a debootstrap folder (slow).
"""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import BINARY, ROOT, run_restkv

DOCKER = ROOT / "docker"
DOCKERFILES = ["Dockerfile", "Dockerfile.cpu"]


def read_dockerfile(name):
    """[(instruction, rest)], continuation lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in text.splitlines() if line.strip()]


def stages(name):
    found = []
    for instruction, rest in read_dockerfile(name):
        if instruction == "FROM":
            found.append([])
        if found:
            found[-1].append((instruction, rest))
    return found


def value_of(stage, instruction):
    (value,) = [rest for name, rest in stage if name == instruction]
    return value


def ignored(path):
    """Whether .dockerignore keeps it out of the context."""
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        line = line.strip()
        if line and not line.startswith("#") and any(fnmatch.fnmatch(part, line.removeprefix("**/")) for part in (path, *path.split("/"))):
            return True
    return False


@pytest.mark.parametrize("name", DOCKERFILES)
def test_bases_are_pinned(name):
    names = set()
    for stage in stages(name):
        base, _, alias = value_of(stage, "FROM").partition(" AS ")
        assert base in names or re.fullmatch(r"debian:12\.\d+-slim", base), f"{base} is not a point release of Debian 12"
        names.add(alias)
    for image in re.findall(r"image: (\S+)", (DOCKER / "compose.yaml").read_text()):
        assert re.search(r":(v?\d+\.\d+\.\d+|cpu)$", image), image


@pytest.mark.parametrize("name", DOCKERFILES)
def test_runtime_stage(name):
    stage = stages(name)[-1]
    assert value_of(stage, "USER") == "10001:10001"
    assert [instruction for instruction, _ in stage].index("USER") > max(i for i, (n, _) in enumerate(stage) if n in ("RUN", "COPY"))
    assert json.loads(value_of(stage, "ENTRYPOINT")) == ["restkv", "serve"]
    health = value_of(stage, "HEALTHCHECK")
    assert json.loads(health.split("CMD ", 1)[1]) == ["restkv", "healthcheck"]
    assert json.loads(value_of(stage, "VOLUME")) == ["/models"]
    assert value_of(stage, "STOPSIGNAL") == "SIGTERM"
    labels = value_of(stage, "LABEL")
    for label in ("title", "description", "licenses", "revision"):
        assert f"org.opencontainers.image.{label}=" in labels
    assert not any(instruction == "CMD" for instruction, _ in stage)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_sources_exist_and_no_secret_is_built_in(name):
    for instruction, rest in read_dockerfile(name):
        assert instruction in ("FROM", "ARG", "ADD", "COPY", "RUN", "ENV", "LABEL", "WORKDIR", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL",
                               "HEALTHCHECK", "ENTRYPOINT"), instruction
        assert not re.search(r"TOKEN|API_KEY|PASSWORD", rest)
        if instruction == "COPY" and not rest.startswith("--from="):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists() and not ignored(source), source
        if instruction == "RUN" and "apt-get install" in rest:
            assert "--no-install-recommends" in rest and "rm -rf /var/lib/apt/lists/*" in rest
    assert all((ROOT / folder).is_dir() and not ignored(folder) for folder in ("engine", "kernels", "server", "tools"))


def apt_names():
    if not shutil.which("apt-cache"):
        pytest.skip("there is no apt-cache here")
    done = subprocess.run(["apt-cache", "pkgnames"], capture_output=True, text=True, check=True, timeout=60)
    names = set(done.stdout.split())
    if len(names) < 10_000:
        pytest.skip("apt has no package lists (apt-get update)")
    return names


def packages_in(name):
    """Words behind `apt-get install`, without options, substitutions and NVIDIA's, which are in no list of Debian."""
    found = set()
    for instruction, rest in read_dockerfile(name):
        for part in re.findall(r"apt-get install ([^&]*)", rest) if instruction == "RUN" else []:
            words = re.sub(r"\$\([^)]*\)", "", part).split()
            found |= {word for word in words if not word.startswith("-")}
    return found


@pytest.mark.parametrize("name", DOCKERFILES)
def test_packages_exist(name):
    known = apt_names()
    listed = subprocess.run([ROOT / "tools" / "install_deps.sh", "--list", "build"], capture_output=True, text=True, check=True).stdout.split()
    assert "cmake" in listed
    wanted = packages_in(name) | set(listed)
    nvidia = {package for package in wanted if re.fullmatch(r"(cuda-.*|libcublas.*)-13-0", package)}
    assert bool(nvidia) == (name == "Dockerfile")
    assert wanted - nvidia - known == set()


def test_packages_of_the_program(binary):
    done = subprocess.run([ROOT / "tools" / "runtime_packages.sh", BINARY], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    packages = set(done.stdout.split())
    assert {"libc6", "libcurl4", "libyaml-cpp0.7"} <= packages
    assert packages - apt_names() == set()
    assert not any(package.endswith("-dev") for package in packages)
    missing = subprocess.run([ROOT / "tools" / "runtime_packages.sh", "/no/such/program"], capture_output=True, text=True, check=False)
    assert missing.returncode == 1


def test_environment_of_the_images_is_understood(binary):
    """Every RESTKV_ variable of images, compose and manifests is one of the option table's."""
    texts = "".join((DOCKER / name).read_text() for name in (*DOCKERFILES, "compose.yaml", "k8s/restkv.yaml"))
    names = set(re.findall(r"(?<![A-Z_])RESTKV_[A-Z_]+", re.sub(r"-D\S+", "", re.sub(r"#.*", "", texts))))
    assert {"RESTKV_HOST", "RESTKV_API_KEY", "RESTKV_METRICS_PREFIX", "RESTKV_LOG_FORMAT", "RESTKV_DRAIN_TIMEOUT"} <= names
    flags = run_restkv("serve", "--help").stdout
    for name in names:
        assert "--" + name.removeprefix("RESTKV_").lower().replace("_", "-") in flags, name


def test_as_a_container_starts_it(binary, tmp_path):
    """ENTRYPOINT and ENV, without the container: an open address without key or consent is refused, with its names."""
    done = run_restkv("serve", "demo", environment={"RESTKV_HOST": "0.0.0.0", "HF_HOME": str(tmp_path)})
    assert done.returncode == 2 and "0.0.0.0" in done.stderr
    assert "insecure" in done.stderr


# --- compose ---

def test_compose():
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"restkv", "prometheus", "grafana"}
    restkv = services["restkv"]
    assert "RESTKV_INSECURE" not in restkv["environment"]
    assert restkv["environment"]["RESTKV_API_KEY"].startswith("${RESTKV_API_KEY:?"), "compose refuses to start without a key"
    assert restkv["read_only"] is True and restkv["cap_drop"] == ["ALL"] and "no-new-privileges:true" in restkv["security_opt"]
    assert (DOCKER / restkv["build"]["context"] / restkv["build"]["dockerfile"]).is_file()
    volumes = set(compose["volumes"])
    for name, service in services.items():
        assert "privileged" not in service
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:"), (name, port)
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (DOCKER / source).exists() if source.startswith(".") else source in volumes, volume
    (config,) = (DOCKER / "grafana/provisioning/datasources").glob("*.yaml")
    (source,) = yaml.safe_load(config.read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (job,) = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["restkv:8000"]


# --- Kubernetes ---

class ManifestError(Exception):
    pass


def check_type(models, kind, value, path):
    """`value` (of YAML) against a type of the client's model: unknown keys, absent required ones and wrong types are errors."""
    listed = re.fullmatch(r"[Ll]ist\[(.*)\]", kind)
    mapped = re.fullmatch(r"[Dd]ict[\[(]str, (.*)[\])]", kind)
    if listed:
        if not isinstance(value, list):
            raise ManifestError(f"{path}: not a list")
        for i, item in enumerate(value):
            check_type(models, listed.group(1), item, f"{path}[{i}]")
    elif mapped:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise ManifestError(f"{path}: not a mapping")
        for key, item in value.items():
            check_type(models, mapped.group(1), item, f"{path}.{key}")
    elif kind in ("str", "int", "bool", "float"):
        if not isinstance(value, {"str": str, "int": int, "bool": bool, "float": (int, float)}[kind]) or (
                kind == "int" and isinstance(value, bool)):
            raise ManifestError(f"{path}: {value!r} is not of type {kind}")
    elif kind in ("object", "IntOrString"):  # int or string by the API's own rule
        if not isinstance(value, (str, int)):
            raise ManifestError(f"{path}: neither a string nor a number")
    elif kind == "datetime":
        raise ManifestError(f"{path}: set by the cluster")
    else:
        check_object(models, getattr(models, kind), value, path)


def check_object(models, model, value, path):
    if not isinstance(value, dict):
        raise ManifestError(f"{path}: not an object of {model.__name__}")
    attributes = {json_name: attribute for attribute, json_name in model.attribute_map.items()}
    arguments = {}
    for key, item in value.items():
        if key not in attributes:
            raise ManifestError(f"{path}: {model.__name__} has no field {key}")
        check_type(models, model.openapi_types[attributes[key]], item, f"{path}.{key}")
        arguments[attributes[key]] = item
    try:
        model(**arguments)  # its setters refuse None where a field is required
    except ValueError as error:
        raise ManifestError(f"{path}: {error}") from error


def kubernetes_models():
    return pytest.importorskip("kubernetes.client.models", reason="the kubernetes client is not installed (tests/requirements.txt)")


KINDS = {("v1", "Secret"): "V1Secret", ("v1", "PersistentVolumeClaim"): "V1PersistentVolumeClaim", ("apps/v1", "Deployment"): "V1Deployment",
         ("v1", "Service"): "V1Service", ("policy/v1", "PodDisruptionBudget"): "V1PodDisruptionBudget",
         ("autoscaling/v2", "HorizontalPodAutoscaler"): "V2HorizontalPodAutoscaler"}


def manifests(name="restkv.yaml"):
    return {document["kind"]: document for document in yaml.safe_load_all((DOCKER / "k8s" / name).read_text())}


def test_manifests_have_their_types():
    models = kubernetes_models()
    found = manifests()
    assert {kind for _, kind in KINDS} == set(found)
    for document in found.values():
        check_object(models, getattr(models, KINDS[document["apiVersion"], document["kind"]]), document, document["kind"])


@pytest.mark.parametrize("path, value, word", [
    (["spec", "template", "spec", "containers", 0, "livenesProbe"], {}, "no field livenesProbe"),
    (["spec", "template", "spec", "containers", 0, "ports", 0, "containerPort"], "8000", "int"),
    (["spec", "template", "spec", "securityContext", "runAsNonRoot"], "yes", "bool"),
    (["spec", "template", "spec", "containers", 0, "args"], "model", "not a list"),
    (["spec", "selector"], None, "selector")])
def test_the_check_of_manifests_finds_errors(path, value, word):
    models = kubernetes_models()
    deployment = manifests()["Deployment"]
    place = deployment
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    with pytest.raises(ManifestError, match=word):
        check_object(models, models.V1Deployment, deployment, "Deployment")


def test_manifests_fit_together():
    found = manifests()
    deployment, service, claim = found["Deployment"]["spec"], found["Service"]["spec"], found["PersistentVolumeClaim"]
    labels = deployment["template"]["metadata"]["labels"]
    for selector in (deployment["selector"]["matchLabels"], service["selector"], found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]):
        assert selector.items() <= labels.items()
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert all(port["targetPort"] in ports for port in service["ports"])
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    secret = found["Secret"]
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    (keys,) = (volume for volume in pod["volumes"] if volume["name"] == "keys")
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "keys")
    assert "RESTKV_INSECURE" not in values and keys["secret"]["secretName"] == secret["metadata"]["name"]
    (item,) = keys["secret"]["items"]
    assert item["key"] in secret["stringData"] and values["RESTKV_API_KEY"] == f"{mount['mountPath']}/{item['path']}"
    for variable in container["env"]:
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        if reference:
            assert reference["name"] == secret["metadata"]["name"] and reference["key"] in secret["stringData"]
    assert all(value == "" for value in secret["stringData"].values()), "no secret in the repository"
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert container["startupProbe"]["httpGet"]["path"] == container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    drain = [variable["value"] for variable in container["env"] if variable["name"] == "RESTKV_DRAIN_TIMEOUT"]
    assert int(drain[0].removesuffix("s")) < pod["terminationGracePeriodSeconds"]
    assert pod["enableServiceLinks"] is False  # the Service's would be RESTKV_PORT=tcp://...
    assert found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]


def test_pod_monitor():
    """The operator's own type is in no client: its fields by hand."""
    (monitor,) = yaml.safe_load_all((DOCKER / "k8s" / "monitoring.yaml").read_text())
    assert set(monitor) == {"apiVersion", "kind", "metadata", "spec"}
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert set(monitor["spec"]) == {"selector", "podMetricsEndpoints"}
    deployment = manifests()["Deployment"]["spec"]["template"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= deployment["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint == {"port": "http", "path": "/metrics", "interval": "15s"}
    assert endpoint["port"] in {port["name"] for port in deployment["spec"]["containers"][0]["ports"]}


def test_dashboard_is_what_its_table_says():
    done = subprocess.run([sys.executable, DOCKER / "make_dashboard.py", "--check"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


# --- the images' steps without an engine ---

def run_in(root, command, workdir, environment):
    """A RUN step. /proc as in a container, and the host's compiler cache where RESTKV_REPLAY_CCACHE names it, in a mount namespace of its own."""
    mounts = f"mount -t proc proc {root}/proc"
    cache = os.environ.get("RESTKV_REPLAY_CCACHE")
    if cache:
        (root / "ccache").mkdir(exist_ok=True)
        mounts += f" && mount --bind {cache} {root}/ccache"
        environment = environment | {"CCACHE_DIR": "/ccache", "CCACHE_BASEDIR": workdir, "CCACHE_NOHASHDIR": "1"}
    return subprocess.run(["unshare", "--mount", "/bin/sh", "-c", mounts + ' && exec chroot "$0" /bin/sh -c "$1"', root, f"cd {workdir} && {command}"],
                          env=environment, capture_output=True, text=True, check=False, timeout=3000)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_replay_of_dockerfile_cpu(tmp_path_factory):
    """The RUN and COPY steps of both stages in debootstrap folders, as root and with the network. RESTKV_REPLAY_BASE: a folder that
    debootstrap has made already."""
    for tool in ("debootstrap", "chroot", "unshare"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    if os.geteuid() != 0:
        pytest.skip("only root can chroot")
    mirror = os.environ.get("RESTKV_DEBIAN_MIRROR", "http://deb.debian.org/debian")
    folder = tmp_path_factory.mktemp("images")
    base = Path(os.environ.get("RESTKV_REPLAY_BASE", folder / "base"))
    if not base.is_dir():
        # In a mount namespace of its own: what debootstrap mounts in the folder is gone when it ends.
        made = subprocess.run(["unshare", "--mount", "debootstrap", "--variant=minbase", "bookworm", base, mirror], capture_output=True, text=True, check=False,
                              timeout=1200)
        if made.returncode != 0:
            pytest.skip(f"debootstrap cannot make a Debian here: {(made.stdout + made.stderr)[-300:]}")
    roots = []
    for number, stage in enumerate(stages("Dockerfile.cpu")):
        root = folder / f"stage{number}"
        subprocess.run(["cp", "-a", base, root], check=True)
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        roots.append(root)
        workdir, environment = "/", {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        for instruction, rest in stage:
            if instruction == "WORKDIR":
                workdir = rest
                (root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif instruction == "ENV":
                environment |= dict(word.split("=", 1) for word in shlex.split(rest))
            elif instruction == "COPY":
                copy_step(rest, root, roots[0], workdir)
            elif instruction == "RUN":
                done = run_in(root, rest, workdir, environment)
                assert done.returncode == 0, (rest, done.stdout[-2000:], done.stderr[-2000:])
    as_user = ["chroot", "--userspec=10001:10001", roots[-1]]
    done = subprocess.run([*as_user, "restkv", "version"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("restkv "), done.stderr
    # As its entry point: no key and no consent.
    done = subprocess.run([*as_user, "restkv", "serve", "demo"], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and "RESTKV_API_KEY" in done.stderr, done.stderr


def copy_step(rest, root, build_root, workdir):
    words = rest.split()
    source_root = ROOT
    if words[0].startswith("--from="):
        source_root = build_root
        words = words[1:]
    *sources, target = words
    place = root / (target if target.startswith("/") else f"{workdir}/{target}").lstrip("/")
    for source in sources:
        path = source_root / source.lstrip("/")
        if source == ".":
            files = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True).stdout.split("\0")
            for file in filter(None, files):
                if not ignored(file):
                    (place / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / file, place / file)
        elif target.endswith("/"):
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place / path.name)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place)

"""The shipped alert rules and dashboard against a real Prometheus that scrapes a running server.

Every query of docker/ is run; every metric that one names is one that the server exports.
"""

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request

import pytest
import yaml
from conftest import ROOT, Server

DOCKER = ROOT / "docker"
ALERTS = DOCKER / "prometheus" / "alerts.yml"
NAME = re.compile(r"\b(?:restkv_|vllm:)[a-z0-9_]+")


def alert_queries():
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    return {rule["alert"]: rule["expr"] for rule in rules}


def dashboard_queries():
    dashboard = json.loads((DOCKER / "grafana/dashboards/restkv.json").read_text())
    return {(panel["title"], target["refId"]): target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])}


def exported_names(server):
    status, headers, body = server.request("GET", "/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain")
    return {line.split()[2] for line in body.decode().splitlines() if line.startswith("# TYPE ")}, body


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Prometheus:
    """A Prometheus with the shipped configuration, but a scrape a second and this server as the target."""

    def __init__(self, folder, server) -> None:
        config = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        config["rule_files"] = [str(ALERTS)]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{server.port}"]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                 f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT)

    def get(self, path, **parameters):
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
            result = json.load(answer)
        assert result["status"] == "success"
        return result["data"]

    def query(self, expression):
        return self.get("/api/v1/query", query=expression)["result"]

    def wait_for(self, condition, what, seconds=30):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"no {what} after {seconds} s:\n{self.log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def shipped(binary, stories_model, server_logs):
    """A server with the prefix that compose.yaml and k8s/ set."""
    manifest = next(part for part in yaml.safe_load_all((DOCKER / "k8s/restkv.yaml").read_text()) if part["kind"] == "Deployment")
    variables = {one["name"]: one.get("value") for one in manifest["spec"]["template"]["spec"]["containers"][0]["env"]}
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["restkv"]["environment"]
    assert variables["RESTKV_METRICS_PREFIX"] == compose["RESTKV_METRICS_PREFIX"]
    running = Server(stories_model, server_logs / "shipped.log", "--metrics-prefix", variables["RESTKV_METRICS_PREFIX"])
    yield running
    running.kill()


@pytest.fixture(scope="module")
def prometheus(shipped, tmp_path_factory):
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed (tools/debian-packages.txt)")
    running = Prometheus(tmp_path_factory.mktemp("prometheus"), shipped)
    try:
        running.wait_for(lambda: running.query("vllm:num_requests_running"), "scrape of the server")
        yield running
    finally:
        running.process.terminate()
        running.process.wait(20)


def test_metrics_are_well_formed(server):
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (it comes with the package prometheus)")
    _, body = exported_names(server)
    done = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    for arguments in (["check", "rules", ALERTS], ["check", "config", DOCKER / "prometheus/prometheus.yml"]):
        done = subprocess.run(["promtool", *arguments], capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def test_answers_are_counted_by_code(start_server, stories_model):
    server = start_server(stories_model, "--max-queue-requests", "1")

    def counted():
        lines = exported_names(server)[1].decode().splitlines()
        found = (re.search(r'^restkv_responses_total\{.*protocol="(\w+)",path="([^"]+)",code="(\w+)"\} (\d+)$', line) for line in lines)
        return {match.group(1, 2, 3): int(match.group(4)) for match in found if match}

    assert counted()["http", "/v1/completions", "429"] == 0, "a first refusal is a rise"
    server.complete("Once", max_tokens=1)
    list(server.stream("Once", max_tokens=3))
    server.post_json("/v1/completions", {"prompt": 5}, 400)
    server.post_json("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 1}, 400)  # the queue takes one
    for path in ("/nothing", "/v1/models/other", "/v1/models/another"):
        assert server.request("GET", path)[0] == 404
    assert server.request("PUT", "/v1/completions")[0] == 405
    assert server.request("GET", "/version", headers={"Content-Encoding": "gzip"})[0] == 415
    rows = counted()
    expected = {("/v1/completions", "200"): 2, ("/v1/completions", "400"): 2, ("/v1/completions", "405"): 1, ("other", "404"): 1,
                ("other", "415"): 1, ("/v1/models/{id}", "404"): 2}
    assert {key: rows["http", *key] for key in expected} == expected
    assert {key[0] for key in rows} == {"http"}
    grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
    from test_grpc import make_stubs
    pb, stub = make_stubs()[:2]
    with grpc.insecure_channel(server.grpc_address) as channel:
        client = stub.InferenceStub(channel)
        list(client.Generate(pb.GenerateRequest(prompt="Once", max_tokens=2)))
        with pytest.raises(grpc.RpcError):
            list(client.Generate(pb.GenerateRequest(prompt="Once", max_tokens=-1)))
    rows = counted()
    assert rows["grpc", "restkv.v1.Inference/Generate", "OK"] == 1
    assert rows["grpc", "restkv.v1.Inference/Generate", "INVALID_ARGUMENT"] == 1


def test_names_are_exported(shipped):
    names, _ = exported_names(shipped)
    exported = names | {f"{name}{part}" for name in names for part in ("_bucket", "_sum", "_count")}
    used = {"alerts": ALERTS.read_text(), "dashboard": (DOCKER / "grafana/dashboards/restkv.json").read_text(),
            "autoscaler": (DOCKER / "k8s/restkv.yaml").read_text()}
    assert "metric: {name: vllm_num_requests_waiting}" in used["autoscaler"], "the name that the adapter's rule gives"
    for place, text in used.items():
        found = set(NAME.findall(text))
        assert found and found - exported == set(), place


def test_alert_rules(prometheus):
    prometheus.wait_for(lambda: all(rule["health"] == "ok" for group in prometheus.get("/api/v1/rules")["groups"] for rule in group["rules"]),
                        "evaluation of every rule")
    (group,) = prometheus.get("/api/v1/rules")["groups"]
    assert {rule["name"] for rule in group["rules"]} == set(alert_queries())
    assert not [rule["lastError"] for rule in group["rules"] if rule.get("lastError")]
    for name, expression in alert_queries().items():
        assert prometheus.query(expression) == [], f"{name} would fire at a healthy server"
        # Without its threshold the same expression finds series: it does not stay silent for want of data.
        loose = re.sub(r"(==|>) (0\.95|0\.01|32|0)\b( \*)?", lambda m: ">= bool 0" + (" *" if m.group(3) else ""), expression)
        if name not in ("RestkvErrors", "RestkvRefuses", "RestkvCacheFull", "RestkvStalled"):
            prometheus.wait_for(lambda query=loose: prometheus.query(query), f"data for {name}: {loose}")
        for part in NAME.findall(expression):
            assert prometheus.query(part), (name, part)


def test_dashboard(prometheus, shipped):
    body = {"cache": {"policy": "restkv", "budget": 64, "window": 8}, "max_tokens": 200, "ignore_eos": True}
    queries = dashboard_queries()

    def run(expression):
        for name, value in (("$instance", ".*"), ("$model", ".*"), ("$__rate_interval", "10s")):
            expression = expression.replace(name, value)
        assert "$" not in expression, expression
        return prometheus.query(expression)

    for _ in range(3):  # counters must rise between scrapes
        shipped.complete("Once upon a time", **body)
        time.sleep(0.6)

    def without_data():
        return [place for place, expression in queries.items()
                if not run(expression) or any(series["value"][1] in ("NaN", "+Inf") for series in run(expression))]

    prometheus.wait_for(lambda: not without_data(), "data in every panel")
    variables = json.loads((DOCKER / "grafana/dashboards/restkv.json").read_text())["templating"]["list"]
    for variable in variables:
        metric, label = re.fullmatch(r"label_values\(([\w:]+), (\w+)\)", variable["query"]["query"]).groups()
        assert prometheus.get(f"/api/v1/label/{label}/values", **{"match[]": metric})

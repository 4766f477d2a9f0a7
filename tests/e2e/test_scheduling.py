"""Many requests at once over HTTP: killed clients, requests listed and cancelled by id, metrics that promtool accepts, the
prefix cache in usage, the planned number of sequences."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import threading
import time

import pytest

from conftest import run_restkv


def metric(server, name: str, labels: str = "") -> float:
    status, _, body = server.request("GET", "/metrics")
    assert status == 200
    for line in body.decode().splitlines():
        if re.match(rf"{re.escape(name)}\{{[^}}]*{re.escape(labels)}[^}}]*\}} ", line):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no metric {name} {labels}")


def wait_until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_half_of_64_streams_killed_and_no_page_stays_in_use(start_server, stories_model):
    server = start_server(stories_model)
    finished, killed = [], []

    def one(number: int) -> None:
        body = json.dumps({"prompt": f"Once upon a time {number}", "max_tokens": 120, "stream": True, "temperature": 0,
                           "ignore_eos": True, "n": 1 + number % 2})
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200
        if number % 4 < 2:
            # Both parities of n; some before the first token, some in the middle.
            for _ in range(number // 8):
                response.readline()
            connection.sock.close() if connection.sock else response.close()
            response.close()
            killed.append(number)
            return
        text = response.read()
        assert text.rstrip().endswith(b"data: [DONE]") and b'"error"' not in text
        finished.append(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(killed) == 32 and len(finished) == 32
    wait_until(lambda: metric(server, "restkv_num_requests_running") == 0)
    assert metric(server, "restkv_num_requests_waiting") == 0
    assert metric(server, "restkv_kv_pages", 'state="owned"') == 0
    assert metric(server, "restkv_kv_cache_usage_perc") == 0
    assert metric(server, "restkv_request_success_total", 'finished_reason="length"') >= 32
    assert server.request("GET", "/health/ready")[0] == 200


def test_requests_are_listed_and_cancelled_by_id(start_server, stories_model):
    server = start_server(stories_model)
    assert server.get_json("/v1/requests") == {"object": "list", "data": []}
    # One that takes long: the first event says its id.
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(
        {"prompt": "Once", "max_tokens": 450, "stream": True, "ignore_eos": True, "n": 8}), {"Content-Type": "application/json"})
    response = connection.getresponse()
    number = json.loads(response.readline()[len(b"data: "):])["id"]
    listed = server.get_json("/v1/requests")["data"]
    if listed:  # a fast machine may be done already
        assert [entry["id"] for entry in listed] == [number]
        assert listed[0]["state"] in ("prefill", "decode") and listed[0]["n"] == 8 and listed[0]["max_tokens"] == 450
        status, _, body = server.request("DELETE", f"/v1/requests/{number}")
        assert status in (200, 404)
        if status == 200:
            assert json.loads(body) == {"id": number, "object": "request", "deleted": True}
    response.read()
    wait_until(lambda: metric(server, "restkv_num_requests_running") == 0)
    status, _, body = server.request("DELETE", f"/v1/requests/{number}")
    assert status == 404 and json.loads(body)["error"]["code"] == "not_found"
    assert server.request("POST", "/v1/requests")[0] == 405


def test_promtool_accepts_the_metrics(server):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus; tools/install_deps.sh)")
    server.complete("Once upon a time", max_tokens=8)
    status, _, body = server.request("GET", "/metrics")
    assert status == 200
    done = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0 and not done.stdout and not done.stderr, (done.stdout, done.stderr)


def test_the_histograms_add_up(start_server, stories_model):
    server = start_server(stories_model, "--metrics-prefix", "vllm:")
    server.complete("Once upon a time", max_tokens=8, ignore_eos=True)
    assert metric(server, "vllm:time_to_first_token_seconds_count") == 1
    assert metric(server, "vllm:inter_token_latency_seconds_count") == 7
    assert metric(server, "vllm:request_generation_tokens_bucket", 'le="10"') == 1
    assert metric(server, "vllm:request_generation_tokens_bucket", 'le="5"') == 0
    assert metric(server, "vllm:request_generation_tokens_sum") == 8
    assert metric(server, "vllm:iteration_tokens_total_count") >= 8
    assert metric(server, "vllm:e2e_request_latency_seconds_count") == 1
    assert metric(server, "restkv_kv_pages", 'state="owned"') == 0


def test_a_prompt_seen_twice_is_read_from_the_prefix_cache(start_server, stories_model):
    server = start_server(stories_model)
    prompt = "Once upon a time there was a little girl who lived near the sea with her dog. " * 4
    answers = [server.complete(prompt, max_tokens=20) for _ in range(3)]
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert cached[:2] == [0, 0] and cached[2] > 0 and cached[2] % 16 == 0
    assert cached[2] <= answers[0]["usage"]["prompt_tokens"] - 32
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    assert server.complete(prompt, max_tokens=20, cache_salt="mine")["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert metric(server, "restkv_prefix_cache_hits_total") == cached[2]
    # A stop string ends the answer before the engine's last record.
    stopped = server.complete(prompt, max_tokens=20, stop=answers[0]["choices"][0]["text"][4:8])
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["usage"]["prompt_tokens_details"]["cached_tokens"] == stopped["timings"]["cache_n"] == cached[2]
    assert stopped["timings"]["prompt_n"] == answers[0]["usage"]["prompt_tokens"] - cached[2]
    assert metric(server, "restkv_kv_pages", 'state="cached"') > 0


def test_inspect_and_the_server_plan_the_same_number(start_server, stories_model):
    planned = json.loads(run_restkv("inspect", stories_model, "--json").stdout)["plan"]["max_sequences"]
    server = start_server(stories_model)
    match = re.search(r"memory plan.*sequences=(\d+)", server.output())
    assert match and int(match.group(1)) == planned


def test_n_that_can_never_fit_is_refused_with_the_largest(start_server, stories_model):
    server = start_server(stories_model, "--max-num-seqs", "4")
    body = server.post_json("/v1/completions", {"prompt": "Once", "max_tokens": 4, "n": 5}, expected=400)
    assert body["error"]["param"] == "n" and "4 choices" in body["error"]["message"]
    assert len(server.complete("Once", max_tokens=4, n=4)["choices"]) == 4

"""A budget as users meet it: the object `cache`, usage.cache, errors, defaults, metrics."""

import json
import re

import pytest

STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
LONG = STORY * 8


def metric(server, name: str, **labels) -> float:
    text = server.request("GET", "/metrics")[2].decode()
    for line in text.splitlines():
        if line.startswith(f"restkv_{name}{{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no metric {name} {labels} in {text}")


def cache_of(answer) -> dict:
    return answer["usage"]["cache"]


@pytest.mark.parametrize("policy", ["restkv", "snapkv", "streamingllm", "h2o", "tova", "lacache", "random"])
def test_a_budget_holds(server, policy):
    before = metric(server, "kv_entries_evicted_total", policy=policy)
    answer = server.complete(LONG, max_tokens=40, cache={"policy": policy, "budget": 64})
    cache = cache_of(answer)
    assert answer["usage"]["prompt_tokens"] > 128
    assert (cache["policy"], cache["budget"], cache["predicted_error"]) == (policy, 64, None)
    assert 0 < cache["kept"] <= cache["kept_max"] <= 64
    assert cache["events"] > 0
    assert cache["evicted"] > 0
    assert cache["bytes"] > 0
    server.wait_until_idle()
    assert metric(server, "kv_entries_evicted_total", policy=policy) - before == cache["evicted"]


def test_shares_keep_the_mean(server):
    for policy in "pyramidkv", "adakv":
        cache = cache_of(server.complete(LONG, max_tokens=24, cache={"policy": policy, "budget": 64}))
        assert cache["kept"] <= 64
        assert cache["events"] > 0


def test_a_budget_not_reached_is_exact(server):
    full = server.complete(STORY, max_tokens=24, cache={"policy": "full"})
    small = server.complete(STORY, max_tokens=24, cache={"budget": 128})
    default = server.complete(STORY, max_tokens=24)
    assert cache_of(full)["policy"] == "full"
    assert cache_of(full)["budget"] is None
    for answer, budget in (small, 128), (default, 4096):
        assert answer["choices"][0]["text"] == full["choices"][0]["text"]
        assert (cache_of(answer)["events"], cache_of(answer)["evicted"]) == (0, 0)
        assert (cache_of(answer)["policy"], cache_of(answer)["budget"]) == ("restkv", budget)


def test_fraction_is_of_the_prompt(server):
    answer = server.complete(LONG, max_tokens=8, cache={"fraction": 0.5})
    assert cache_of(answer)["budget"] == -(-answer["usage"]["prompt_tokens"] // 2)
    assert cache_of(answer)["kept_max"] <= cache_of(answer)["budget"]


def test_several_answers_are_summed(server):
    cache = {"policy": "snapkv", "budget": 64}
    one = cache_of(server.complete(LONG, max_tokens=20, cache=cache))
    four = cache_of(server.complete([LONG, LONG], n=2, max_tokens=20, cache=cache))
    assert (four["kept"], four["kept_max"]) == (one["kept"], one["kept_max"])
    for name in "evicted", "events", "bytes":
        assert four[name] == 4 * one[name]


def test_stop_string_does_not_lose_the_counters(server):
    text = server.complete(LONG, max_tokens=30, cache={"budget": 64})["choices"][0]["text"]
    answer = server.complete(LONG, max_tokens=30, cache={"budget": 64}, stop=text[10:14])
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert cache_of(answer)["events"] > 0


def test_stream_has_the_same_usage(server):
    whole = server.complete(LONG, max_tokens=20, cache={"budget": 64})
    events = list(server.stream(LONG, max_tokens=20, cache={"budget": 64}, stream_options={"include_usage": True}))
    assert events[-1]["usage"]["cache"] == cache_of(whole)


@pytest.mark.parametrize("cache, param, words", [
    ({"budget": 1}, "cache.budget", "must be between"),
    ({"budget": 2**31}, "cache.budget", "must be between"),
    ({"budget": 40, "sinks": 10, "window": 32}, "cache.budget", "10 sinks + 32 window"),
    ({"budget": "many"}, "cache.budget", "an integer"),
    ({"fraction": 0}, "cache.fraction", "above 0"),
    ({"policy": "lru"}, "cache.policy", "restkv"),
    ({"window": 0}, "cache.window", "1024"),
    ({"compress_at": 0}, "cache.compress_at", "must be between 1"),
    ({"trace": True}, "cache.trace", "not supported"),
    ({"probe": 7}, "cache.probe", "token ids"),
    ({"probe": []}, "cache.probe", "between 1 and 256"),
    ({"probe": [5, -1]}, "cache.probe[1]", "token id"),
    ({"probe": [5, 10**6]}, "cache.probe[1]", "vocabulary"),
    ({"probe": "words " * 600, "budget": 64}, "cache.probe", "between 1 and 256"),
    ({"probe": "x" * 5000}, "cache.probe", "4096"),
    ({"pin": 30, "pin_head": 10, "budget": 64}, "cache.budget", "pinned"),
    ({"pin": -1}, "cache.pin", "must be between 0"),
    ({"decode": "shrink"}, "cache.decode", "evict, grow"),
    ({"stride": 0}, "cache.stride", "must be between 1"),
    ({"fraction": 1.5}, "cache.fraction", "at most 1"),
    ({"tau": 0}, "cache.tau", "above 0"),
    ({"kernel": 4, "pool": "avg"}, "cache.kernel", "odd"),
    ({"allocation": "calibrated"}, "cache.allocation", "no allocation file"),
    (7, "cache", "an object"),
])
def test_errors_name_field_and_bounds(server, cache, param, words):
    body = {"model": server.model_id, "prompt": STORY, "cache": cache}
    error = server.post_json("/v1/completions", body, expected=400)["error"]
    assert error["param"] == param
    assert words in error["message"]


def test_all_pages_come_back(server):
    server.complete(LONG, n=2, max_tokens=12, cache={"budget": 48})
    server.wait_until_idle()
    assert metric(server, "kv_pages", state="owned") == 0
    assert metric(server, "kv_pages", state="free") > 0
    assert metric(server, "num_requests_running") == 0
    assert metric(server, "kv_nan_rows_total") == 0
    assert metric(server, "kv_evictions_total") > 0
    assert metric(server, "request_success_total", finished_reason="length") > 0
    assert metric(server, "generation_tokens_total") > 0


def test_metrics_are_prometheus_text(server):
    status, headers, body = server.request("GET", "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    sample = re.compile(r'restkv_[a-z_]+\{model_name="[^"]*"(,[a-z_]+="[a-z0-9_]+")?\} [0-9.e+-]+')
    for line in body.decode().splitlines():
        assert line.startswith(("# HELP restkv_", "# TYPE restkv_")) or sample.fullmatch(line), line


def test_defaults_and_ceilings_of_the_server(start_server, stories_model):
    server = start_server(stories_model, "--policy", "snapkv", "--budget", 64, "--max-budget", 128, "--no-allow-grow")
    assert "policy snapkv, budget 64" in server.output()
    cache = cache_of(server.complete(LONG, max_tokens=8))
    assert (cache["policy"], cache["budget"]) == ("snapkv", 64)
    assert cache["kept_max"] <= 64
    for asked, param in ({"budget": 129}, "cache.budget"), ({"decode": "grow"}, "cache.decode"):
        body = {"model": server.model_id, "prompt": STORY, "cache": asked}
        assert server.post_json("/v1/completions", body, expected=400)["error"]["param"] == param


def test_start_message_says_the_default(server):
    assert "policy restkv, budget 4096: answers are exact while prompt + max_tokens <= 4096" in server.output()


def test_bad_budget_is_a_usage_error(binary, stories_model):
    from conftest import run_restkv
    for verb in ["serve"], ["complete"], ["inspect"], ["bench", "latency"]:
        done = run_restkv(*verb, stories_model, "--budget", 1)
        assert done.returncode == 2, done.stderr
        assert "--budget, cache.budget: is 1, must be between 38" in done.stderr


def test_inspect_and_bench_say_the_budget(binary, stories_model):
    from conftest import run_restkv
    plan = json.loads(run_restkv("inspect", stories_model, "--json", "--budget", 64, "--policy", "pyramidkv").stdout)["plan"]
    rows = plan["c_lh"]
    assert plan["projections"] > 0
    assert sum(map(sum, rows)) == 64 * sum(map(len, rows))
    assert rows[0][0] > rows[-1][0]
    done = run_restkv("bench", "latency", stories_model, "--prompt-len", 100, "--output-len", 8, "--rounds", 1,
                      "--budget", 64, "--json")
    figures = json.loads(done.stdout)
    assert (figures["policy"], figures["budget"]) == ("restkv", 64)


def logprobs_of(answer) -> list:
    return answer["choices"][0]["logprobs"]["token_logprobs"]


def test_compress_at_is_seen_by_the_prompt(server):
    """The rest of the prompt and a one-token answer see the eviction; without compress_at they do not."""
    def ask(**cache):
        return logprobs_of(server.complete(LONG, max_tokens=1, echo=True, logprobs=0, cache={"budget": 48, **cache}))
    full = ask(policy="full")
    p = 130
    assert ask() == full
    seen = {policy: ask(policy=policy, compress_at=p) for policy in ("restkv", "snapkv", "streamingllm")}
    for policy, logprobs in seen.items():
        assert logprobs[:p] == full[:p], policy
        assert logprobs[p + 1:] != full[p + 1:], policy
    assert seen["restkv"] != seen["snapkv"] != seen["streamingllm"]
    assert ask(compress_at=10**5) == full


def test_probe_as_text_and_as_ids(server):
    text = " Tim and Lily"
    ids = server.post_json("/tokenize", {"model": server.model_id, "prompt": text, "add_special_tokens": False})["tokens"]
    def ask(**cache):
        return server.complete(LONG, max_tokens=30, logprobs=0, cache={"budget": 48, **cache})
    by_text, by_ids, none, facts = ask(probe=text), ask(probe=ids), ask(), ask(probe="facts")
    assert by_text["choices"] == by_ids["choices"]
    assert logprobs_of(none)[0] == logprobs_of(by_ids)[0] == logprobs_of(facts)[0]
    assert logprobs_of(none) != logprobs_of(by_ids)
    assert cache_of(none)["bytes"] == cache_of(facts)["bytes"]
    assert cache_of(none)["kept_max"] == cache_of(facts)["kept_max"]
    assert none["usage"]["prompt_tokens"] == facts["usage"]["prompt_tokens"]

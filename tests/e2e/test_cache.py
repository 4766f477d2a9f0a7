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
    ({"trace": 1}, "cache.trace", "bins"),
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
    sample = re.compile(r'restkv_[a-z0-9_]+\{model_name="[^"]*"(,[a-z_]+="[A-Za-z0-9_.+/-]+")*\} [0-9.e+-]+')
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


PROFILES = """
version: 1
cache:
  budget: 512
  max_budget: 600
  profiles:
    small: {budget: 48, window: 16, pin: 4}
    rival: {policy: snapkv, budget: 64}
    other_key: {budget: 80, api_keys: [alice, bob]}
    other_model: {budget: 90, models: [gpt]}
    long: {budget: 100, min_prompt: 150, max_prompt: 100000}
"""


def test_profiles(start_server, stories_model, tmp_path):
    config = tmp_path / "serve.yaml"
    config.write_text(PROFILES)
    server = start_server(stories_model, "--config", config)
    def ask(prompt, **cache):
        cache = cache_of(server.complete(prompt, max_tokens=4, cache=cache))
        return cache["policy"], cache["budget"]
    assert ask(STORY) == ("restkv", 512)
    assert ask(LONG) == ("restkv", 100)  # by the prompt's length
    assert ask(LONG, profile="small") == ("restkv", 48)
    assert ask(STORY, profile="rival") == ("snapkv", 64)
    assert ask(LONG, profile="rival", budget=70) == ("snapkv", 70)  # the request's own fields win
    both = server.complete([STORY, LONG], max_tokens=1)
    assert cache_of(both)["budget"] == 512
    for cache, param, words in (
        ({"profile": "large"}, "cache.profile", "small, rival, other_model, long"),
        ({"profile": "other_key"}, "cache.profile", "not one of"),  # of other keys
        ({"profile": "small", "budget": 601}, "cache.budget", "600"),
        ({"profile": 3}, "cache.profile", "a string"),
    ):
        body = {"model": server.model_id, "prompt": STORY, "cache": cache}
        error = server.post_json("/v1/completions", body, expected=400)["error"]
        assert error["param"] == param
        assert words in error["message"]


@pytest.mark.parametrize("text, words", [
    ("small: {policy: lru}", ":4:30: cache.profiles.small.policy: 'lru' is not one of full, restkv"),
    ("small: {budget: 1}", "cache.profiles.small: cache.budget: is 1, must be between 38"),
    ("small: {budget: 700}", "cache.profiles.small: cache.budget: is 700, must be between 38"),
    ("small: {bugdet: 64}", "unknown key 'bugdet' in cache.profiles.small (did you mean 'budget'?)"),
    ("small: {max_budget: 64}", "unknown key 'max_budget' in cache.profiles.small"),
    ("small: 64", "cache.profiles.small: expected keys and values"),
    ("small: {fraction: 0}", "cache.profiles.small.fraction"),
    ("small: {models: stories}", "cache.profiles.small.models: expected a list of names"),
    ("small: {min_prompt: many}", "cache.profiles.small.min_prompt: 'many' is not a number of tokens"),
    ("'sm all': {budget: 64}", "a name has 1 to 64 letters"),
])
def test_bad_profiles_are_named_at_load(binary, tmp_path, text, words):
    from conftest import run_restkv
    config = tmp_path / "serve.yaml"
    config.write_text(f"version: 1\ncache:\n  max_budget: 600\n  profiles: {{{text}}}\n")
    done = run_restkv("config", "check", config)
    assert done.returncode != 0
    assert words in done.stderr + done.stdout


def test_profiles_survive_config_show(binary, tmp_path):
    from conftest import run_restkv
    config = tmp_path / "serve.yaml"
    config.write_text(PROFILES)
    shown = run_restkv("config", "show", "--config", config)
    assert shown.returncode == 0, shown.stderr
    again = tmp_path / "again.yaml"
    again.write_text(shown.stdout)
    assert "other_key" in shown.stdout
    profiles = [re.sub(" *# .*", "", run.split("profiles:")[1])  # the comments say where values came from
                for run in (shown.stdout, run_restkv("config", "show", "--config", again).stdout)]
    assert profiles[0] == profiles[1]


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


def trace_of(server, answer, expected: int = 200, **query):
    words = "&".join(f"{name}={value}" for name, value in query.items())
    status, _, body = server.request("GET", f"/v1/cache/traces/{answer['id']}?{words}")
    assert status == expected, body
    return json.loads(body)


def test_trace_says_what_went_and_when(server):
    answer = server.complete([STORY * 2, LONG], n=2, max_tokens=60, cache={"budget": 48, "trace": "bins"})
    evicted, choice = 0, 0
    for choice in range(4):
        page = trace_of(server, answer, choice=choice, limit=7)
        assert (page["object"], page["policy"], page["budget"]) == ("cache.trace", "restkv", 48)
        assert (page["truncated"], page["from"], len(page["cuts"])) == (False, 0, 7)
        held, cuts = {}, list(page["cuts"])
        while page["next"] is not None:
            page = trace_of(server, answer, choice=choice, limit=100, **{"from": page["next"]})
            cuts += page["cuts"]
        assert len(cuts) == page["num_cuts"]
        for cut in cuts:
            for h, head in enumerate(cut["heads"]):
                tokens, rows = held.get((cut["layer"], h), (0, set()))
                rows |= set(range(tokens, cut["tokens"]))
                assert set(head["evicted"]) <= rows
                rows -= set(head["evicted"])
                assert len(rows) == head["kept"] <= 48
                assert len(head["scores"]) == head["kept"]
                assert len(head["bins"]) == len(head["evicted"])
                held[cut["layer"], h] = (cut["tokens"], rows)
                evicted += len(head["evicted"])
    assert evicted == cache_of(answer)["evicted"]
    assert "scores" not in trace_of(server, answer, scores=0)["cuts"][0]["heads"][0]
    assert trace_of(server, answer, expected=404, choice=4)["error"]["code"] == "not_found"
    assert trace_of(server, answer, expected=400, limit=0)["error"]["param"] == "limit"
    assert trace_of(server, answer, expected=400, sort=1)["error"]
    assert trace_of(server, server.complete(LONG, max_tokens=2, cache={"budget": 48}), expected=404)
    assert trace_of(server, {"id": "cmpl-of-somebody-else"}, expected=404)


def test_counters_are_live(server):
    """The counters move while a request runs, and end where its own do."""
    before = metric(server, "kv_entries_evicted_total", policy="restkv"), metric(server, "kv_evictions_total")
    events = server.stream(LONG, max_tokens=200, ignore_eos=True, cache={"budget": 48},
                           stream_options={"include_usage": True})
    next(events)
    for _ in range(100):  # the counters are published once a turn of the engine
        during = metric(server, "kv_entries_evicted_total", policy="restkv")
        if during > before[0]:
            break
    cache = [event for event in events if event.get("usage")][-1]["usage"]["cache"]
    server.wait_until_idle()
    assert during > before[0]
    assert metric(server, "kv_entries_evicted_total", policy="restkv") - before[0] == cache["evicted"]
    assert metric(server, "kv_evictions_total") - before[1] == cache["events"]
    assert metric(server, "kv_eviction_seconds_total", phase="decode") > 0
    assert 0 < metric(server, "kv_kept_ratio") < 1


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

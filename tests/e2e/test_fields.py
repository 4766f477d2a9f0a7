"""Request fields beside the plain ones, on both completion routes: each changes what it says, or is refused by name."""

import json
import threading

import pytest

PROMPT = "Once upon a time"
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="session")
def chat_server(binary, stories_model, server_logs, tmp_path_factory):
    """stories260K with a template, so that chat completions work."""
    from conftest import Server
    template = tmp_path_factory.mktemp("template") / "plain.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    running = Server(stories_model, server_logs / "chat_fields.log", "--chat-template", template)
    yield running
    running.kill()


def chat(server, **fields):
    return server.post_json("/v1/chat/completions", {"messages": MESSAGES, "temperature": 0, "max_tokens": 6, **fields})


def test_prompt_logprobs(server):
    ids = server.post_json("/tokenize", {"prompt": PROMPT})["tokens"]
    choice = server.complete(PROMPT, max_tokens=1, prompt_logprobs=3)["choices"][0]
    entries = choice["prompt_logprobs"]
    assert entries[0] is None and len(entries) == len(ids)
    echoed = server.complete(PROMPT, max_tokens=0, echo=True, logprobs=1)["choices"][0]["logprobs"]
    for token, entry, logprob in list(zip(ids, entries, echoed["token_logprobs"]))[1:]:
        own = entry[str(token)]
        assert own["logprob"] == pytest.approx(logprob, abs=1e-5)
        assert own["rank"] >= 1 and 3 <= len(entry) <= 4
        ranked = sorted(entry.values(), key=lambda item: item["rank"])
        assert [item["logprob"] for item in ranked] == sorted((item["logprob"] for item in ranked), reverse=True)
    assert "prompt_logprobs" not in server.complete(PROMPT, max_tokens=1)["choices"][0]
    both = server.complete(PROMPT, max_tokens=1, echo=True, logprobs=1, prompt_logprobs=4)["choices"][0]
    assert all(len(top) <= 2 for top in both["logprobs"]["top_logprobs"][1:])


def test_return_token_ids(server, chat_server):
    ids = server.post_json("/tokenize", {"prompt": PROMPT})["tokens"]
    answer = server.complete(PROMPT, max_tokens=8, return_token_ids=True)
    choice = answer["choices"][0]
    assert choice["prompt_token_ids"] == ids
    assert len(choice["token_ids"]) == answer["usage"]["completion_tokens"]
    text = server.post_json("/detokenize", {"tokens": ids + choice["token_ids"]})["prompt"]
    assert text.endswith(choice["text"])
    streamed, prompts = [], []
    for event in server.stream(PROMPT, max_tokens=8, return_token_ids=True):
        streamed += event["choices"][0]["token_ids"]
        prompts += event["choices"][0].get("prompt_token_ids", [])
    assert streamed == choice["token_ids"] and prompts == ids
    answer = chat(chat_server, return_token_ids=True)
    assert answer["prompt_token_ids"] and len(answer["choices"][0]["token_ids"]) == answer["usage"]["completion_tokens"]


def test_tokens_as_ids(server):
    logprobs = server.complete(PROMPT, max_tokens=2, logprobs=1, return_tokens_as_token_ids=True, return_token_ids=True)["choices"][0]
    assert logprobs["logprobs"]["tokens"] == [f"token_id:{token}" for token in logprobs["token_ids"]]


def test_allowed_and_bad(server):
    plain = server.complete(PROMPT, max_tokens=8, return_token_ids=True)["choices"][0]
    allowed = plain["token_ids"][:2]
    choice = server.complete(PROMPT, max_tokens=12, ignore_eos=True, allowed_token_ids=allowed, return_token_ids=True)["choices"][0]
    assert set(choice["token_ids"]) <= set(allowed)
    words = server.complete(PROMPT, max_tokens=40, ignore_eos=True)["choices"][0]["text"].split()
    word = next(word for word in words if word.isalpha() and len(word) > 2)
    other = server.complete(PROMPT, max_tokens=40, ignore_eos=True, bad_words=[word])["choices"][0]["text"]
    assert f" {word} " not in other and not other.startswith(word)


def test_truncate_prompt_tokens(server, chat_server):
    ids = server.post_json("/tokenize", {"prompt": PROMPT})["tokens"]
    answer = server.complete(PROMPT, max_tokens=6, truncate_prompt_tokens=3)
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["choices"][0]["text"] == server.complete(ids[-3:], max_tokens=6)["choices"][0]["text"]
    long = "The cat sat. " * 400
    assert server.post_json("/v1/completions", {"prompt": long, "max_tokens": 6}, 400)["error"]["code"] == "context_length_exceeded"
    answer = server.complete(long, max_tokens=6, truncate_prompt_tokens=-1)
    assert answer["usage"]["total_tokens"] <= 512
    echoed = server.complete(PROMPT, max_tokens=0, echo=True, truncate_prompt_tokens=3)["choices"][0]["text"]
    assert PROMPT.endswith(echoed.strip()) and len(echoed) < len(PROMPT)
    assert chat(chat_server, truncate_prompt_tokens=2)["usage"]["prompt_tokens"] == 2


def test_truncation_side(server):
    ids = server.post_json("/tokenize", {"prompt": PROMPT})["tokens"]
    for side, kept in (("left", ids[-3:]), ("right", ids[:3])):
        answer = server.complete(PROMPT, max_tokens=1, truncate_prompt_tokens=3, truncation_side=side, return_token_ids=True)
        assert answer["choices"][0]["prompt_token_ids"] == kept
    error = server.post_json("/v1/completions", {"prompt": PROMPT, "truncation_side": "middle"}, expected=400)["error"]
    assert error["param"] == "truncation_side"


def test_request_id(server):
    answer = server.complete(PROMPT, max_tokens=1, request_id="mine-1")
    assert answer["id"] == "cmpl-mine-1"
    status, headers, _ = server.request("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1}, {"X-Request-Id": "trace-7"})
    assert status == 200 and headers["X-Request-Id"] == "trace-7" and int(headers["openai-processing-ms"]) >= 0


def test_continuous_usage(server, chat_server):
    events = list(server.stream(PROMPT, max_tokens=5, ignore_eos=True,
                                stream_options={"include_usage": True, "continuous_usage_stats": True}))
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts) and counts[-1] == 5 and all(event["usage"]["prompt_tokens"] > 0 for event in events)
    assert events[-1]["choices"] == []


def test_choices_stream_interleaved(server):
    order = [event["choices"][0]["index"] for event in server.stream(PROMPT, max_tokens=30, n=3, temperature=1, seed=1, ignore_eos=True)]
    assert set(order) == {0, 1, 2}
    assert order != sorted(order), "one choice after the other"


def test_stop_across_tokens(server):
    text = server.complete(PROMPT, max_tokens=60)["choices"][0]["text"]
    stop = text[15:22]
    choice = server.complete(PROMPT, max_tokens=60, stop=[stop])["choices"][0]
    assert choice["text"] == text[: text.index(stop)] and choice["stop_reason"] == stop
    pieces = [event["choices"][0]["text"] for event in server.stream(PROMPT, max_tokens=60, stop=[stop])]
    assert "".join(pieces) == choice["text"]


@pytest.mark.parametrize(("fields", "param"), [
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"length_penalty": 0.5}, "length_penalty"),
    ({"guided_json": {"type": "object"}}, "guided_json"),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [512]}, "allowed_token_ids[0]"),
    ({"bad_words": [""]}, "bad_words[0]"),
    ({"bad_words": "a"}, "bad_words"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"request_id": "a b"}, "request_id"),
    ({"stream": True, "stream_options": {"continuous_usage_stats": 1}}, "stream_options.continuous_usage_stats"),
])
def test_refused_by_name(server, chat_server, fields, param):
    bodies = [(server, "/v1/completions", {"prompt": "a"}), (chat_server, "/v1/chat/completions", {"messages": MESSAGES})]
    for one, path, body in bodies:
        error = one.post_json(path, {**body, **fields}, 400)["error"]
        assert error["param"] == param, error
        assert error["message"] and error["type"] == "invalid_request_error"


def test_refused_on_one_route(server, chat_server):
    assert server.post_json("/v1/completions", {"prompt": "a", "best_of": 3}, 400)["error"]["param"] == "best_of"
    forced = {"messages": MESSAGES, "tool_choice": "required", "tools": [{"type": "function", "function": {"name": "f"}}]}
    assert chat_server.post_json("/v1/chat/completions", forced, 400)["error"]["param"] == "tool_choice"


def test_neutral_values_ask_for_nothing(server):
    neutral = {"response_format": {"type": "text"}, "length_penalty": 1.0, "use_beam_search": False, "guided_json": None,
               "logit_bias": {}, "stop": None, "best_of": None, "prompt_logprobs": None, "spaces_between_special_tokens": True}
    assert server.complete(PROMPT, max_tokens=4, **neutral)["choices"][0]["text"] == server.complete(PROMPT, max_tokens=4)["choices"][0]["text"]


def test_kserve_rest_and_load(server):
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert server.request("GET", path)[0] == 200
    assert server.get_json("/v2")["name"] == "restkv"
    assert server.get_json(f"/v2/models/{server.model_id}")["inputs"][0]["name"] == "text_input"
    assert server.get_json(f"/v2/models/{server.model_id}/ready") == {"name": server.model_id, "ready": True}
    assert server.get_json(f"/v2/models/{server.model_id}/versions/1/ready")["ready"] is True
    assert server.get_json(f"/v2/models/{server.model_id}/versions/1")["versions"] == ["1"]
    assert server.request("GET", "/v2/models/other/ready")[0] == 404
    assert server.request("GET", f"/v2/models/{server.model_id}/versions/2")[0] == 404
    assert server.get_json("/load") == {"server_load": 0}


def test_openapi_has_every_field(server):
    document = server.get_json("/openapi.json")
    assert document["openapi"].startswith("3.1")
    for path, answer in (("/v1/completions", "prompt"), ("/v1/chat/completions", "messages")):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["required"] == [answer]
        for name in ("temperature", "top_k", "cache", "bad_words", "prompt_logprobs"):
            assert name in schema["properties"], name
        assert "budget" in schema["properties"]["cache"]["properties"]
        assert schema["properties"]["n"]["maximum"] == 16
        assert schema["properties"]["stop_token_ids"]["items"]["maximum"] == 511, "the vocabulary's"
        cache = schema["properties"]["cache"]["properties"]
        assert {"restkv", "full", None} <= set(cache["policy"]["enum"]) and cache["window"]["maximum"] == 1024
        names = server.post_json("/v1/completions", {"prompt": "a", "cache": {"policy": "nope"}}, 400)["error"]["message"]
        assert all(name in names for name in cache["policy"]["enum"] if name)
    for path, answer in (("/v1/completions", "prompt"), ("/v1/chat/completions", "messages"), ("/completion", "prompt")):
        refused = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["x-refused"]
        assert "guided_json" in refused or "samplers" in refused
        for name in refused:
            body = {answer: "a" if answer == "prompt" else [{"role": "user", "content": "a"}], name: [1]}
            error = server.post_json(path, body, 400)["error"]
            assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    for path, operations in document["paths"].items():  # each is there, with each method
        for method in operations:
            status, _, body = server.request(method.upper(), path.replace("{id}", server.model_id), "{}" if method == "post" else None)
            assert status != 405 and b"nothing at this path" not in body, (method, path, status, body[:200])
            assert json.loads(body) if "metrics" not in path else body


# llama.cpp's /completion

def llama(server, expected: int = 200, **fields):
    return server.post_json("/completion", {"prompt": PROMPT, "temperature": 0, "n_predict": 12, **fields}, expected)


def test_llama_completion(server):
    answer = llama(server, return_tokens=True, n_probs=2)
    assert answer["content"] == server.complete(PROMPT, max_tokens=12)["choices"][0]["text"]
    assert (answer["stop"], answer["stop_type"], answer["tokens_predicted"]) == (True, "limit", 12)
    assert len(answer["tokens"]) == 12 and len(answer["completion_probabilities"]) == 12
    assert answer["model"] == server.model_id and answer["prompt"] == f"<s> {PROMPT}" and answer["timings"]["predicted_n"] == 12
    assert answer["generation_settings"]["top_k"] == 40
    word = answer["content"].split()[1]
    stopped = llama(server, n_predict=60, stop=[word])
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", word) and word not in stopped["content"]
    first = answer["tokens"][0]
    assert llama(server, return_tokens=True, logit_bias=[[first, False]])["tokens"][0] != first
    assert llama(server, seed=3, temperature=0.9)["content"] == llama(server, seed=3, temperature=0.9)["content"]


def test_llama_stream_has_no_done(server):
    status, headers, body = server.request("POST", "/completion", {"prompt": PROMPT, "temperature": 0, "n_predict": 12, "stream": True})
    assert status == 200 and headers["Content-Type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in body.decode().split("\n\n") if line.startswith("data: ")]
    assert b"[DONE]" not in body and [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    assert "".join(event["content"] for event in events) == llama(server)["content"]


def test_llama_stream_and_whole_say_the_same(server):
    text = llama(server, n_predict=200)["content"]
    assert "\n" in text
    for stop in ([], [text[20:24]], ["\n"]):
        fields = {"prompt": PROMPT, "n_predict": 200, "return_tokens": True, "stop": stop}
        whole = llama(server, **fields)
        events = events_of(server, "/completion", **fields)
        assert [token for event in events for token in event["tokens"]] == whole["tokens"]
        assert events[-1]["content"] == "" and events[-1]["tokens"] == []
        for name in ("has_new_line", "stop_type", "stopping_word", "tokens_predicted", "tokens_evaluated"):
            assert events[-1][name] == whole[name], name
        assert whole["has_new_line"] == ("\n" in whole["content"])


def test_llama_end_of_context_and_props(server):
    assert llama(server, n_predict=-1, ignore_eos=True)["tokens_predicted"] == 512 - len(server.post_json("/tokenize", {"prompt": PROMPT})["tokens"])
    too_many = server.post_json("/completion", {"prompt": PROMPT, "n_predict": 600}, 400)["error"]
    assert (too_many["param"], too_many["code"]) == ("n_predict", "context_length_exceeded")
    props = server.get_json("/props")
    assert props["default_generation_settings"]["n_ctx"] == 512 and "/" not in props["model_alias"]


def test_llama_slots(server):
    """A place for each sequence; one's own requests show there, one's answers have the same shape at /completions."""
    idle = server.get_json("/slots")
    assert len(idle) == server.get_json("/props")["total_slots"]
    assert [slot["id"] for slot in idle] == list(range(len(idle))) and not any(slot["is_processing"] for slot in idle)
    assert server.request("GET", "/slots?fail_on_no_slot=1")[0] == 200
    body = {"prompt": PROMPT, "max_tokens": 480, "n": 2, "ignore_eos": True, "request_id": "slots"}
    busy = []
    for _ in range(20):  # until it was seen while it ran
        thread = threading.Thread(target=server.post_json, args=("/v1/completions", body))
        thread.start()
        while not busy and thread.is_alive():
            busy = [slot for slot in server.get_json("/slots") if "request_id" in slot]
        thread.join()
        if busy:
            break
    assert {slot["request_id"] for slot in busy} == {"cmpl-slots"} and all(slot["is_processing"] for slot in busy)
    assert len(busy) == 2 and busy[0]["params"]["n_predict"] == 480
    assert busy[0]["next_token"][0]["n_decoded"] + busy[0]["next_token"][0]["n_remain"] == 480
    fields = {"prompt": PROMPT, "n_predict": 8, "temperature": 0}
    assert server.post_json("/completions", fields)["content"] == server.post_json("/completion", fields)["content"]


def events_of(server, path, **fields):
    status, _, body = server.request("POST", path, {"temperature": 0, "stream": True, **fields})
    assert status == 200, body[:500]
    return [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize("path", ["/completion", "/v1/completions", "/v1/chat/completions"])
def test_return_progress(start_server, stories_model, tmp_path, path):
    """A prompt in units: growing shares of it before the first token, the last one the whole; none without the field."""
    template = tmp_path / "plain.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    server = start_server(stories_model, "--chat-template", template, "--max-num-batched-tokens", 32)
    ids = server.post_json("/tokenize", {"prompt": "Once upon a time there was a girl. " * 12})["tokens"]
    text = server.post_json("/detokenize", {"tokens": (ids * 4)[1:450]})["prompt"]
    fields = {"messages": [{"role": "user", "content": text}]} if "chat" in path else {"prompt": text}
    fields |= {"n_predict": 4} if path == "/completion" else {"max_tokens": 4}
    length = server.post_json("/tokenize", fields if "chat" in path else {"prompt": text})["count"]
    more = {"return_progress": True} | ({"return_prompt_text": True, "return_token_ids": True} if path[:3] == "/v1" else {})
    for attempt in range(20):  # a reader that comes late sees several units at once
        events = events_of(server, path, **fields, **more | ({"cache_salt": str(attempt)} if path[:3] == "/v1" else {}))
        progress = [event["prompt_progress"] for event in events if "prompt_progress" in event]
        if len(progress) > 2:
            break
    assert len(progress) > 2
    assert ["prompt_progress" in event for event in events] == [True] * len(progress) + [False] * (len(events) - len(progress))
    assert {entry["total"] for entry in progress} == {length}
    (cached,) = {entry["cache"] for entry in progress}
    done = [entry["processed"] for entry in progress]
    assert done == sorted(set(done)) and done[-1] == length and cached < done[0] < length
    assert progress[-1]["time_ms"] >= progress[0]["time_ms"] >= 0
    plain = events_of(server, path, **fields)
    assert not any("prompt_progress" in event for event in plain)
    assert "prompt_progress" not in server.post_json(path, {**fields, "temperature": 0, "return_progress": True})
    if "chat" in path:
        roles = [event["choices"][0]["delta"].get("role") for event in events]
        assert roles[0] == "assistant" and roles[1:] == [None] * (len(roles) - 1)
        assert [event["prompt_text"] for event in events if "prompt_text" in event] == [text]
        assert sum("prompt_token_ids" in event for event in events) == 1
        content = [[event["choices"][0]["delta"].get("content", "") for event in some] for some in (events, plain)]
        assert "".join(content[0]) == "".join(content[1]) != ""


def test_return_prompt_text(server, chat_server):
    assert server.complete(PROMPT, max_tokens=1, return_prompt_text=True)["choices"][0]["prompt_text"] == PROMPT
    ids = server.post_json("/tokenize", {"prompt": PROMPT})["tokens"]
    cut = server.complete(PROMPT, max_tokens=1, return_prompt_text=True, truncate_prompt_tokens=2)["choices"][0]
    assert cut["prompt_text"] == server.post_json("/detokenize", {"tokens": ids[-2:]})["prompt"] != PROMPT
    assert "prompt_text" not in server.complete(PROMPT, max_tokens=1)["choices"][0]
    asked = {"messages": MESSAGES}
    assert chat(chat_server, return_prompt_text=True)["prompt_text"] == chat_server.post_json("/apply-template", asked)["prompt"]
    streamed = events_of(chat_server, "/v1/chat/completions", **asked, max_tokens=3, return_prompt_text=True)
    assert ["prompt_text" in event for event in streamed] == [True] + [False] * (len(streamed) - 1)


def test_stream_interval(server, chat_server):
    """The first piece at once, then so many together; the text, the tokens and their log probabilities are the same."""
    fields = {"prompt": PROMPT, "max_tokens": 12, "logprobs": 1, "return_token_ids": True, "n": 2, "seed": 3, "temperature": 1}
    plain, joined = (events_of(server, "/v1/completions", **fields, **more) for more in ({}, {"stream_interval": 5}))
    for index in (0, 1):
        one, five = ([event["choices"][0] for event in events if event["choices"][0]["index"] == index] for events in (plain, joined))
        assert [len(piece["token_ids"]) for piece in five] == [1, 5, 5, 1] and five[-1]["finish_reason"] == "length"
        assert "".join(piece["text"] for piece in one) == "".join(piece["text"] for piece in five)
        for key in ("tokens", "token_logprobs", "text_offset"):
            assert sum((piece["logprobs"][key] for piece in one), []) == sum((piece["logprobs"][key] for piece in five), [])
    messages = {"messages": MESSAGES, "max_tokens": 6}
    plain, joined = (events_of(chat_server, "/v1/chat/completions", **messages, **more) for more in ({}, {"stream_interval": 1000}))
    texts = [[event["choices"][0]["delta"].get("content", "") for event in events] for events in (plain, joined)]
    assert "".join(texts[0]) == "".join(texts[1]) and len(joined) == 4 < len(plain)  # role, first piece, the rest, finish
    assert server.post_json("/v1/completions", {"prompt": PROMPT, "stream_interval": 0}, 400)["error"]["param"] == "stream_interval"


def test_seed_of_the_server(start_server, stories_model):
    """--seed is that of requests without one; theirs goes first."""
    server = start_server(stories_model, "--seed", 5)
    texts = {server.complete(PROMPT, max_tokens=20, temperature=1)["choices"][0]["text"] for _ in range(3)}
    assert texts == {server.complete(PROMPT, max_tokens=20, temperature=1, seed=5)["choices"][0]["text"]}
    assert server.complete(PROMPT, max_tokens=20, temperature=1, seed=6)["choices"][0]["text"] not in texts


@pytest.mark.parametrize("fields", [{"json_schema": {}}, {"guided_json": {}}, {"logprob_token_ids": [1]}])
def test_what_asks_for_something_is_not_ignored(server, fields):
    (name,) = fields
    error = server.post_json("/v1/completions", {"prompt": PROMPT, "max_tokens": 1, **fields}, 400)["error"]
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")


def test_llama_timings_per_token(server):
    for asked in (False, True):
        _, _, body = server.request("POST", "/completion", {"prompt": PROMPT, "n_predict": 8, "temperature": 0, "stream": True,
                                                            "timings_per_token": asked})
        events = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: ")]
        assert all(("timings" in event) == (asked or event["stop"]) for event in events)
        assert events[-1]["timings"]["predicted_n"] == 8


@pytest.mark.parametrize(("fields", "param"), [
    ({"mirostat": 2}, "mirostat"), ({"grammar": "root ::= x"}, "grammar"), ({"samplers": ["top_k"]}, "samplers"), ({"json_schema": {}}, "json_schema"),
    ({"repeat_penalty": 1.1, "repeat_last_n": 64}, "repeat_last_n"), ({"n_predict": -3}, "n_predict"),
    ({"logit_bias": [[1]]}, "logit_bias[0]"), ({"prompt": [1, "a"]}, "prompt[1]"), ({"prompt": {}}, "prompt"),
])
def test_llama_refused_by_name(server, fields, param):
    assert llama(server, 400, **fields)["error"]["param"] == param

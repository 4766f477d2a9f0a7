"""POST /v1/completions and its neighbours through the openai client and plain JSON, against the real binary."""

import asyncio
import json
import math

import openai
import pytest

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def create(client, server, **fields):
    return client.completions.create(**{"model": server.model_id, "prompt": PROMPT, "temperature": 0, "max_tokens": 16} | fields)


def test_whole_and_streamed_are_the_same(client, server):
    whole = create(client, server)
    assert whole.object == "text_completion"
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 16
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 16
    chunks = list(create(client, server, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_async_client_with_many_at_once(server):
    async def run():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            fields = {"model": server.model_id, "prompt": PROMPT, "temperature": 0, "max_tokens": 12}

            async def streamed():
                return "".join([chunk.choices[0].text
                                async for chunk in await client.completions.create(stream=True, **fields)])

            whole = (await client.completions.create(**fields)).choices[0].text
            return whole, await asyncio.gather(*[streamed() for _ in range(8)])

    whole, streams = asyncio.run(run())
    assert set(streams) == {whole}


def test_prompt_shapes(server):
    ids = server.post_json("/tokenize", {"prompt": PROMPT})["tokens"]
    text = server.complete(PROMPT)["choices"][0]["text"]
    assert server.complete(ids)["choices"][0]["text"] == text
    answer = server.complete([PROMPT, "Lily"], n=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"][:2]] == [text, text]
    assert server.complete([ids, ids])["choices"][1]["text"] == text


def test_several_prompts_streamed(server):
    whole = server.complete([PROMPT, "Lily"], n=2, max_tokens=6)
    texts = [""] * 4
    ends = set()
    for event in server.stream([PROMPT, "Lily"], n=2, max_tokens=6):
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
            if choice["finish_reason"]:
                ends.add(choice["index"])
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert ends == {0, 1, 2, 3}


def test_seed(server):
    def sample(**fields):
        return server.complete(PROMPT, temperature=1, max_tokens=24, **fields)["choices"][0]["text"]

    assert sample(seed=7) == sample(seed=7)
    assert len({sample(seed=seed) for seed in range(6)}) > 1
    assert len({sample() for _ in range(6)}) > 1
    many = server.complete(PROMPT, temperature=1, max_tokens=24, seed=7, n=4)["choices"]
    assert len({choice["text"] for choice in many}) > 1


def test_stop_strings(server):
    text = server.complete(PROMPT, max_tokens=40)["choices"][0]["text"]
    stop = text[10:14]
    answer = server.complete(PROMPT, max_tokens=40, stop=[stop, "never said"])
    assert answer["choices"][0]["text"] == text[:text.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 40
    events = list(server.stream(PROMPT, max_tokens=40, stop=stop, stream_options={"include_usage": True}))
    assert "".join(choice["text"] for event in events for choice in event["choices"]) == text[:text.index(stop)]
    assert events[-1]["usage"] == answer["usage"]
    kept = server.complete(PROMPT, max_tokens=40, stop=stop, include_stop_str_in_output=True)
    assert kept["choices"][0]["text"] == text[:text.index(stop) + len(stop)]


def test_stop_token_ids(server):
    ids = server.post_json("/tokenize", {"prompt": PROMPT})["tokens"]
    logprobs = server.complete(ids, logprobs=0, max_tokens=8)["choices"][0]["logprobs"]
    text = "".join(logprobs["tokens"][:3])
    third = server.post_json("/tokenize", {"prompt": PROMPT + "".join(logprobs["tokens"])})["tokens"][len(ids) + 3]
    answer = server.complete(ids, stop_token_ids=[third], max_tokens=8)["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert answer["stop_reason"] == third
    assert text.startswith(answer["text"])


def test_echo_and_logprobs(server):
    answer = server.complete(PROMPT, echo=True, logprobs=3, max_tokens=4)
    choice = answer["choices"][0]
    assert choice["text"].startswith(PROMPT)
    logprobs = choice["logprobs"]
    count = answer["usage"]["prompt_tokens"] + 4
    assert [len(logprobs[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [count] * 4
    assert logprobs["token_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    # Each token's text is at its offset; the first two are <s> and a space that the tokenizer put in front.
    offsets = logprobs["text_offset"] + [len(choice["text"])]
    pieces = [choice["text"][begin:end] for begin, end in zip(offsets, offsets[1:])]
    assert pieces == ["", logprobs["tokens"][1].lstrip(), *logprobs["tokens"][2:]]
    for token, value, top in list(zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"]))[1:]:
        assert 3 <= len(top) <= 4
        assert top[token] == value
        assert math.fsum(math.exp(other) for other in top.values()) <= 1.001
    # The greedy tokens are the best ones.
    for value, top in list(zip(logprobs["token_logprobs"], logprobs["top_logprobs"]))[-4:]:
        assert value == max(top.values())
    only_prompt = server.complete(PROMPT, echo=True, logprobs=0, max_tokens=0)["choices"][0]
    assert only_prompt["text"] == PROMPT
    assert only_prompt["logprobs"]["token_logprobs"] == logprobs["token_logprobs"][:count - 4]


def test_logit_bias_and_min_tokens(server):
    ids = server.post_json("/tokenize", {"prompt": PROMPT})["tokens"]
    banned = server.post_json("/tokenize", {"prompt": PROMPT + server.complete(ids, max_tokens=4)["choices"][0]["text"]})
    first = banned["tokens"][len(ids)]
    other = server.complete(ids, max_tokens=4, logit_bias={str(first): -100})["choices"][0]["text"]
    assert other != server.complete(ids, max_tokens=4)["choices"][0]["text"]
    assert server.complete(ids, max_tokens=4, logit_bias={str(first): 100}, logprobs=0)["choices"][0]["logprobs"]["tokens"]


def test_ignore_eos_runs_to_the_end(server):
    answer = server.complete(PROMPT, max_tokens=300, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 300
    assert answer["choices"][0]["finish_reason"] == "length"


def test_timings(server):
    timings = server.complete(PROMPT, max_tokens=8)["timings"]
    assert timings["predicted_n"] == 8
    assert timings["prompt_ms"] > 0
    assert timings["predicted_per_second"] > 0


@pytest.mark.parametrize(("fields", "status", "param", "code"), [
    ({"n": 0}, 400, "n", "invalid_value"),
    ({"n": 17}, 400, "n", "invalid_value"),
    ({"n": 2**63}, 400, "n", "invalid_value"),
    ({"temperature": -1}, 400, "temperature", "invalid_value"),
    ({"temperature": "inf"}, 400, "temperature", "invalid_value"),
    ({"top_p": 0}, 400, "top_p", "invalid_value"),
    ({"prompt": [1, -1]}, 400, "prompt[1]", "invalid_value"),
    ({"prompt": [2**31]}, 400, "prompt[0]", "invalid_value"),
    ({"prompt": None}, 400, "prompt", "missing_required_parameter"),
    ({"stop_token_ids": [10**6]}, 400, "stop_token_ids[0]", "invalid_value"),
    ({"logit_bias": {"-1": 1}}, 400, "logit_bias", "invalid_value"),
    ({"logit_bias": {str(i): 0 for i in range(1025)}}, 400, "logit_bias", "invalid_value"),
    ({"stop": ["x"] * 5}, 400, "stop", "invalid_value"),
    ({"logprobs": 21}, 400, "logprobs", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "invalid_value"),
    ({"suffix": "end"}, 400, "suffix", "unsupported_parameter"),
    ({"best_of": 2}, 400, "best_of", "unsupported_parameter"),
    ({"model": "other"}, 404, "model", "model_not_found"),
    ({"max_tokens": 10**9}, 400, "max_tokens", "context_length_exceeded"),
    ({"prompt": ["x", "once upon a time " * 200]}, 400, "prompt[1]", "context_length_exceeded"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format", "unsupported_parameter"),
    ({"prompt": "x" * 1_000_000}, 400, "prompt", "context_length_exceeded"),
])
def test_errors(server, fields, status, param, code):
    error = server.post_json("/v1/completions", {"prompt": PROMPT} | fields, expected=status)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    if param:
        assert error["param"] == param
    assert "/" not in error["message"].replace("/v1/", ""), "no path in an error"


@pytest.mark.parametrize(("value", "found"), [(1.5, "1.5"), (-1, "-1"), ("5", "a string"), (True, "a boolean"), (10**30, "1e+30")])
def test_errors_say_what_was_found(server, value, found):
    error = server.post_json("/v1/completions", {"prompt": PROMPT, "max_tokens": value}, expected=400)["error"]
    assert error["message"] == f"'max_tokens' must be an integer between 0 and 2147483647, not {found}"


def test_openai_exceptions(client, server):
    with pytest.raises(openai.BadRequestError, match="between 1 and 16"):
        create(client, server, n=17)
    with pytest.raises(openai.NotFoundError):
        create(client, server, model="nope")
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model=server.model_id, messages=[{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("body", [
    b"", b"nonsense", b"[]", b"7", b'{"prompt":"x"', b'{"prompt":"x"}\0x', b'{"prompt":"x"} {}', b'{"prompt":"x","prompt":"y"}',
    b'{"prompt":"x","temperature":1e999}', b'{"prompt":"x","temperature":NaN}', b'{"prompt":"\\ud800"}', b'{"prompt":"\xff"}',
    b'{"prompt":"x","ignored":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"prompt":"x","ignored":{' + b",".join(b'"%d":0' % i for i in range(10_001)) + b"}}",
], ids=range(14))
def test_hostile_json(server, body):
    status, _, answer = server.request("POST", "/v1/completions", body)
    assert status == 400
    assert json.loads(answer)["error"]["type"] == "invalid_request_error"


def test_tiny_temperature_is_greedy(server):
    greedy = server.complete(PROMPT)["choices"][0]["text"]
    assert server.complete(PROMPT, temperature=1e-38)["choices"][0]["text"] == greedy


def test_long_words_are_no_trouble(server):
    status, _, _ = server.request("POST", "/v1/completions", {"prompt": "a" * 32_000, "max_tokens": 1}, timeout=10)
    assert status == 400  # more than the model's context
    assert server.post_json("/tokenize", {"prompt": "a" * 65_536})["count"] > 0


def test_tokenize_and_detokenize(server):
    vllm = server.post_json("/tokenize", {"prompt": PROMPT, "return_token_strs": True})
    assert vllm["count"] == len(vllm["tokens"]) == len(vllm["token_strs"])
    assert vllm["max_model_len"] > 0
    llama = server.post_json("/tokenize", {"content": PROMPT, "with_pieces": True})["tokens"]
    assert [set(token) for token in llama] == [{"id", "piece"}] * len(llama)
    back = server.post_json("/detokenize", {"tokens": [token["id"] for token in llama]})
    assert back["content"] == back["prompt"]
    assert back["content"].strip() == PROMPT


def test_tokenizer_info(server):
    info = server.get_json("/tokenizer_info")
    assert info["add_bos_token"] is True and info["vocab_size"] == 512 and info["model_max_length"] == 512
    for name in ("bos_token", "eos_token"):
        (token,) = server.post_json("/tokenize", {"prompt": info[name], "add_special_tokens": False})["tokens"]
        assert server.post_json("/detokenize", {"tokens": [token]})["prompt"] in (info[name], "")


def test_models_health_and_version(client, server):
    models = client.models.list().data
    assert [model.id for model in models] == [server.model_id]
    assert client.models.retrieve(server.model_id).id == server.model_id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    for path in ("/health", "/health/live", "/health/ready", "/ping"):
        assert server.get_json(path) == {"status": "ok"}
    assert server.get_json("/version")["version"]


def test_wrong_paths_and_methods(server):
    for method, path, status in [("GET", "/nothing", 404), ("GET", "/v1/completions", 405), ("DELETE", "/v1/models", 405),
                                 ("POST", "/health", 405), ("OPTIONS", "/v1/completions", 405)]:
        answer, headers, body = server.request(method, path)
        assert answer == status
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        assert ("Allow" in headers) == (status == 405)


@pytest.mark.parametrize(("path", "meant"), [
    ("/v1/completions/", "/v1/completions"), ("/chat/completions", "/v1/chat/completions"), ("/models/", "/v1/models"),
    ("/v1/v1/chat/completions", "/v1/chat/completions"), ("/health//", "/health"), ("/v1/<b>", None), ("/v1", None)])
def test_a_path_that_a_wrong_base_url_makes(server, path, meant):
    for method in ("GET", "POST"):
        status, _, body = server.request(method, path)
        message = json.loads(body)["error"]["message"]
        assert status == 404
        assert message == "there is nothing at this path" + (f"; did you mean {meant}?" if meant else "")

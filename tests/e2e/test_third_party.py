"""Clients and tools that nobody here wrote, against the real binary; each is skipped, with the reason, where it is absent."""

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROMPT = "Once upon a time"
TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="session")
def chat_server(binary, stories_model, server_logs, tmp_path_factory):
    from conftest import Server
    template = tmp_path_factory.mktemp("template") / "plain.jinja"
    template.write_text(TEMPLATE)
    running = Server(stories_model, server_logs / "third_party.log", "--chat-template", template)
    yield running
    running.kill()


@pytest.fixture
def client(chat_server):
    openai = pytest.importorskip("openai", reason="openai is not installed")
    with openai.OpenAI(base_url=chat_server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


# openai-python

def test_openai_completions(chat_server, client):
    plain = client.completions.create(model=chat_server.model_id, prompt=PROMPT, max_tokens=12, temperature=0, logprobs=2)
    assert plain.choices[0].finish_reason == "length" and len(plain.choices[0].logprobs.tokens) == 12
    pieces = list(client.completions.create(model=chat_server.model_id, prompt=PROMPT, max_tokens=12, temperature=0, stream=True,
                                            stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == plain.choices[0].text
    assert pieces[-1].usage.completion_tokens == 12


def test_openai_chat(chat_server, client):
    fields = {"model": chat_server.model_id, "messages": [{"role": "user", "content": "Hello"}], "max_completion_tokens": 12,
              "temperature": 0}
    plain = client.chat.completions.create(**fields, logprobs=True, top_logprobs=2)
    assert plain.choices[0].message.role == "assistant" and len(plain.choices[0].logprobs.content) == 12
    pieces = list(client.chat.completions.create(**fields, stream=True))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == plain.choices[0].message.content and pieces[-1].choices[0].finish_reason == "length"
    extra = client.chat.completions.create(**fields, extra_body={"cache": {"policy": "full"}, "return_token_ids": True})
    assert len(extra.choices[0].model_extra["token_ids"]) == 12


def test_openai_async(chat_server):
    openai = pytest.importorskip("openai", reason="openai is not installed")

    async def run():
        async with openai.AsyncOpenAI(base_url=chat_server.url + "/v1", api_key="none") as client:
            async def one(index):
                stream = await client.completions.create(model=chat_server.model_id, prompt=PROMPT, max_tokens=20, seed=index,
                                                         stream=True)
                return "".join([piece.choices[0].text async for piece in stream])
            return await asyncio.gather(*(one(index) for index in range(16)))

    texts = asyncio.run(run())
    assert len(texts) == 16 and all(texts) and len(set(texts)) > 1


def test_openai_errors(chat_server, client, start_server, stories_model, tmp_path):
    openai = pytest.importorskip("openai", reason="openai is not installed")
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=chat_server.model_id, prompt="a", n=99)
    assert error.value.param == "n"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="a")
    keys = tmp_path / "keys"
    keys.write_text("sk-good-key-1\n")
    keyed = start_server(stories_model, "--api-key", keys)
    with openai.OpenAI(base_url=keyed.url + "/v1", api_key="sk-wrong-key", max_retries=0) as wrong:
        with pytest.raises(openai.AuthenticationError) as error:
            wrong.models.list()
        assert error.value.code == "invalid_api_key"
    with openai.OpenAI(base_url=keyed.url + "/v1", api_key="sk-good-key-1") as good:
        assert good.models.list().data


# schemathesis: requests made from /openapi.json, good ones and broken ones

def schemathesis(server, tmp_path, examples: int, seconds: int, *choice) -> str:
    program = Path(sys.executable).parent / "schemathesis"
    if not program.is_file():
        pytest.skip("schemathesis is not installed")
    done = subprocess.run([program, "run", server.url + "/openapi.json", "--checks", "not_a_server_error,content_type_conformance",
                           *choice, "--mode", "all", "--max-examples", str(examples), "--phases", "coverage,fuzzing", "--seed", "1",
                           "--request-timeout", "30", "--no-color", "--suppress-health-check", "all",
                           "--generation-database", "none"],
                          cwd=tmp_path, capture_output=True, text=True, timeout=seconds, check=False)
    report = done.stdout[-4000:] + done.stderr[-1000:]
    assert server.process.poll() is None, f"the server is gone:\n{server.output()[-3000:]}\n{report}"
    assert done.returncode == 0, report
    # Else no request that the description allows reaches the engine, and nothing is proved.
    assert "Schema validation mismatch" not in report, report
    return report


# Broken requests are many and their answers short; good ones must not generate for long.
SHORT = ("--max-model-len", 128, "--default-max-tokens", 8)


@pytest.mark.timeout(300)
def test_schemathesis(start_server, stories_model, tmp_path):
    template = tmp_path / "plain.jinja"
    template.write_text(TEMPLATE)
    schemathesis(start_server(stories_model, "--chat-template", template, *SHORT), tmp_path, 50, 240,
                 "--include-method", "POST", "--exclude-path", "/completions")  # the same as /completion


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/completion", "/tokenize", "/detokenize", "/apply-template"])
def test_schemathesis_long(start_server, stories_model, tmp_path, path):
    template = tmp_path / "plain.jinja"
    template.write_text(TEMPLATE)
    schemathesis(start_server(stories_model, "--chat-template", template, *SHORT), tmp_path, 500, 800, "--include-path", path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_schemathesis_of_what_is_read(start_server, stories_model, tmp_path):
    schemathesis(start_server(stories_model, *SHORT), tmp_path, 500, 800, "--exclude-method", "POST")


# Slow: heavy packages

@pytest.mark.slow
def test_langchain(chat_server):
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed (tests/requirements-clients.txt)")
    model = langchain.ChatOpenAI(base_url=chat_server.url + "/v1", api_key="none", model=chat_server.model_id, temperature=0,
                                 max_tokens=12)
    answer = model.invoke("Hello")
    assert answer.content and answer.usage_metadata["output_tokens"] == 12
    assert "".join(piece.content for piece in model.stream("Hello")) == answer.content


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_lm_eval(chat_server, tmp_path):
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-eval is not installed (tests/requirements-clients.txt)")
    data = tmp_path / "tiny.jsonl"
    rows = [{"q": "Once upon a", "choices": [" time", " xyzzy"], "answer": 0},
            {"q": "The little girl was very", "choices": [" happy", " qqq"], "answer": 0}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.yaml").write_text(
        "task: tiny\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: " + str(data) +
        "\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: '{{answer}}'\ntarget_delimiter: ''\nmetric_list:\n  - metric: acc\n")
    arguments = (f"base_url={chat_server.url}/v1/completions,model={chat_server.model_id},tokenizer_backend=remote,"
                 "tokenized_requests=True,num_concurrent=1,max_length=500")
    done = subprocess.run([sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments, "--tasks", "tiny",
                           "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")],
                          capture_output=True, text=True, timeout=500, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    results = json.loads(next((tmp_path / "out").rglob("results*.json")).read_text())["results"]["tiny"]
    assert results["acc,none"] == 1.0


@pytest.mark.slow
def test_wrk(chat_server, tmp_path):
    wrk = shutil.which("wrk")
    if wrk is None:
        pytest.skip("wrk is not installed (Debian package wrk)")
    script = tmp_path / "post.lua"
    script.write_text('wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
                      'wrk.body = \'{"prompt": "a", "max_tokens": 2}\'\n')
    done = subprocess.run([wrk, "-t2", "-c64", "-d5s", "-s", str(script), chat_server.url + "/v1/completions"],
                          capture_output=True, text=True, timeout=60, check=True)
    assert "Requests/sec" in done.stdout and "Non-2xx" not in done.stdout and "Socket errors" not in done.stdout, done.stdout
    done = subprocess.run([wrk, "-t2", "-c64", "-d5s", chat_server.url + "/health"], capture_output=True, text=True, timeout=60,
                          check=True)
    assert "Non-2xx" not in done.stdout and "Socket errors" not in done.stdout, done.stdout

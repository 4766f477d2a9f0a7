"""The demo model says what it should: a check of the whole path on real weights, which a tiny model cannot give."""

import openai
import pytest
from conftest import run_restkv

PROMPT = "The capital of France is"


def test_paris_whole(demo_server):
    answer = demo_server.complete(PROMPT, max_tokens=16)
    assert "Paris" in answer["choices"][0]["text"]
    assert answer["usage"]["completion_tokens"] <= 16


def test_paris_streamed(demo_server):
    text = "".join(choice["text"] for event in demo_server.stream(PROMPT, max_tokens=16) for choice in event["choices"])
    assert "Paris" in text
    assert text == demo_server.complete(PROMPT, max_tokens=16)["choices"][0]["text"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_paris_through_openai_python(demo_server, stream):
    client = openai.OpenAI(base_url=demo_server.url + "/v1", api_key="none", max_retries=0)
    answer = client.completions.create(model=demo_server.model_id, prompt=PROMPT, max_tokens=16, temperature=0,
                                       stream=stream)
    text = "".join(chunk.choices[0].text for chunk in answer) if stream else answer.choices[0].text
    assert "Paris" in text


def test_paris_on_the_command_line(binary, demo_model):
    done = run_restkv("complete", "demo", PROMPT, "--max-tokens", 16, "--temperature", 0)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_the_name_demo_is_a_model(demo_server):
    """The lines that README and quickstart print name the model `demo`."""
    assert demo_server.post_json("/v1/completions", {"model": "demo", "prompt": PROMPT, "max_tokens": 1})["model"]


def test_long_prompt_keeps_its_beginning(demo_server):
    """A name from the first of 1,500 tokens comes back at their end."""
    filler = "The weather was mild and nothing happened that day. " * 130
    prompt = f"The secret word is Zanzibar. Remember: Zanzibar. {filler}The secret word is"
    answer = demo_server.complete(prompt, max_tokens=8)
    assert answer["usage"]["prompt_tokens"] > 1200
    assert "Zanz" in answer["choices"][0]["text"]

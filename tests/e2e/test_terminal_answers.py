"""restkv complete and restkv chat, as a person at a terminal meets them."""

import signal
import subprocess
import time

import pytest
from conftest import BINARY, clean_environment, run_restkv
from test_cli import expect_failure

pytestmark = pytest.mark.usefixtures("binary")


# --- complete ---

def test_complete_is_what_the_server_answers(server, stories_model):
    done = run_restkv("complete", stories_model, "Once upon a time", "--max-tokens", 30, "--temperature", 0)
    assert done.returncode == 0, done.stderr
    answer = server.complete("Once upon a time", max_tokens=30)
    assert done.stdout == answer["choices"][0]["text"] + "\n"
    assert "30 tokens" in done.stderr


def test_complete_with_a_seed_repeats(stories_model):
    texts = {run_restkv("complete", stories_model, "The cat", "--max-tokens", 20, "--temperature", 1, "--seed", seed,
                        "--threads", threads).stdout for seed, threads in ((7, 1), (7, 2), (7, 3))}
    assert len(texts) == 1
    others = {run_restkv("complete", stories_model, "The cat", "--max-tokens", 20, "--temperature", 1, "--seed", seed
                         ).stdout for seed in range(4)}
    assert len(others) > 1


def test_complete_reads_the_prompt_from_stdin(stories_model):
    flags = ["--max-tokens", 5, "--temperature", 0]
    assert (run_restkv("complete", stories_model, *flags, stdin="Tom had").stdout
            == run_restkv("complete", stories_model, "Tom had", *flags).stdout)


def test_prompt_beyond_the_context(stories_model):
    done = run_restkv("complete", stories_model, "word " * 2000, "--max-tokens", 5)
    expect_failure(done, 1, "512")


def test_interrupt_in_the_middle_of_a_completion(demo_model):
    """Ctrl-C: what was written stays, whole characters only, the figures follow, the exit code is 130."""
    with subprocess.Popen([BINARY, "complete", "demo", "Once upon a time", "--max-tokens", "4000", "--ignore-eos"],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=clean_environment(), start_new_session=True) as process:
        seen = b""
        while len(seen) < 40:
            piece = process.stdout.read1(4096)
            assert piece, process.stderr.read()
            seen += piece
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        rest, errors = process.communicate(timeout=10)
        assert time.monotonic() - start < 2
        assert process.returncode == 130, errors
        (seen + rest).decode("utf-8")
        assert b"interrupted" in errors


# --- chat ---

def test_chat_holds_a_conversation(demo_model):
    lines = ["My name is Zanzibar. Remember my name.", "/budget 256", "What is my name?", "/reset", "What is my name?", "/help"]
    done = run_restkv("chat", "demo", "--temperature", 0, "--max-tokens", 40, stdin="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr
    assert "budget 256" in done.stderr and "begins anew" in done.stderr and "/system" in done.stderr
    answers = done.stdout
    assert "Zanzibar" in answers
    alone = run_restkv("chat", "demo", "--temperature", 0, "--max-tokens", 40, stdin=lines[4])
    assert answers.endswith(alone.stdout), "after /reset nothing is remembered"


def test_chat_is_what_the_server_answers(demo_server):
    body = {"messages": [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Say hi"}],
            "temperature": 0, "max_tokens": 20}
    answer = demo_server.post_json("/v1/chat/completions", body)["choices"][0]["message"]["content"]
    done = run_restkv("chat", "demo", "--temperature", 0, "--max-tokens", 20, "--system", "You are terse.", stdin="Say hi\n/exit\nnever")
    assert done.returncode == 0, done.stderr
    assert done.stdout == answer + "\n"


def test_chat_errors_do_not_end_it(demo_model):
    done = run_restkv("chat", "demo", "--temperature", 0, "--max-tokens", 4, stdin="/nothing\n/budget 1\n/budget x\nSay hi\n")
    assert done.returncode == 1, "input from a pipe that could not all be done"
    for words in ("unknown command '/nothing'", "must be between", "answer 4 tokens"):
        assert words in done.stderr, (words, done.stderr)
    assert done.stdout.strip()


def test_chat_without_a_template(stories_model):
    expect_failure(run_restkv("chat", stories_model, stdin="hi"), 1, "no chat template", "--chat-template")


def test_chat_interrupt_stops_the_answer_not_the_program(demo_model):
    with subprocess.Popen([BINARY, "chat", "demo", "--temperature", "0", "--ignore-eos"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(),
                          start_new_session=True) as process:
        for question in (b"Tell me a very long story.\n", b"Another one, please.\n"):
            process.stdin.write(question)
            process.stdin.flush()
            seen = b""
            while len(seen) < 40:
                piece = process.stdout.read1(4096)
                assert piece, process.stderr.read()
                seen += piece
            process.send_signal(signal.SIGINT)
            while not seen.endswith(b"\n"):
                piece = process.stdout.read1(4096)
                assert piece, "the program ended with its answer"
                seen += piece
        assert process.poll() is None
        _, errors = process.communicate(b"/exit\n", timeout=10)
        assert process.returncode == 0
        assert errors.count(b"interrupted") == 2

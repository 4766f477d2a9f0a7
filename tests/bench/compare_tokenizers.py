#!/usr/bin/env python3
"""MB/s of one thread on English prose: tokenizer_bench beside tokenizers, tiktoken and sentencepiece in the same run.

Usage: compare_tokenizers.py TOKENIZER_BENCH TOKENIZERS_DIR ESSAYS_DIR
"""
import json
import os
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAYON_NUM_THREADS", "1")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "text"))

import compare_pypi as shared  # noqa: E402  (exits 77 where the packages are absent)
import sentencepiece  # noqa: E402
import tiktoken  # noqa: E402
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers  # noqa: E402

ROUNDS = 5


def best_speed(encode, texts):
    size, best = sum(len(t.encode()) for t in texts), 0.0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for text in texts:
            encode(text)
        best = max(best, size / 1e6 / (time.perf_counter() - start))
    return best


def main():
    bench, folder, essays = sys.argv[1:4]
    paths = [os.path.join(essays, name) for name in sorted(os.listdir(essays))]
    texts = [open(path, encoding="utf8", errors="ignore").read() for path in paths]

    def ours(vocabulary):
        run = subprocess.run([bench, vocabulary, *paths], capture_output=True, text=True, check=True)
        return json.loads(run.stdout)["encode_mb_s"]

    rows = []
    llama3 = os.path.join(folder, "llama3.tiktoken.model")
    ranks = shared.read_ranks(llama3)
    reference = tiktoken.Encoding("llama3", pat_str=shared.LLAMA3, mergeable_ranks=ranks, special_tokens={})
    rows.append(("Llama 3 ranks", ours(llama3), "tiktoken", best_speed(reference.encode_ordinary, texts)))
    alphabet = shared.byte_alphabet()
    order = ["".join(alphabet[b] for b in token) for token in ranks]
    vocab = {token: i for i, token in enumerate(order)}
    tokenizer = Tokenizer(models.BPE(vocab, shared.merges_of(vocab, order), ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(shared.LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "tokenizer.json")
        tokenizer.save(path)
        rows.append(("Llama 3 tokenizer.json", ours(path), "tokenizers", best_speed(tokenizer.encode, texts)))
    llama2 = os.path.join(folder, "llama2.spm.model")
    reference = sentencepiece.SentencePieceProcessor(model_file=llama2)
    rows.append(("Llama 2 SentencePiece", ours(llama2), "sentencepiece", best_speed(reference.encode, texts)))
    print("| vocabulary | RestKV MB/s | other | MB/s | ratio |\n|---|---|---|---|---|")
    for name, speed, other, their_speed in rows:
        print(f"| {name} | {speed:.1f} | {other} | {their_speed:.2f} | {speed / their_speed:.1f}x |")


if __name__ == "__main__":
    main()

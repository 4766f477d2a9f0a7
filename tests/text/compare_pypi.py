#!/usr/bin/env python3
"""The same ids as `tokenizers`, `sentencepiece`, `tiktoken` and `mistral-common` from PyPI on random Unicode.

Usage: compare_pypi.py ENCODE_LINES TOKENIZERS_DIR ESSAYS_DIR [--texts N] [--only NAME]
Exits 77 where a package or the data is absent. Vocabularies that lie nowhere (tokenizer.json of each kind, unigram
models) are made here: converted from the real ones, or trained on the essays.
"""
import argparse
import base64
import json
import os
import random
import subprocess
import sys
import tempfile
import unicodedata

try:
    import sentencepiece
    import tiktoken
    import tokenizers
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import trainers
except ImportError as missing:
    print(f"skipped: {missing.name} is not installed")
    sys.exit(77)

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def random_texts(count, essays, seed=11):
    """Essay pieces, and characters of all scripts that Unicode 14 (PCRE2's and Python 3.11's) assigns."""
    rng = random.Random(seed)
    assigned = [c for c in map(chr, range(1, 0x30000))
                if unicodedata.category(c) not in ("Cn", "Cs", "Co") and c != "\u2581"]
    ascii_text = [chr(c) for c in range(32, 127)] + [" "] * 30 + ["\n", "\t", "\r\n", "'s", "'LL", "  ", "...", "123"]
    latin = [c for c in assigned if ord(c) < 0x600]
    marks = [c for c in assigned if unicodedata.category(c)[0] in "MZNP"]
    texts = ["", " ", "  ", "a", "\n", " a", "a ", "\u00a0x\u3000 y\u180e z"]
    while len(texts) < count:
        if rng.random() < 0.2:
            start = rng.randrange(len(essays))
            texts.append(essays[start:start + rng.randrange(300)])
            continue
        pool = rng.choice([ascii_text, latin, assigned, marks, ascii_text + latin + marks])
        texts.append("".join(rng.choice(pool) for _ in range(rng.randrange(60))))
    return [t.encode("utf-8", "ignore").decode() for t in texts]


def ours(encode_lines, path, texts, *options):
    lines = "".join(t.encode().hex() + "\n" for t in texts)
    run = subprocess.run([encode_lines, path, *options], input=lines, capture_output=True, text=True)
    if run.returncode != 0:
        raise SystemExit(f"{path}: {run.stderr}")
    ids, decoded = [], []
    for line in run.stdout.split("\n")[:-1]:
        left, right = line.split("\t")
        ids.append([int(n) for n in left.split()])
        decoded.append(bytes.fromhex(right))
    return ids, decoded


class Comparison:
    def __init__(self, arguments):
        self.arguments, self.failed, self.ran = arguments, 0, 0

    def check(self, name, path, texts, theirs, *options, round_trip=False):
        if self.arguments.only and self.arguments.only not in name:
            return
        ids, decoded = ours(self.arguments.encode_lines, path, texts, *options)
        different = [i for i, text in enumerate(texts) if ids[i] != theirs(text)]
        lost = [i for i, text in enumerate(texts) if round_trip and decoded[i] != text.encode()]
        self.ran += 1
        print(f"{name}: {len(texts)} texts, {len(different)} with other ids, {len(lost)} not decoded to themselves")
        for i in different[:3]:
            print("   text  ", repr(texts[i]), "\n   ours  ", ids[i], "\n   theirs", theirs(texts[i]))
        for i in lost[:3]:
            print("   text   ", repr(texts[i]), "\n   decoded", decoded[i])
        self.failed += bool(different or lost)


def read_ranks(path):
    with open(path) as file:
        return {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in file if line.strip()}


def byte_alphabet():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, following = {}, 0x100
    for byte in range(256):
        if byte in printable:
            table[byte] = chr(byte)
        else:
            table[byte], following = chr(following), following + 1
    return table


def merges_of(vocab, order):
    """All pairs of tokens that together are a token, in the order of what they become."""
    return [(token[:cut], token[cut:]) for token in order for cut in range(1, len(token))
            if token[:cut] in vocab and token[cut:] in vocab]


def mark_texts():
    """Spaces of several kinds, and SentencePiece's mark for them, at every place."""
    return ["".join(random.choices([" ", "▁", "a", "b", "the", "\u3000", "\u00a0", "\u00b4", "\u1fbd"], k=random.randint(1, 9)))
            for _ in range(300)]


def compare_tiktoken(comparison, folder, work, texts):
    path = os.path.join(folder, "llama3.tiktoken.model")
    ranks = read_ranks(path)
    special = {"<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, "<|eot_id|>": 128009}
    reference = tiktoken.Encoding("llama3", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens=special)
    comparison.check("tiktoken llama3", path, texts, lambda t: reference.encode(t, disallowed_special=()), round_trip=True)
    special_texts = [f"{a}<|eot_id|>{b}" for a, b in zip(texts[::2], texts[1::2])]
    comparison.check("tiktoken llama3 special", path, special_texts,
                     lambda t: reference.encode(t, allowed_special="all"), "parse", round_trip=True)
    count = 40000
    tekken = os.path.join(work, "tekken.json")
    # tekken's first ranks are the bytes in order.
    in_order = [bytes([b]) for b in range(256)] + [b for b in ranks if len(b) > 1][:count - 256]
    specials = [{"rank": i, "token_str": s, "is_control": True} for i, s in enumerate(["<unk>", "<s>", "</s>", "[INST]"])]
    with open(tekken, "w") as file:
        json.dump({"config": {"pattern": TEKKEN, "num_vocab_tokens": count, "default_vocab_size": count,
                              "default_num_special_tokens": 100, "version": "v3"},
                   "vocab": [{"rank": r, "token_bytes": base64.b64encode(b).decode(), "token_str": b.decode("utf8", "ignore")}
                             for r, b in enumerate(in_order)],
                   "special_tokens": specials}, file)
    mistral = Tekkenizer.from_file(tekken)
    comparison.check("mistral-common tekken", tekken, texts, lambda t: mistral.encode(t, bos=False, eos=False),
                     round_trip=True)
    comparison.check("mistral-common tekken bos", tekken, texts[:50], lambda t: mistral.encode(t, bos=True, eos=False), "bos")


def compare_sentencepiece(comparison, folder, work, texts, essays):
    clean = [t.replace("\0", "") for t in texts]
    marks = mark_texts()
    for name in ["llama2.spm.model", "mistral.tokenizer.model.v1", "mistral.mistral_instruct_tokenizer_240323.model.v3"]:
        path = os.path.join(folder, name)
        reference = sentencepiece.SentencePieceProcessor(model_file=path)
        comparison.check(f"sentencepiece {name}", path, clean, reference.encode, round_trip=True)
    gguf_reference = sentencepiece.SentencePieceProcessor(model_file=os.path.join(folder, "llama2.spm.model"))
    comparison.check("sentencepiece llama-spm.gguf", os.path.join(folder, "llama-spm.gguf"), clean, gguf_reference.encode)
    corpus = os.path.join(work, "corpus.txt")
    with open(corpus, "w") as file:
        file.write(essays)
    variants = {
        "bpe nfkc": dict(model_type="bpe", normalization_rule_name="nfkc"),
        "bpe nmt_nfkc": dict(model_type="bpe", normalization_rule_name="nmt_nfkc"),
        "bpe fallback user": dict(model_type="bpe", normalization_rule_name="identity", byte_fallback=True,
                                  remove_extra_whitespaces=False, user_defined_symbols=["<b>", "foo▁bar", "▁▁", "\t"]),
        "unigram nmt_nfkc": dict(model_type="unigram", normalization_rule_name="nmt_nfkc"),
        "unigram nfkc_cf": dict(model_type="unigram", normalization_rule_name="nmt_nfkc_cf"),
        "unigram fallback": dict(model_type="unigram", normalization_rule_name="identity", byte_fallback=True,
                                 remove_extra_whitespaces=False, add_dummy_prefix=False),
    }
    for name, options in variants.items():
        prefix = os.path.join(work, name.replace(" ", "_"))
        sentencepiece.SentencePieceTrainer.train(input=corpus, model_prefix=prefix, vocab_size=2000,
                                                 minloglevel=2, **options)
        reference = sentencepiece.SentencePieceProcessor(model_file=prefix + ".model")
        extra = ["x <b> foo bar  y\t\tz  ", "foo bar", "  <b>", "\t"] if "user" in name else []
        comparison.check(f"sentencepiece {name}", prefix + ".model", clean + extra, reference.encode,
                         round_trip="fallback" in name)
        comparison.check(f"sentencepiece {name} marks", prefix + ".model", marks, reference.encode)


def same_tables(text):
    """Whether the Unicode tables inside `tokenizers`, which are older than ours, agree about this text."""
    return (all(form().normalize_str(text) == unicodedata.normalize(name, text)
                for form, name in [(normalizers.NFC, "NFC"), (normalizers.NFKD, "NFKD")])
            and normalizers.StripAccents().normalize_str(text) == "".join(
                c for c in text if unicodedata.category(c)[0] != "M")
            and "".join(piece for piece, _ in pre_tokenizers.Punctuation("removed").pre_tokenize_str(text)) == "".join(
                c for c in text if not (unicodedata.category(c)[0] == "P" or c in "$+<=>^`|~")))


def compare_tokenizers(comparison, folder, work, texts, essays):
    alphabet = byte_alphabet()
    ranks = read_ranks(os.path.join(folder, "llama3.tiktoken.model"))
    count = 30000
    order = ["".join(alphabet[b] for b in token) for token, rank in ranks.items() if rank < count]
    vocab = {token: i for i, token in enumerate(order)}
    merges = merges_of(vocab, order)

    def check(name, tokenizer, extra=(), old_tables=False, decodes=True, **kwargs):
        path = os.path.join(work, name.replace(" ", "_") + ".json")
        tokenizer.save(path)
        some = texts + list(extra)
        if old_tables:
            some = [t for t in some if same_tables(t)]
        comparison.check("tokenizers " + name, path, some, lambda t: tokenizer.encode(t).ids, "parse", "bos", **kwargs)
        if not decodes or (comparison.arguments.only and comparison.arguments.only not in "tokenizers " + name):
            return
        _, decoded = ours(comparison.arguments.encode_lines, path, some, "parse", "bos")
        other = [i for i, text in enumerate(some) if decoded[i].decode("utf8", "replace") !=
                 tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False)]
        for i in other[:3]:
            print("   decoded", repr(some[i]), decoded[i], tokenizer.decode(tokenizer.encode(some[i]).ids))
        comparison.failed += bool(other)

    specials = [AddedToken("<|im_start|>", special=True, normalized=False),
                AddedToken("<|eot|>", special=True, normalized=False, lstrip=True, rstrip=True),
                AddedToken("word", special=False, single_word=True, normalized=True),
                AddedToken("    ", special=False, normalized=False), AddedToken("Ōnder", normalized=True)]
    special_texts = ["a  <|eot|>  b<|im_start|>c", "word sword words word", "(word) wordé", "x     y      z",
                     "<|eot|> <|eot|>", " \n<|eot|>\n ", "Ōnder O\u0304nder ōnder"]

    def byte_level(pre, normalizer=None, ignore_merges=False, post=None):
        tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=ignore_merges))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
        if normalizer:
            tokenizer.normalizer = normalizer
        tokenizer.add_tokens(specials)
        if post:
            tokenizer.post_processor = post
        return tokenizer

    level = pre_tokenizers.ByteLevel
    plain = level(add_prefix_space=False, use_regex=False)
    check("gpt2", byte_level(level(add_prefix_space=False)), special_texts, round_trip=False)
    check("gpt2 prefix", byte_level(level(add_prefix_space=True)), special_texts)
    check("smollm", byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), level(add_prefix_space=False)])),
          special_texts)
    template = processors.TemplateProcessing(single="<|im_start|> $A <|eot|>",
                                             special_tokens=[("<|im_start|>", count), ("<|eot|>", count + 1)])
    check("llama3", byte_level(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), plain]),
                               ignore_merges=True, post=template), special_texts)
    check("qwen nfc", byte_level(pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), "isolated"), plain]), normalizers.NFC()), special_texts, old_tables=True)
    check("inverted", byte_level(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "removed", True), plain])))
    check("mistral style", byte_level(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(TEKKEN), "isolated"), plain])))
    for behavior in ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]:
        check("split " + behavior, byte_level(pre_tokenizers.Sequence([
            pre_tokenizers.Split(" ", behavior), pre_tokenizers.Punctuation(behavior), pre_tokenizers.Digits(False), plain])),
              ["a  b ..c", " a..", "..a b.. ", "1 2,,3"], old_tables=True)
    check("whitespace", byte_level(pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), plain])))
    check("whitespace split", byte_level(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), plain])))
    check("normalizers", byte_level(level(add_prefix_space=False), normalizers.Sequence([
        normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Strip(),
        normalizers.Replace(Regex(" {2,}"), "_"), normalizers.Replace("a", "bb")])), special_texts, old_tables=True)

    proto = sentencepiece.SentencePieceProcessor(model_file=os.path.join(folder, "llama2.spm.model"))
    pieces = [proto.id_to_piece(i) for i in range(proto.vocab_size())]
    llama_vocab = {piece: i for i, piece in enumerate(pieces)}
    normal = [piece for i, piece in enumerate(pieces) if i >= 259]
    llama_merges = merges_of({p: llama_vocab[p] for p in normal}, normal)
    fallback_decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                          decoders.Strip(" ", 1, 0)])

    def llama(**kwargs):
        tokenizer = Tokenizer(models.BPE(llama_vocab, llama_merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True,
                                         **kwargs))
        tokenizer.add_tokens([AddedToken("<s>", special=True, normalized=False),
                              AddedToken("</s>", special=True, normalized=False), AddedToken("<extra>", normalized=True)])
        return tokenizer

    marks = mark_texts()
    llama_texts = ["a</s>b", "</s> b", "x <extra> y", "<extra>", "<s>", "<s> <s>a", "▁x ▁ y"]
    legacy = llama()
    legacy.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    legacy.decoder = fallback_decoder
    check("llama2 legacy", legacy, llama_texts)
    for scheme in ["first", "always", "never"]:
        for split in [True, False]:
            tokenizer = llama()
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=split)
            tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme=scheme)
            check(f"metaspace {scheme} {split}", tokenizer, llama_texts + marks)
    gemma = llama()
    gemma.normalizer = normalizers.Replace(" ", "▁")
    gemma.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    gemma.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    check("gemma", gemma, llama_texts)

    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    unigram.train_from_iterator(essays.split("\n"), trainers.UnigramTrainer(vocab_size=3000, unk_token="<unk>",
                                                                            special_tokens=["<unk>", "</s>"],
                                                                            show_progress=False))
    check("unigram", unigram, ["a</s>b"], old_tables=True)
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(essays.split("\n"), trainers.BpeTrainer(vocab_size=3000, special_tokens=["<unk>"],
                                                                    show_progress=False))
    check("bpe with unknown", bpe, decodes=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("encode_lines")
    parser.add_argument("tokenizers_dir")
    parser.add_argument("essays_dir")
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    for folder in [arguments.tokenizers_dir, arguments.essays_dir]:
        if not os.path.isdir(folder):
            print("skipped: the vocabularies or the essays are absent")
            sys.exit(77)
    essays = ""
    for name in sorted(os.listdir(arguments.essays_dir)):
        with open(os.path.join(arguments.essays_dir, name), encoding="utf8", errors="ignore") as file:
            essays += file.read() + "\n"
    texts = random_texts(arguments.texts, essays)
    comparison = Comparison(arguments)
    with tempfile.TemporaryDirectory() as work:
        compare_tiktoken(comparison, arguments.tokenizers_dir, work, texts)
        compare_sentencepiece(comparison, arguments.tokenizers_dir, work, texts, essays)
        compare_tokenizers(comparison, arguments.tokenizers_dir, work, texts, essays)
    print(f"ran {comparison.ran} failed {comparison.failed}")
    sys.exit(1 if comparison.failed or not comparison.ran else 0)


if __name__ == "__main__":
    main()

"""The engine against the reference: compare_engine.py ENGINE_ANSWER FOLDER_OF_MODELS [NAME_OF_CASE].

For each case both generate greedily; the reference follows the engine where its own choice is within rounding
(restkv_reference.py) and at most 1 % of its selections may need that. Prints `ran R skipped S`; 77: nothing to run with.
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile

CASES = {
    "default": ("llama3_gqa", 150, {"budget": 48}),
    "default_pins": ("llama3_gqa", 300, {"budget": 100, "pin": 20}),
    "default_short_prompt": ("smollm2_like", 20, {"budget": 50}),
    "default_mha": ("llama2_mha", 120, {"budget": 47}),
    "paper": ("smollm2_like", 150, {"budget": 48, "preset": "paper"}),
    "paper_small_scale": ("llama3_gqa", 200, {"budget": 60, "preset": "paper", "scale": 3, "window": 8}),
    "before_normalized": ("qwen3", 150, {"budget": 48, "preset": "paper", "indicator": "query", "normalize": True}),
    "value_space": ("qwen25", 150, {"budget": 48, "output_projection": False, "group": "max", "reduce": "max"}),
    "softcap_windows": ("gemma2", 100, {"budget": 40, "window": 8}),
    "windows": ("mistral_v01_swa", 100, {"budget": 14, "window": 4, "sinks": 2, "stride": 3}),
    "grow": ("llama3_gqa", 150, {"budget": 60, "decode": "grow"}),
    "snapkv": ("smollm2_like", 150, {"policy": "snapkv", "budget": 50}),
    "snapkv_max": ("mistral_nemo", 90, {"policy": "snapkv", "budget": 50, "pool": "max", "kernel": 7}),
    "streamingllm": ("llama31_rope", 100, {"policy": "streamingllm", "budget": 40}),
    "h2o": ("llama3_gqa", 150, {"policy": "h2o", "budget": 50}),
    "h2o_short_prompt": ("smollm2_like", 20, {"policy": "h2o", "budget": 50}),
    "tova": ("smollm2_like", 150, {"policy": "tova", "budget": 37}),
    "pyramidkv": ("mistral_v03", 150, {"policy": "pyramidkv", "budget": 70}),
    "adakv": ("llama3_gqa", 150, {"policy": "adakv", "budget": 64}),
    "ada_restkv": ("smollm2_like", 150, {"budget": 70, "allocation": "ada"}),
    "lacache": ("mistral_v03", 150, {"policy": "lacache", "budget": 64}),
    "random": ("qwen25_untied_f16", 100, {"policy": "random", "budget": 55}),
    "pinned_ends": ("mistral_v03", 120, {"budget": 70, "pin_head": 10, "pin_tail": 10}),
    "fraction": ("llama3_gqa", 250, {"budget": 200, "fraction": 0.3}),
    "compress": ("llama3_gqa", 200, {"budget": 64, "compress_at": 120, "probe": [5, 17, 33, 2, 40, 9], "pin": 10}),
    "compress_default": ("smollm2_like", 150, {"budget": 50, "compress_at": 90, "probe": "none"}),
    "compress_before_budget": ("smollm2_like", 150, {"budget": 70, "compress_at": 30, "probe": [3, 8, 21]}),
    "compress_paper": ("llama2_mha", 150, {"budget": 50, "preset": "paper", "compress_at": 100, "probe": [7, 8]}),
    "compress_grow": ("llama3_gqa", 150, {"budget": 60, "decode": "grow", "compress_at": 90, "probe": [11, 30, 12]}),
    "compress_windows": ("mistral_v01_swa", 100, {"budget": 14, "window": 4, "sinks": 2, "stride": 3, "compress_at": 50,
                                                  "probe": [6, 60, 2]}),
    "compress_softcap": ("gemma2", 120, {"budget": 40, "window": 8, "compress_at": 70, "probe": [6, 60, 2]}),
    "compress_snapkv": ("smollm2_like", 150, {"policy": "snapkv", "budget": 50, "compress_at": 100}),
    "compress_h2o": ("llama3_gqa", 150, {"policy": "h2o", "budget": 50, "compress_at": 90}),
    "compress_tova": ("smollm2_like", 150, {"policy": "tova", "budget": 37, "compress_at": 70}),
    "compress_adakv": ("llama3_gqa", 150, {"policy": "adakv", "budget": 64, "compress_at": 100}),
    "probe": ("mistral_v03", 150, {"budget": 60, "probe": [4, 9, 16, 25, 36]}),
    "exact": ("llama3_gqa", 30, {"budget": 300}),
    "calibrated": ("llama3_gqa", 200, {"budget": 70}),
    "calibrated_between": ("smollm2_like", 150, {"budget": 83, "allocation": "calibrated"}),
    "calibrated_below": ("llama2_mha", 150, {"budget": 51}),
    "calibrated_above": ("llama3_gqa", 250, {"budget": 110}),
    "calibrated_grow": ("llama3_gqa", 150, {"budget": 64, "decode": "grow"}),
    "calibrated_windows": ("gemma2", 100, {"budget": 40, "window": 8, "allocation": "calibrated"}),
    "calibrated_snapkv": ("smollm2_like", 150, {"policy": "snapkv", "budget": 64, "allocation": "calibrated"}),
}


def make_table(model, folder, source):
    """An allocation file with rows as uneven as they come, for both modes."""
    def rows(budget):
        return [[round(budget * source.uniform(0.5, 1.5)) for _ in range(model.kv_heads)] for _ in range(model.num_layers)]

    def table(budgets):
        return {"budgets": budgets, "rows": [rows(budget) for budget in budgets]}

    config = json.loads((folder / "config.json").read_text())
    vocabulary, width = model.weights["model.embed_tokens.weight"].shape
    fingerprint = {"arch": config["architectures"][0], "L": model.num_layers, "K": model.kv_heads, "H": model.heads,
                   "D": model.dim, "M": width, "V": vocabulary}
    return {"version": 1, "fingerprint": fingerprint, "decode": "evict", **table([64, 100]), "grow": table([50, 90])}


def main(engine, folder, only=None):
    try:
        from model import Model
        from restkv_reference import Sequence
    except ImportError as reason:
        print(f"skipped: {reason}")
        return 77
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        print("skipped: no models")
        return 77
    ran = skipped = failed = followed = selections = 0
    for name, (model_name, prompt_len, cache) in CASES.items():
        if only and name != only:
            continue
        if not (folder / model_name).is_dir():
            skipped += 1
            print(f"skipped {name}: no {model_name}")
            continue
        model = Model(folder / model_name)
        vocabulary = model.weights["model.embed_tokens.weight"].shape[0]
        source = random.Random(name)
        prompt = [source.randrange(vocabulary) for _ in range(prompt_len)]
        case = {"model": str(folder / model_name), "prompt": prompt, "max_tokens": 200, "cache": cache, "threads": 2}
        table = make_table(model, folder / model_name, source) if name.startswith("calibrated") else None
        if table:
            case["table"] = table
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(case, file)
            file.flush()
            done = subprocess.run([engine, file.name], capture_output=True, text=True, timeout=300)
        ran += 1
        if done.returncode != 0:
            failed += 1
            print(f"FAILED {name}: {done.stderr.strip()[:300]}")
            continue
        answer = json.loads(done.stdout)
        if table and cache.get("decode") == "grow":
            table = table["grow"]
        sequence = Sequence(model, prompt, 200, cache, table=table, follow=answer)
        result = sequence.run()
        followed += result["followed"]
        selections += result["selections"]
        if result["differences"]:
            failed += 1
            print(f"FAILED {name}: {len(result['differences'])} differences, first: {result['differences'][0]}")
        else:
            print(f"ok {name}: {len(result['events'])} events, followed {result['followed']}")
    too_often = followed > 0.01 * max(1, selections)
    if too_often:
        print(f"FAILED: {followed} of {selections} selections needed the engine's choice")
    print(f"ran {ran} skipped {skipped} failed {failed}")
    return 1 if failed or too_often or not ran else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

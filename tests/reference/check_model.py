"""The reference's plain forward against recorded logits: check_model.py FOLDER_OF_CASES. Prints `ran R skipped S`."""

import pathlib
import sys


def main(folder):
    try:
        import numpy as np

        from model import Model, read_safetensors
        from restkv_reference import Sequence
    except ImportError as reason:
        print(f"skipped: {reason}")
        return 77
    if not pathlib.Path(folder).is_dir():
        print("skipped: no models")
        return 77
    ran = skipped = failed = 0
    for case in sorted(p for p in pathlib.Path(folder).iterdir() if (p / "cases.safetensors").exists()):
        try:
            model = Model(case)
        except (AssertionError, KeyError) as reason:
            skipped += 1
            print(f"skipped {case.name}: {reason}")
            continue
        tensors, metadata = read_safetensors(case / "cases.safetensors")
        worst, greedy = 0.0, True
        for i in range(4):
            tokens, logits = tensors[f"tokens_{i}"], tensors[f"logits_{i}"]
            sequence = Sequence(model, [int(t) for t in tokens], 24, {"policy": "full"})
            got = sequence.run()
            worst = max(worst, float(np.abs(sequence.prompt_logits - logits).max() / max(1.0, np.abs(logits).max())))
            greedy &= got["tokens"] == [int(t) for t in tensors[f"greedy_{i}"]]
        ran += 1
        ok = worst <= 1e-4 and greedy
        failed += not ok
        print(f"{'ok' if ok else 'FAILED'} {case.name}: {worst:.1e} of the largest logit, greedy {greedy}")
    print(f"ran {ran} skipped {skipped} failed {failed}")
    return 0 if ran and not failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

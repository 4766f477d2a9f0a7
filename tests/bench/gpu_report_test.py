#!/usr/bin/env python3
"""The tables of gpu_report.py: columns by competitor, shares of what the run measured, failures and cut-off lines."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).with_name("gpu_report.py")


def report(ours, others):
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for name, rows in (("ours", ours), ("others", others)):
            path = pathlib.Path(folder, name)
            path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
            paths.append(str(path))
        return subprocess.run([sys.executable, str(SCRIPT), *paths], check=True, capture_output=True, text=True).stdout


class Report(unittest.TestCase):
    def test_shares_stand_beside_the_competitor(self):
        text = report(
            [{"bench": "matmul", "shape": "qkv T=1", "us": 10.0, "gb_s": 2000.0, "tflop_s": 0.5}, '{"bench": "mat'],
            [{"bench": "copy", "shape": "2 GiB", "us": 1.0, "gb_s": 4000.0},
             {"bench": "matmul", "shape": "qkv T=1", "by": "torch", "us": 20.0, "gb_s": 1000.0},
             {"bench": "matmul", "shape": "o T=1", "by": "torch", "error": "RuntimeError: no"}])
        self.assertIn("| | restkv | torch |", text)
        self.assertIn("| qkv T=1 | 10.0 us, 2000 GB/s (50 %) | 20.0 us, 1000 GB/s (25 %) |", text)
        self.assertIn("| o T=1 |  | failed: RuntimeError: no |", text)

    def test_without_a_copy_there_are_no_shares(self):
        text = report([{"bench": "decode", "b": 1, "prompt": 4096, "budget": 1024, "itl_ms": 4.2, "gb_s": 3500.0}], [])
        self.assertIn("| b=1 prompt=4096 C=1024 | 4.2 ms a token, 3500 GB/s |", text)


if __name__ == "__main__":
    unittest.main()

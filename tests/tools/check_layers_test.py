#!/usr/bin/env python3
"""Self-test of tools/check_layers.py: a small house that is in order, and one planted fault at a time that it must find."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

CHECKER = Path(__file__).resolve().parents[2] / "tools" / "check_layers.py"

HOUSE = {
    "kernels/CMakeLists.txt": "restkv_layer(restkv_base SOURCES base/check.cpp)\n"
                              "restkv_layer(restkv_kernels SOURCES backend.cpp USES restkv_base)\n",
    "kernels/base/check.h": "#pragma once\n",
    "kernels/base/check.cpp": '#include "kernels/base/check.h"\n',
    "kernels/base/tensor.h": "#pragma once\n",
    "kernels/backend.h": '#include "kernels/base/tensor.h"\n',
    "kernels/backend.cpp": '#include "kernels/backend.h"\n',
    "kernels/cpu/CMakeLists.txt": "restkv_layer(restkv_cpu SOURCES cpu.cpp USES restkv_kernels)\n",
    "kernels/cpu/cpu.h": '#include "kernels/backend.h"\n',
    "kernels/cpu/cpu.cpp": '#include "kernels/cpu/cpu.h"\n#include "hwy/highway.h"\n',
    "kernels/cuda/zero.cu": "// A __global__ function is a kernel.\n"
                            "template <class T>\n__global__ void __launch_bounds__(256, N == 1 ? 2 : 1)\n"
                            "    zero_kernel(const __grid_constant__ Params<T> p) {\n"
                            "  // first of all\n  wait_for_previous();\n  p.data[0] = 0;\n}\n",
    "kernels/cuda/early.cu": "// Before the wait: the weight.\n// It is placed at load.\ntemplate <class T>\n"
                             "__device__ __forceinline__ Rows<T> prefetch_rows(const Params<T>& p) { return p.weight; }\n"
                             "template <class T>\n__global__ void early_kernel(const __grid_constant__ Params<T> p) {\n"
                             "  const Rows<T> rows = prefetch_rows(p);  // in registers\n  prefetch_rows<T>(p);\n"
                             "  wait_for_previous();\n  p.data[0] = rows.value;\n}\n",
    "engine/CMakeLists.txt": "restkv_layer(restkv_engine SOURCES engine.cpp device.cpp scheduler.cpp\n"
                             "  USES restkv_kernels restkv_cpu)  # the device is made here\n",
    "engine/engine.h": '#include "kernels/base/check.h"\n',
    "engine/engine.cpp": '#include "engine/engine.h"\n#include "kernels/backend.h"\n#include <vector>\n',
    "engine/device.cpp": '#include "kernels/cpu/cpu.h"\n',
    "engine/scheduler.cpp": '#include "engine/engine.h"\n',
    "server/http/CMakeLists.txt": "restkv_layer(restkv_http SOURCES http.cpp USES restkv_engine)\n",
    "server/http/http.cpp": '#include "engine/engine.h"\n#include "kernels/base/check.h"\n#include <boost/asio.hpp>\n',
}

# Name -> (file, line added at its end, where the message must point, words it must hold).
FAULTS = {
    "upward include": ("kernels/backend.cpp", '#include "engine/engine.h"', "kernels/backend.cpp:2", "above kernels"),
    "engine to server": ("engine/engine.cpp", '#include "server/http/http.cpp"', "engine/engine.cpp:4", "above engine"),
    "base to backend": ("kernels/base/tensor.h", '  #  include "kernels/backend.h"', "kernels/base/tensor.h:2", "above"),
    "sideways": ("engine/device.cpp", '#include "engine/text/t.h"', "engine/device.cpp:2", "is not a file"),
    "backend header": ("engine/engine.cpp", '#include "kernels/cpu/cpu.h"', "engine/engine.cpp:4", "engine/device.cpp"),
    "server to kernel": ("server/http/http.cpp", '#include "kernels/backend.h"', "server/http/http.cpp:4", "only"),
    "scheduler, indirect": ("engine/engine.h", '#include "kernels/base/tensor.h"', "engine/scheduler.cpp", "engine/engine.h ->"),
    "third party in core": ("engine/engine.cpp", "#include <spdlog/spdlog.h>", "engine/engine.cpp:4", "spdlog"),
    "std::regex": ("server/http/http.cpp", "#include <regex>", "server/http/http.cpp:4", "no layer"),
    "CUDA in the engine": ("engine/device.cpp", "#include <cuda_runtime.h>", "engine/device.cpp:2", "kernels/cuda"),
    "ours in brackets": ("engine/engine.cpp", "#include <kernels/backend.h>", "engine/engine.cpp:4", "quotes"),
    "relative include": ("engine/engine.cpp", '#include "engine.h"', "engine/engine.cpp:4", "root of the repository"),
    "link line upward": ("kernels/CMakeLists.txt", "restkv_layer(restkv_x SOURCES x.cpp USES restkv_engine)",
                         "kernels/CMakeLists.txt:3", "above kernels"),
    "unknown target": ("kernels/CMakeLists.txt", "restkv_layer(restkv_x SOURCES x.cpp USES restkv_y)",
                       "kernels/CMakeLists.txt:3", "no restkv_layer() makes"),
    "no link line": ("kernels/CMakeLists.txt", "restkv_layer(restkv_kernels SOURCES backend.cpp)",
                     "kernels/backend.h:1", "no link line"),
    "a kernel that does not wait": ("kernels/cuda/zero.cu", "__global__ void one_kernel(Params p) { p.data[0] = 1; }",
                                    "kernels/cuda/zero.cu:9", "begins with 'p.data[0] = 1;'"),
    "a kernel that waits later": ("kernels/cuda/zero.cu", "__global__ void two_kernel(Params p) {\n  if (p.n) {\n"
                                  "    wait_for_previous();\n  }\n}", "kernels/cuda/zero.cu:9", "begins with"),
    "an access before the wait": ("kernels/cuda/early.cu", "__global__ void k(Params p) {\n  prefetch_rows(p);\n"
                                  "  const int n = p.n[0];\n  wait_for_previous();\n}", "kernels/cuda/early.cu:12",
                                  "begins with 'const int n = p.n[0];'"),
    "an access as an argument": ("kernels/cuda/early.cu", "__global__ void k(Params p) {\n  prefetch_rows(p.n[0]);\n"
                                 "  wait_for_previous();\n}", "kernels/cuda/early.cu:12", "begins with 'prefetch_rows(p.n[0]);'"),
    "a prefetch that does not say what": ("kernels/cuda/zero.cu", "// The input.\n__device__ void prefetch_x(Params p) {}\n"
                                          "__global__ void k(Params p) {\n  prefetch_x(p);\n  wait_for_previous();\n}",
                                          "kernels/cuda/zero.cu:11", "prefetch_x() is called before the wait"),
    "a kernel that waits twice": ("kernels/cuda/zero.cu", "__global__ void k(Params p) {\n  wait_for_previous();\n"
                                  "  p.data[0] = 0;\n  wait_for_previous();\n}", "kernels/cuda/zero.cu", "3 times for 2 kernels"),
    "circle": ("kernels/CMakeLists.txt", "restkv_layer(restkv_base SOURCES base/check.cpp USES restkv_kernels)",
               "kernels/CMakeLists.txt", "circle"),
}


def run_checker(files):
    with tempfile.TemporaryDirectory() as root:
        for name, text in files.items():
            path = Path(root) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        done = subprocess.run([sys.executable, CHECKER, root], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr


class CheckLayersTest(unittest.TestCase):
    def test_house_in_order(self):
        code, output = run_checker(HOUSE)
        self.assertEqual((code, output), (0, "check_layers: 0 violations\n"))

    def test_this_repository_has_a_sound_table(self):
        done = subprocess.run([sys.executable, CHECKER, "--list"], capture_output=True, text=True, check=True)
        self.assertIn("engine/model: ", done.stdout)

    def test_planted_faults(self):
        for name, (path, line, where, words) in FAULTS.items():
            with self.subTest(name):
                files = dict(HOUSE)
                files[path] = HOUSE.get(path, "") + line + "\n"
                code, output = run_checker(files)
                self.assertEqual(code, 1, output)
                self.assertTrue(any(found.startswith(where) and words in found for found in output.splitlines()), output)

    def test_an_empty_folder_is_a_fault(self):
        code, output = run_checker({"README.md": "nothing\n"})
        self.assertEqual(code, 1, output)

    def test_a_new_folder_belongs_to_the_one_above(self):
        code, output = run_checker(HOUSE | {"kernels/new/x.cpp": '#include "engine/engine.h"\n'})
        self.assertEqual(code, 1, output)
        self.assertIn("kernels/new/x.cpp:1", output)


if __name__ == "__main__":
    unittest.main()

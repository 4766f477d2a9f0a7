#!/usr/bin/env python3
"""Runs a compiler and keeps what ptxas says about each kernel (registers, stack, spills) in OBJECT.ptxas beside the object.

    record_ptxas.py COMPILER [ARGUMENT...] -o OBJECT [ARGUMENT...]

CMake puts it in front of nvcc (kernels/cuda/CMakeLists.txt); tools/check_kernels.py reads the files. Everything else the
compiler prints passes through, and so does its exit status.
"""
import re
import subprocess
import sys

command = sys.argv[1:]
done = subprocess.run(command, stderr=subprocess.PIPE, check=False)
is_info = re.compile(r"ptxas info|\s+\d+ bytes stack frame")
infos, others = [], []
for line in done.stderr.decode(errors="replace").splitlines(keepends=True):
    (infos if is_info.match(line) else others).append(line)
sys.stderr.write("".join(others))
if done.returncode == 0 and "-o" in command and infos:
    with open(command[command.index("-o") + 1] + ".ptxas", "w", encoding="utf-8") as file:
        file.writelines(infos)
sys.exit(done.returncode)

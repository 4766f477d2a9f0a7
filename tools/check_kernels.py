#!/usr/bin/env python3
"""Checks what ptxas said of the CUDA kernels of a build: no register spills, the occupancy that the sources promise, and nothing
about wgmma (C75..: products serialised, or fences and waits put in, because of what stands between them).

    check_kernels.py BUILD_FOLDER [--list]

The opening comment of a .cu has a line for each of its kernels, in words that this script reads:
    // Occupancy: NAME THREADS x BLOCKS [, NAME THREADS x BLOCKS ...]
that is, BLOCKS blocks of THREADS threads on one multiprocessor, for all of the kernel's instances on sm_80 and sm_90a, as far as
registers and threads go; shared memory has static_asserts of its own (fits_multiprocessor in launch_types.h). tools/record_ptxas.py
recorded the numbers while the kernels were compiled. --list prints them.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = ROOT / "kernels" / "cuda"
REGISTERS, MAX_THREADS = 65536, 2048  # of a multiprocessor, sm_80 and sm_90
ARCHITECTURES = {"sm_80", "sm_90a"}
# Kernels that spill all the same: (name, part of the instance's mangled name) -> why it is right.
ALLOWED_SPILLS: dict[tuple[str, str], str] = {
}


class Instance:
    def __init__(self, mangled, architecture):
        self.mangled, self.architecture = mangled, architecture
        self.registers = self.stack = self.spills = None


def remarks_on_wgmma(path):
    return [line.strip() for line in path.read_text().splitlines() if re.search(r"\(C75\d\d\)", line)]


def read_instances(path):
    """One .ptxas file: what the compiler said of each kernel for each architecture."""
    instances = []
    for line in path.read_text().splitlines():
        if found := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            instances.append(Instance(*found.groups()))
        elif not instances:
            continue
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            instances[-1].stack = int(found[1])
            instances[-1].spills = int(found[2]) + int(found[3])
        elif found := re.search(r"Used (\d+) registers", line):
            instances[-1].registers = int(found[1])
    return instances


def promises(source):
    """{kernel: (threads, blocks)} of the opening comment."""
    opening = []
    for line in source.splitlines():
        if not line.startswith("//"):
            break
        opening.append(line[2:].strip())
    text = " ".join(opening)
    found = {}
    for part in re.findall(r"Occupancy: ([^.;]*)", text):
        for name, threads, blocks in re.findall(r"(\w+_kernel) (\d+) x (\d+)", part):
            found[name] = (int(threads), int(blocks))
    return found


def fits(instance, threads, blocks):
    # Registers are given out to warps in pieces of 256.
    of_warp = (instance.registers * 32 + 255) // 256 * 256
    return threads * blocks <= MAX_THREADS and of_warp * (threads // 32) * blocks <= REGISTERS


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    recorded = {p.name.removesuffix(".o.ptxas"): p for p in pathlib.Path(sys.argv[1]).rglob("*.cu.o.ptxas")}
    problems, num_instances = [], 0
    for source in sorted(SOURCES.rglob("*.cu")):
        text = source.read_text()
        kernels = re.findall(r"__global__ void __launch_bounds__\([^)]*\)\s+(\w+)\(", text)
        said = promises(text)
        if source.name not in recorded:
            problems.append(f"{source.name}: no record of ptxas in {sys.argv[1]}; build restkv_cuda_kernels there")
            continue
        instances = read_instances(recorded[source.name])
        problems += [f"{source.name}: {remark}" for remark in remarks_on_wgmma(recorded[source.name])]
        for kernel in kernels:
            mine = [i for i in instances if f"{len(kernel)}{kernel}" in i.mangled]
            num_instances += len(mine)
            missing = ARCHITECTURES - {i.architecture for i in mine}
            if missing:
                problems.append(f"{kernel} ({source.name}): not compiled for {', '.join(sorted(missing))}")
            if kernel not in said:
                problems.append(f"{kernel}: the opening comment of {source.name} has no 'Occupancy: {kernel} THREADS x BLOCKS'")
            for i in mine:
                if "--list" in sys.argv:
                    print(f"{kernel:28} {i.architecture:7} {i.registers:4} registers {i.stack:5} stack {i.spills:4} spilled  {i.mangled}")
                if i.registers is None or i.spills is None:
                    problems.append(f"{kernel}: ptxas's record of {i.mangled} is not whole")
                    continue
                allowed = any(kernel == name and part in i.mangled for name, part in ALLOWED_SPILLS)
                if i.spills > 0 and not allowed:
                    problems.append(f"{kernel} on {i.architecture}: {i.spills} bytes of spills in {i.mangled}")
                if kernel in said and not fits(i, *said[kernel]):
                    problems.append(f"{kernel} on {i.architecture}: {i.registers} registers; {source.name} promises "
                                    f"{said[kernel][1]} blocks of {said[kernel][0]} threads: {i.mangled}")
        if set(said) - set(kernels):
            problems.append(f"{source.name}: speaks of {', '.join(sorted(set(said) - set(kernels)))}, which it has not")
    for name, part in ALLOWED_SPILLS:
        if not any(part in p.read_text() for p in recorded.values()):
            problems.append(f"allowed spills of {name} ({part}): there is no such kernel any more")
    print("\n".join(problems) or f"check_kernels: {num_instances} instances, no spills, occupancy as promised")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Breaks the program on purpose and expects the named test to notice.

    tests/mutants/run.py [NAME...]        all of tests/mutants/*.patch, or those named
    tests/mutants/run.py --list
    tests/mutants/run.py --check          only: does each patch still apply to the tree?

A mutant is a unified diff (git diff) with a head of three lines:

    What: what is wrong now
    Build: the CMake targets that the test needs
    Run: PROGRAM ARGUMENTS...            a program of <build>/bin, or python (paths are those of the tree)

The tree is copied, configured and built once in a folder of its own (build/mutants; ccache makes it quick). For each mutant the
test must be green without it, and red with it; a patch that does not apply or does not compile, and a run that tests nothing,
are failures. A test that is red for want of data is one, too: this is a check of tests. Exit 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TEST_TIMEOUT = 600  # seconds; a mutant that hangs is noticed, too


@dataclass
class Mutant:
    name: str
    patch: Path
    what: str
    build: list[str]
    run: list[str]


class Failure(Exception):
    pass


def read_mutant(path: Path) -> Mutant:
    head = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(("diff ", "--- ")):
            break
        match = re.match(r"(What|Build|Run): (.+)", line)
        if match:
            head[match.group(1)] = match.group(2)
    missing = {"What", "Build", "Run"} - head.keys()
    if missing:
        raise Failure(f"{path.name}: no line {', '.join(sorted(missing))}")
    return Mutant(path.stem, path, head["What"], head["Build"].split(), shlex.split(head["Run"]))


class Workshop:
    """A copy of the tree and its build."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self.tree = folder / "tree"
        self.build_dir = self.tree / "build" / "release"
        self.jobs = jobs
        self.green: dict[tuple[str, ...], bool] = {}

    def call(self, *command: object, **options: object) -> subprocess.CompletedProcess:
        return subprocess.run([str(c) for c in command], cwd=self.tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              encoding="utf-8", errors="replace", **options)

    def set_up(self, targets: list[str]) -> None:
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True,
                                stdout=subprocess.PIPE).stdout.decode().split("\0")
        wanted = {name for name in listed if name and (ROOT / name).is_file()}
        self.tree.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.tree.rglob("*")):
            name = path.relative_to(self.tree).as_posix()
            if path.is_file() and not name.startswith("build/") and name not in wanted:
                path.unlink()
        for name in wanted:
            source, copy = ROOT / name, self.tree / name
            if copy.is_file() and copy.read_bytes() == source.read_bytes():
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
            shutil.copymode(source, copy)
        done = self.call("cmake", "--preset", "release", "-DBUILD_TESTING=ON", f"-DPython3_EXECUTABLE={sys.executable}",
                         f"-DRESTKV_SHARED_DIR={os.environ.get('RESTKV_SHARED_DIR', ROOT.parent / 'shared')}")
        if done.returncode != 0:
            raise Failure(f"cannot configure:\n{done.stdout[-3000:]}")
        self.build(targets)

    def build(self, targets: list[str]) -> None:
        done = self.call("cmake", "--build", self.build_dir, "-j", self.jobs, "--target", *targets)
        if done.returncode != 0:
            raise Failure(f"does not compile:\n{done.stdout[-3000:]}")

    def is_green(self, run: list[str]) -> bool:
        program = sys.executable if run[0] == "python" else self.build_dir / "bin" / run[0]
        environment = {**os.environ, "RESTKV_BINARY": str(self.build_dir / "bin" / "restkv")}
        try:
            done = self.call(program, *run[1:], env=environment, timeout=TEST_TIMEOUT)
        except subprocess.TimeoutExpired:
            return False
        # gtest and pytest are content with nothing to do.
        if done.returncode == 0 and re.search(r"0 tests from 0 test|\[  PASSED  \] 0 tests|^\d+ skipped", done.stdout,
                                              re.MULTILINE):
            raise Failure(f"tests nothing: {shlex.join(run)}")
        return done.returncode == 0

    def try_mutant(self, mutant: Mutant) -> None:
        key = tuple(mutant.run)
        if key not in self.green:
            self.build(mutant.build)  # the program may still be that of the mutant before
            self.green[key] = self.is_green(mutant.run)
        if not self.green[key]:
            raise Failure(f"the test is red without the mutant: {shlex.join(mutant.run)}")
        # Not as a part of the repository around it.
        outside = {**os.environ, "GIT_CEILING_DIRECTORIES": str(self.tree.parent)}
        done = self.call("git", "apply", mutant.patch, env=outside)
        try:
            if done.returncode != 0:
                raise Failure(f"does not apply:\n{done.stdout}")
            self.build(mutant.build)
            if self.is_green(mutant.run):
                raise Failure(f"was not noticed by: {shlex.join(mutant.run)}")
        finally:
            self.restore(mutant)

    def restore(self, mutant: Mutant) -> None:
        for line in mutant.patch.read_text(encoding="utf-8").splitlines():
            match = re.match(r"\+\+\+ b/(\S+)", line)
            if match:
                name = match.group(1)
                shutil.copyfile(ROOT / name, self.tree / name)


def check(mutants: list[Mutant]) -> int:
    """Whether each patch applies to the tree as it is; nothing is changed or built."""
    failed = 0
    for mutant in mutants:
        done = subprocess.run(["git", "apply", "--check", mutant.patch], cwd=ROOT, stderr=subprocess.PIPE, encoding="utf-8")
        if done.returncode != 0:
            failed += 1
            print(f"FAILED    {mutant.name}: does not apply:\n{done.stderr}")
    print(f"mutants: {len(mutants) - failed} of {len(mutants)} apply")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "mutants")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2)
    arguments = parser.parse_args()
    try:
        mutants = [read_mutant(path) for path in sorted(HERE.glob("*.patch"))]
        unknown = set(arguments.names) - {mutant.name for mutant in mutants}
        if unknown:
            raise Failure(f"no such mutant: {', '.join(sorted(unknown))}")
        if arguments.names:
            mutants = [mutant for mutant in mutants if mutant.name in arguments.names]
        if arguments.list:
            for mutant in mutants:
                print(f"{mutant.name}: {mutant.what} -> {shlex.join(mutant.run)}")
            return 0
        if not mutants:
            raise Failure("there are no mutants")
        if arguments.check:
            return check(mutants)
        workshop = Workshop(arguments.folder, arguments.jobs)
        workshop.set_up(sorted({target for mutant in mutants for target in mutant.build}))
    except Failure as failure:
        print(f"mutants: {failure}", file=sys.stderr)
        return 1
    failed = 0
    for mutant in mutants:
        start = time.monotonic()
        try:
            workshop.try_mutant(mutant)
            print(f"noticed   {mutant.name}: {mutant.what} ({time.monotonic() - start:.0f} s)", flush=True)
        except Failure as failure:
            failed += 1
            print(f"FAILED    {mutant.name}: {mutant.what}: {failure}", flush=True)
    print(f"mutants: {len(mutants) - failed} of {len(mutants)} noticed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Self-test of server/config/build_commit.cmake: each build of a small project names the commit that it is of.

Usage: build_commit_test.py CMAKE
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "server" / "config" / "build_commit.cmake"
CMAKE = "cmake"


class BuildCommitTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.outer = Path(folder.name)
        self.tree, self.build_dir = self.outer / "a tree", self.outer / "build"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        self.tree.mkdir()
        (self.tree / "CMakeLists.txt").write_text(
            f'cmake_minimum_required(VERSION 3.25)\nproject(small LANGUAGES NONE)\ninclude("{SCRIPT}")\n')

    def call(self, *command, cwd=None):
        done = subprocess.run([str(c) for c in command], cwd=cwd or self.outer, env=self.environment, encoding="utf-8",
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout.strip()

    def git(self, *arguments, cwd=None):
        return self.call("git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments, cwd=cwd or self.tree)

    def commit(self, cwd=None):
        self.git("add", "-A", cwd=cwd)
        self.git("commit", "-q", "--allow-empty", "-m", "x", cwd=cwd)
        return self.git("rev-parse", "--short=7", "HEAD", cwd=cwd)

    def build(self):
        """Result: what it names, and the time stamp of the file that says so."""
        self.call(CMAKE, "--build", self.build_dir, "--target", "restkv_build_commit")
        file = self.build_dir / "build_commit.cpp"
        return re.search('return "(.*)"', file.read_text()).group(1), file.stat().st_mtime_ns

    def test_each_build_names_its_commit(self):
        self.git("init", "-q")
        first = self.commit()
        self.call(CMAKE, "-S", self.tree, "-B", self.build_dir)
        name, written = self.build()
        self.assertEqual(name, first)
        self.assertEqual(self.build(), (name, written), "written again, so that all is linked again")
        second = self.commit()
        self.assertEqual(self.build()[0], second)
        with (self.tree / "CMakeLists.txt").open("a") as file:
            file.write("# a change\n")
        name, written = self.build()
        self.assertEqual(name, second + "+")
        self.assertEqual(self.build(), (name, written))
        broken = self.outer / "bin" / "git"
        broken.parent.mkdir()
        broken.write_text("#!/bin/sh\nexit 1\n")
        broken.chmod(0o755)
        self.environment["PATH"] = f"{broken.parent}:{self.environment['PATH']}"
        self.assertEqual(self.build()[0], "unknown", "without git it still builds")

    def test_a_tree_without_git(self):
        self.git("init", "-q", cwd=self.outer)
        self.commit(cwd=self.outer)
        self.call(CMAKE, "-S", self.tree, "-B", self.build_dir)
        name, written = self.build()
        self.assertEqual(name, "unknown", "the repository around it is another one")
        self.assertEqual(self.build(), (name, written))


if __name__ == "__main__":
    if not shutil.which("git"):
        print("skipped: there is no git")
        sys.exit(77)
    CMAKE = sys.argv.pop(1)
    unittest.main()

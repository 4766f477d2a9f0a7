#!/usr/bin/env python3
"""Checks that nothing flows up: every #include and every link line of kernels/, engine/ and server/ against the layers.

    tools/check_layers.py [ROOT]     prints one line per violation (file:line: what, why), exits 1 if there is one
    tools/check_layers.py --list     prints the layers, lowest first

A folder is a layer. It may include itself and the folders in its `uses`, nothing else; the order of LAYERS is the order
of the house, and a `uses` that points up is refused before any file is read. A folder that includes another one must
also say so in its CMake link line (restkv_layer USES ..., directly or through what it uses), and link lines point down.
Every kernel of a .cu waits for the one before it, once: wait_for_previous(), before which stand at most calls of prefetch_*()
of the same file whose comment says "Before the wait: ", and what they read there.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

BASE = {"kernels/base"}
ENGINE = {"engine", "engine/text", "engine/model", "engine/eviction"}  # eviction: the cache settings of a request

# Folder -> folders it may include beside itself. Lowest first.
LAYERS: dict[str, set[str]] = {
    "kernels/base": set(),
    "kernels": BASE,
    "kernels/cpu": BASE | {"kernels"},
    "kernels/cuda": BASE | {"kernels"},
    "engine/model": BASE | {"kernels"},
    "engine/text": BASE | {"engine/model"},
    "engine/cache": BASE | {"kernels", "engine/model"},
    "engine/eviction": BASE | {"kernels", "engine/model", "engine/cache"},
    "engine": BASE | {"kernels", "engine/model", "engine/cache", "engine/eviction"},
    "server/config": BASE | ENGINE,
    "server/access": BASE | {"server/config"},
    "server/hub": BASE | ENGINE | {"server/config"},
    "server/chat": BASE | ENGINE | {"server/config"},
    "server/openai": BASE | ENGINE | {"server/config", "server/chat"},
    "server/serving": BASE | ENGINE | {"server/config", "server/access", "server/chat", "server/openai"},
    "server/http": BASE | ENGINE
    | {"server/config", "server/access", "server/chat", "server/openai", "server/serving"},
    "server/grpc": BASE | ENGINE
    | {"server/config", "server/access", "server/chat", "server/openai", "server/serving"},
    "server/eval": BASE | ENGINE | {"server/config", "server/openai"},
    "server/cli": BASE | ENGINE
    | {"server/config", "server/hub", "server/access", "server/chat", "server/openai", "server/serving", "server/http",
       "server/grpc", "server/eval"},
    "server": BASE | ENGINE
    | {"server/config", "server/hub", "server/access", "server/chat", "server/openai", "server/serving", "server/http",
       "server/grpc", "server/eval", "server/cli"},
}

# The only kernel headers that server code may name: errors and checks, and the sampling settings that are part of a
# Request.
SERVER_KERNEL_HEADERS = {"kernels/base/status.h", "kernels/base/check.h", "kernels/base/sampling.h"}

# The one file of the engine that names a backend's own headers, because it creates the backend.
BACKEND_CREATOR = "engine/device.cpp"
BACKEND_FOLDERS = {"kernels/cpu", "kernels/cuda"}

# The scheduler decides from numbers alone: neither it nor anything it includes may reach these.
SCHEDULER_FILES = ("engine/scheduler.h", "engine/scheduler.cpp")
SCHEDULER_FORBIDDEN = {"kernels/backend.h", "kernels/base/tensor.h"}

# Third-party headers (by their first characters) -> the folders that may include them. restkv_core needs the standard
# library, nlohmann's header and, in the fast CPU kernels, Highway.
THIRD_PARTY: dict[str, tuple[str, ...]] = {
    "hwy/": ("kernels/cpu",),
    "cuda": ("kernels/cuda",),
    "cublas": ("kernels/cuda",),
    "nlohmann/": ("engine/model", "engine/text", "engine/eviction", "server"),
    "pcre2": ("engine/text",),
    "utf8proc": ("engine/text",),
    "boost/": ("server",),
    "spdlog/": ("server",),
    "fmt/": ("server",),
    "yaml-cpp/": ("server/config",),
    "CLI/": ("server",),
    "prometheus/": ("server",),
    "google/": ("server/grpc",),
    "grpc": ("server/grpc",),
    "inference/": ("server/grpc",),
    "restkv/v1/": ("server/grpc",),
    "curl/": ("server/hub",),
    "openssl/": ("server",),
    "gtest/": (),
    "gmock/": (),
    "benchmark/": (),
    "regex": (),  # std::regex overflows the stack on one long word
}

SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
LAYER_CALL = re.compile(r"\brestkv_layer\s*\(([^)]*)\)", re.DOTALL)
LAYER_KEYWORDS = {"SOURCES", "USES", "EXTERNAL"}


KERNEL = re.compile(r"\b__global__\b[^;{]*?(\w+)\s*\([^;{]*\{")
STATEMENT = re.compile(r"\s*([^;{}]*;?)")
WAIT = "wait_for_previous();"  # a kernel may run before its inputs are written (kernels/cuda/device.h)
PREFETCH = re.compile(r"(?:[\w:<>, ]+ \w+ = )?(prefetch_\w+)(?:<[^()]*>)?\([\w., ]*\);")
PREFETCH_COMMENT = r"^// Before the wait: \S[^\n]*\n(?://[^\n]*\n)*(?:template\b[^\n]*\n)?[^;{{}}/]*\b{name}\("


class Report:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, where: str, message: str) -> None:
        self.lines.append(f"{where}: {message}")


def layer_of(path: str) -> str | None:
    """The layer of a file: its folder, or the nearest folder above it that is one (server/web/x is server)."""
    folder = path.rpartition("/")[0]
    while folder and folder not in LAYERS:
        folder = folder.rpartition("/")[0]
    return folder or None


def check_table(report: Report) -> None:
    order = {name: position for position, name in enumerate(LAYERS)}
    for name, uses in LAYERS.items():
        for used in sorted(uses):
            if order.get(used, len(order)) >= order[name]:
                report.add("tools/check_layers.py", f"the table lets {name} use {used}, which is not below it")


def read_includes(root: Path) -> dict[str, list[tuple[int, str, bool]]]:
    """File -> (line number, included name, in quotes) of every source file under the checked folders."""
    files: dict[str, list[tuple[int, str, bool]]] = {}
    for top in sorted({name.split("/")[0] for name in LAYERS}):
        for path in sorted((root / top).rglob("*")):
            if path.suffix not in SUFFIXES or not path.is_file():
                continue
            found = []
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                match = INCLUDE.match(line)
                if match:
                    found.append((number, match.group(2), match.group(1) == '"'))
            files[path.relative_to(root).as_posix()] = found
    return files


def check_third_party(path: str, line: int, name: str, report: Report) -> None:
    for prefix, folders in THIRD_PARTY.items():
        if not name.startswith(prefix):
            continue
        if not any(path.startswith(folder + "/") for folder in folders):
            allowed = ", ".join(folders) or "no layer"
            report.add(f"{path}:{line}", f"includes <{name}>, which is for {allowed}")


def check_include(root: Path, path: str, line: int, name: str, report: Report) -> None:
    where = f"{path}:{line}"
    layer, target = layer_of(path), layer_of(name)
    if not (root / name).is_file():
        report.add(where, f'"{name}" is not a file; includes are written from the root of the repository')
        return
    if target is None:
        report.add(where, f'"{name}" is outside of kernels/, engine/ and server/')
        return
    if target == layer:
        return
    if target in BACKEND_FOLDERS and layer.startswith("engine"):
        if path != BACKEND_CREATOR:
            report.add(where, f'"{name}" belongs to a backend; only {BACKEND_CREATOR}, which creates it, may include it')
        return
    if layer.startswith("server") and name.startswith("kernels/"):
        if name not in SERVER_KERNEL_HEADERS:
            report.add(where, f'server code includes "{name}"; of kernels/ it may include only '
                       + ", ".join(sorted(SERVER_KERNEL_HEADERS)))
        return
    if target not in LAYERS[layer]:
        order = list(LAYERS)
        direction = "above" if order.index(target) > order.index(layer) else "not one of those used by"
        report.add(where, f'"{name}" is in {target}, which is {direction} {layer}')


def check_scheduler(files: dict[str, list[tuple[int, str, bool]]], report: Report) -> None:
    for start in SCHEDULER_FILES:
        chains = [(start,)]
        seen = {start}
        while chains:
            chain = chains.pop(0)
            for _, name, quoted in files.get(chain[-1], []):
                if not quoted or name in seen:
                    continue
                seen.add(name)
                if name in SCHEDULER_FORBIDDEN:
                    report.add(start, "the scheduler reaches " + " -> ".join(chain[1:] + (name,)))
                else:
                    chains.append(chain + (name,))


class Target:
    def __init__(self, where: str, folders: set[str], uses: list[str]) -> None:
        self.where, self.folders, self.uses = where, folders, uses


def read_targets(root: Path) -> dict[str, Target]:
    """Name -> target of every restkv_layer() call; its folders are those of its sources."""
    targets: dict[str, Target] = {}
    for top in sorted({name.split("/")[0] for name in LAYERS}):
        scripts = list((root / top).rglob("CMakeLists.txt")) + list((root / top).rglob("*.cmake"))
        for script in sorted(scripts):
            text = re.sub(r"#.*", "", script.read_text(encoding="utf-8"))
            folder = script.parent.relative_to(root).as_posix()
            for call in LAYER_CALL.finditer(text):
                words = call.group(1).split()
                where = f"{script.relative_to(root).as_posix()}:{text.count(chr(10), 0, call.start()) + 1}"
                groups: dict[str, list[str]] = {keyword: [] for keyword in LAYER_KEYWORDS}
                group: list[str] = []
                for word in words[1:]:
                    group = groups[word] if word in LAYER_KEYWORDS else group
                    if word not in LAYER_KEYWORDS:
                        group.append(word)
                folders = {layer_of(f"{folder}/{source}") for source in groups["SOURCES"]} - {None}
                targets[words[0]] = Target(where, folders or {folder}, groups["USES"])
    return targets


def check_links(root: Path, files: dict[str, list[tuple[int, str, bool]]], report: Report) -> None:
    targets = read_targets(root)
    order = list(LAYERS)

    def allowed(layer: str) -> set[str]:
        creates = layer == layer_of(BACKEND_CREATOR)
        return LAYERS[layer] | {layer} | (BACKEND_FOLDERS if creates else set())

    reach: dict[str, set[str]] = {}  # target -> folders that its link line reaches

    def closure(name: str, open_names: tuple[str, ...]) -> set[str]:
        if name in open_names:
            report.add(targets[name].where, "link lines go in a circle: " + " -> ".join(open_names + (name,)))
            return set()
        if name not in reach:
            found = set(targets[name].folders)
            for used in targets[name].uses:
                if used in targets:
                    found |= closure(used, open_names + (name,))
            reach[name] = found
        return reach[name]

    for name, target in targets.items():
        for used in target.uses:
            if "::" in used:  # an imported package; what may be included of those is THIRD_PARTY
                continue
            if used not in targets:
                report.add(target.where, f"{name} uses {used}, which no restkv_layer() makes")
                continue
            for layer in target.folders:
                for folder in targets[used].folders - allowed(layer):
                    relation = "above" if order.index(folder) > order.index(layer) else "not one of those used by"
                    report.add(target.where, f"{name} links {used}, whose folder {folder} is {relation} {layer}")
        closure(name, ())

    made = {folder for target in targets.values() for folder in target.folders}
    linked: dict[str, set[str]] = {}
    for name, target in targets.items():
        for folder in target.folders:
            linked.setdefault(folder, set()).update(reach[name])
    for path, includes in files.items():
        layer = layer_of(path)
        if layer not in linked:
            continue
        for line, name, quoted in includes:
            target_layer = layer_of(name) if quoted else None
            if target_layer in made and target_layer not in linked[layer]:
                report.add(f"{path}:{line}", f'"{name}": no link line of {layer} reaches {target_layer}; add it to USES')


def check_kernels_wait(root: Path, report: Report) -> None:
    for path in sorted((root / "kernels").rglob("*.cu")):
        source = path.read_text(encoding="utf-8")
        text = re.sub(r"//[^\n]*", "", source)
        name = path.relative_to(root).as_posix()
        waits = 0
        for start in re.finditer(r"\b__global__\b", text):
            where = f"{name}:{text.count(chr(10), 0, start.start()) + 1}"
            kernel = KERNEL.match(text, start.start())
            if kernel is None:
                report.add(where, "a kernel whose first statement is not to be found")
                continue
            waits += 1
            at = kernel.end()
            while True:
                statement = STATEMENT.match(text, at)
                words = statement.group(1).strip()
                prefetch = PREFETCH.fullmatch(words)
                if not prefetch:
                    break
                if not re.search(PREFETCH_COMMENT.format(name=prefetch.group(1)), source, re.MULTILINE):
                    report.add(where, f"{prefetch.group(1)}() is called before the wait, and no comment of it in this file says "
                               "'Before the wait: ' and what it reads")
                at = statement.end()
            if words != WAIT:
                report.add(where, f"a kernel begins with '{words}', not with '{WAIT}'")
        if text.count(WAIT) > waits:
            report.add(name, f"'{WAIT}' stands {text.count(WAIT)} times for {waits} kernels: once in each, at its beginning")


def check(root: Path) -> Report:
    report = Report()
    check_table(report)
    files = read_includes(root)
    if not files:
        report.add(str(root), "holds no source of kernels/, engine/ or server/: wrong folder?")
    for path, includes in files.items():
        if layer_of(path) is None:
            report.add(path, "is in no layer; add its folder to LAYERS in tools/check_layers.py")
            continue
        for line, name, quoted in includes:
            check_third_party(path, line, name, report)
            first = name.split("/")[0]
            if quoted and first not in {"hwy", "nlohmann"}:
                check_include(root, path, line, name, report)
            elif first in {"kernels", "engine", "server"}:
                report.add(f"{path}:{line}", f"<{name}> is ours: include it in quotes")
    check_scheduler(files, report)
    check_links(root, files, report)
    check_kernels_wait(root, report)
    return report


def main(arguments: list[str]) -> int:
    if arguments == ["--list"]:
        for name, uses in LAYERS.items():
            print(f"{name}: {' '.join(sorted(uses)) or '-'}")
        return 0
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    report = check(root.resolve())
    for line in report.lines:
        print(line)
    print(f"check_layers: {len(report.lines)} violation{'' if len(report.lines) == 1 else 's'}")
    return 1 if report.lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

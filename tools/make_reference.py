#!/usr/bin/env python3
"""Writes docs/reference/*.md from the program's own tables; a test keeps them current (tests/e2e/test_reference.py).

    tools/make_reference.py BINARY MODEL [--check]    MODEL is served for a moment: its /metrics and /openapi.json are read

flags.md and yaml.md come from `restkv config options`, metrics.md from the HELP lines of /metrics, http.md from
/openapi.json, grpc.md from proto/.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

PROTO = Path(__file__).resolve().parent.parent / "proto"
FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
HEAD = "<!-- Made by tools/make_reference.py from the program's tables: change those. -->\n\n"
UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def bound(option: dict, value: float) -> str:
    whole = int(value)
    if option["type"] == "size" and whole:
        for size, unit in UNITS:
            if whole % size == 0:
                return f"{whole // size} {unit}"
    if option["type"] == "duration":
        return f"{whole // 1000} s" if whole % 1000 == 0 else f"{whole} ms"
    return f"{value:g}" if option["type"] == "number" else f"{whole:,}"


def allowed(option: dict) -> str:
    if option["choices"]:
        return ", ".join(f"`{choice}`" for choice in option["choices"])
    if "min" in option:
        return f"{option['type']}, {bound(option, option['min'])} to {bound(option, option['max'])}"
    return option["type"]


def flags_page(options: list[dict]) -> str:
    text = "# Flags\n\n" + HEAD
    text += ("Each flag is also an environment variable. Flags win over the environment, that over the YAML file. Numbers: 32k = 32,000, "
             "32K = 32,768, 16GiB, 500ms, 30s, 10m. A switch is turned off by `--no-FLAG`. `-` and `_` are the same in a flag.\n")
    sections = list(dict.fromkeys(option["section"] for option in options))
    for section in sorted(sections, key=lambda name: name == ""):
        text += f"\n## {section or 'Flags without a YAML key'}\n\n| flag | what | allowed | default | commands |\n|---|---|---|---|---|\n"
        for option in options:
            if option["section"] != section:
                continue
            names = [f"`--{option['flag']}`"] + [f"`{'-' if len(name) <= 3 else '--'}{name}`" for name in option["aliases"]]
            default = f"`{option['default']}`" if option["default"] else ""
            text += f"| {', '.join(names)} | {cell(option['help'])} | {allowed(option)} | {default} | {', '.join(option['verbs'])} |\n"
    return text


def yaml_page(options: list[dict]) -> str:
    text = "# The YAML file\n\n" + HEAD
    text += ("`restkv serve MODEL --config FILE`. `version: 1` and these sections; unknown keys, duplicate keys and wrong values are errors with "
             "file, line and column. `${NAME}` and `${NAME:-default}` are replaced from the environment. `restkv config schema` is the JSON "
             "schema for editors ([configs/schema.json](../../configs/schema.json)).\n")
    for section in dict.fromkeys(option["section"] for option in options if option["section"]):
        text += f"\n## {section}\n\n| key | what | allowed | default | environment |\n|---|---|---|---|---|\n"
        for option in options:
            if option["section"] == section:
                default = f"`{option['default']}`" if option["default"] else ""
                text += f"| `{option['key']}` | {cell(option['help'])} | {allowed(option)} | {default} | `{option['environment']}` |\n"
    return text


def metrics_page(metrics: str) -> str:
    text = "# Metrics\n\n" + HEAD
    text += ("`GET /metrics`, Prometheus text format. Names and labels are vLLM's, behind `metrics.prefix` "
             "(`restkv_`), from `kv_entries_evicted_total` on our own, always `restkv_`. A dashboard and alert rules that use them: [docker/](../../docker).\n\n"
             "| metric | type | labels | what |\n|---|---|---|---|\n")
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", metrics, re.MULTILINE))
    for name, help_text in re.findall(r"^# HELP (\S+) (.*)$", metrics, re.MULTILINE):
        samples = re.findall(rf"^{name}(?:_bucket|_sum|_count)?\{{(.*?)\}} ", metrics, re.MULTILINE)
        labels = list(dict.fromkeys(label for sample in samples for label in re.findall(r'(\w+)="', sample) if label != "le"))
        text += f"| `{name}` | {types[name]} | {', '.join(f'`{label}`' for label in labels)} | {cell(help_text)} |\n"
    return text


def type_text(schema: dict) -> str:
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    for joined in ("anyOf", "oneOf"):
        if joined in schema:
            return " or ".join(dict.fromkeys(type_text(part) for part in schema[joined]))
    kind = schema.get("type", "any")
    text = " or ".join(kind) if isinstance(kind, list) else kind
    if "minimum" in schema and "maximum" in schema:
        text += f", {schema['minimum']} to {schema['maximum']}"
    elif "exclusiveMinimum" in schema and "maximum" in schema:
        text += f", above {schema['exclusiveMinimum']} to {schema['maximum']}"
    return text


def http_page(document: dict) -> str:
    text = "# HTTP\n\n" + HEAD + "From `GET /openapi.json`, which is made from the table that parses requests.\n\n| method and path | what |\n|---|---|\n"
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in ("get", "post", "delete", "put"):
                text += f"| `{method.upper()} {path}` | {cell(operation.get('summary', ''))} |\n"
    bodies: dict[str, list[str]] = {}  # operations with the same fields are one table
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema") if isinstance(operation, dict) else None
            if schema and schema.get("properties"):
                table = fields_table(schema)
                if refused := schema.get("x-refused"):
                    table += "\nRefused with a 400 unless empty or false: " + ", ".join(f"`{name}`" for name in refused) + ".\n"
                bodies.setdefault(table, []).append(f"`{method.upper()} {path}`")
    for table, operations in bodies.items():
        text += f"\n## Fields of {', '.join(operations)}\n\n{table}"
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        if schema.get("properties"):
            text += f"\n## {name}\n\n{fields_table(schema)}"
    return text


def fields_table(schema: dict, prefix: str = "") -> str:
    text = "" if prefix else "| field | type | default | what |\n|---|---|---|---|\n"
    required = schema.get("required", [])
    for field, value in schema["properties"].items():
        default = "required" if field in required else f"`{json.dumps(value['default'])}`" if "default" in value else ""
        text += f"| `{prefix}{field}` | {cell(type_text(value))} | {default} | {cell(value.get('description', ''))} |\n"
        if field in ("cache", "error"):
            text += fields_table(value, f"{field}.") if value.get("properties") else ""
    return text


def grpc_page() -> str:
    """From the .proto files: services with their methods, messages with their fields."""
    text = "# gRPC\n\n" + HEAD.replace("the program's tables", "proto/")
    text += ("Port 8001 ([examples](../grpc.md)). Fields have the meaning and the bounds of their namesakes over [HTTP](http.md). Beside these services: "
             "`grpc.health.v1.Health` (`Check`, `Watch`) and `grpc.reflection.v1alpha.ServerReflection`.\n")
    for path in sorted(PROTO.rglob("*.proto")):
        source = path.read_text(encoding="utf-8")
        if not path.is_relative_to(PROTO / "restkv") and not path.is_relative_to(PROTO / "inference"):
            continue
        package = re.search(r"^package ([\w.]+);", source, re.MULTILINE).group(1)
        for name, body in re.findall(r"^service (\w+)\s*\{(.*?)^\}", source, re.MULTILINE | re.DOTALL):
            text += f"\n## {package}.{name}\n\n| method | takes | gives | what |\n|---|---|---|---|\n"
            for comment, method, request, response in re.findall(
                    r"((?:^ *//[^\n]*\n)*) *rpc (\w+)\s*\(([^)]*)\)\s*returns\s*\(([^)]*)\)", body, re.MULTILINE):
                what = " ".join(line.strip().removeprefix("//").strip() for line in comment.splitlines())
                text += f"| `{method}` | {cell(request.strip())} | {cell(response.strip())} | {cell(what)} |\n"
        if package == "restkv.v1":
            text += messages_text(source)
    return text


def messages_text(source: str) -> str:
    tables: dict[str, str] = {}
    stack: list[str] = []  # names of the messages around a line; "" for a oneof or a service
    for line in source.splitlines():
        code, _, comment = line.partition("//")
        opened = re.match(r"\s*(message|oneof|service) (\w+) \{", code)
        field = re.match(r"\s*((?:optional |repeated )?[\w.<>, ]+?) (\w+) = (\d+);", code)
        if opened:
            stack.append(opened.group(2) if opened.group(1) == "message" else "")
            tables.setdefault(".".join(filter(None, stack)), "")
        elif field:
            tables[".".join(filter(None, stack))] += f"| `{field.group(2)}` | {field.group(3)} | {cell(field.group(1))} | {cell(comment.strip())} |\n"
        if "}" in code and stack:
            stack.pop()
    return "".join(f"\n### {name}\n\n| field | number | type | what |\n|---|---|---|---|\n{rows}" for name, rows in tables.items() if rows)


def pages(binary: str, url: str) -> dict[str, str]:
    done = subprocess.run([binary, "config", "options"], capture_output=True, check=True, text=True)
    options = json.loads(done.stdout)
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    result = {"flags.md": flags_page(options), "yaml.md": yaml_page(options), "metrics.md": metrics_page(metrics), "grpc.md": grpc_page()}
    try:
        with urllib.request.urlopen(f"{url}/openapi.json", timeout=10) as answer:
            result["http.md"] = http_page(json.load(answer))
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
    return result


def serve(binary: str, model: str) -> tuple[subprocess.Popen, str]:
    process = subprocess.Popen([binary, "serve", model, "--port", "0"], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        found = re.search(r"Listening on (http://\S+)", line)
        if found:
            return process, found.group(1)
    raise SystemExit(f"make_reference: {binary} serve {model} ended with {process.wait()}")


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    names = [argument for argument in arguments if argument != "--check"]
    if len(names) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    process, url = serve(*names)
    try:
        made = pages(names[0], url)
    finally:
        process.terminate()
        process.wait()
    FOLDER.mkdir(parents=True, exist_ok=True)
    stale = [name for name, text in made.items() if not (FOLDER / name).is_file() or (FOLDER / name).read_text(encoding="utf-8") != text]
    for name in stale:
        print(f"{'stale' if check else 'written'}: docs/reference/{name}")
        if not check:
            (FOLDER / name).write_text(made[name], encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

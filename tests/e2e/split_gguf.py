"""Cuts a GGUF file into parts as llama-gguf-split does: all metadata in the first, some of the tensors in each."""

from __future__ import annotations

import struct
from pathlib import Path

ALIGNMENT = 32
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of the numbers, by type
STRING, ARRAY = 8, 9


def skip_string(data: bytes, at: int) -> int:
    return at + 8 + struct.unpack_from("<Q", data, at)[0]


def skip_value(data: bytes, at: int, kind: int) -> int:
    if kind == STRING:
        return skip_string(data, at)
    if kind != ARRAY:
        return at + SIZES[kind]
    element, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if element in SIZES:
        return at + SIZES[element] * count
    for _ in range(count):
        at = skip_value(data, at, element)
    return at


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)


def split_gguf(source: Path, folder: Path, stem: str, num_parts: int) -> list[Path]:
    """The parts' paths. The first part of more than two holds no tensors (llama-gguf-split --no-tensor-first-split)."""
    data = source.read_bytes()
    num_tensors, num_keys = struct.unpack_from("<QQ", data, 8)
    at = 24
    for _ in range(num_keys):
        at = skip_string(data, at)
        at = skip_value(data, at + 4, struct.unpack_from("<I", data, at)[0])
    keys = data[24:at]
    infos, offsets = [], []
    for _ in range(num_tensors):
        begin, at = at, skip_string(data, at)
        at += 4 + 8 * struct.unpack_from("<I", data, at)[0] + 4
        infos.append(data[begin:at])
        offsets.append(struct.unpack_from("<Q", data, at)[0])
        at += 8
    blob = data[at + -at % ALIGNMENT:]
    ends = sorted(offsets)[1:] + [len(blob)]
    contents = [blob[begin:ends[sorted(offsets).index(begin)]] for begin in offsets]

    paths = []
    for no in range(num_parts):
        share = range(no, num_tensors, num_parts)
        if num_parts > 2:
            share = range(no - 1, num_tensors, num_parts - 1) if no else range(0)
        own = b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in (
            ("split.no", 2, struct.pack("<H", no)), ("split.count", 2, struct.pack("<H", num_parts)),
            ("split.tensors.count", 5, struct.pack("<i", num_tensors))))
        head = b"GGUF" + struct.pack("<IQQ", 3, len(share), 3 + (num_keys if no == 0 else 0)) + (keys if no == 0 else b"") + own
        values = b""
        for i in share:
            head += infos[i] + struct.pack("<Q", len(values))
            values = padded(values + contents[i])
        paths.append(folder / f"{stem}-{no + 1:05d}-of-{num_parts:05d}.gguf")
        paths[-1].write_bytes(padded(head) + values)
    return paths

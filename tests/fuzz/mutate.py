"""Bytes that were right once: changed at random, or with a part that somebody chose to do harm."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

import msgspec
import xxhash

DEPTHS = (300, 850, 930, 1100)
_EXTREME = [0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, 2**40]


def nested_json(depth: int, within: str = "1") -> str:
    return "[" * depth + within + "]" * depth


JSON = [
    *(nested_json(depth) for depth in DEPTHS),
    *(nested_json(depth, '1,"a"') for depth in DEPTHS),
    *('{"a":' * depth + "1" + "}" * depth for depth in DEPTHS),
    nested_json(5000),
    "0",
    "-1",
    "0.5",
    str(2**63),
    str(2**64 - 1),
    str(2**64),
    "9" * 30,
    "-" + "9" * 30,
    "9" * 4200,
    "9" * 5000,
    "1e400",
    "-1e400",
    "1" + "0" * 400 + ".5",
    "NaN",
    "null",
    "true",
    "[]",
    "{}",
    '""',
    '"../x"',
    "[[1],[2]]",
    "[1,[2]]",
    "[null,1,1.5]",
    "[" + "null," * 2_000 + "null]",
    '["x",1,1e300]',
    '[{"a":1}]',
    r'"\ud800"',
    r'"\udc00"',
    r'"\ud800\u0041"',
    r'"\u0000"',
    '"\udcff"',  # becomes a byte that is no UTF-8
    '"' + "9" * 5000 + '"',
    '"0001-01-01T00:00+23:59"',
]
MSGPACK = [
    *(b"\x91" * depth + b"\xc0" for depth in DEPTHS),
    *(b"\x81\xa1x" * depth + b"\xc0" for depth in DEPTHS),
    *(b"\x81" * depth + b"\xc0" * (depth + 1) for depth in DEPTHS),
    b"\xc0",
    b"\x90",
    b"\x80",
    b"\xa0",
    b"\xc4\x00",
    b"\xff",
    b"\xcf\x7f" + b"\xff" * 7,
    b"\xcf\x80" + b"\x00" * 7,
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + b"\0" * 7,
    b"\xcb\x7f\xf0" + b"\0" * 6,
    b"\xcb\x7f\xf8" + b"\0" * 6,
    b"\xa2\xff\xfe",
    b"\xa3\xed\xa0\x80",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc7\x0c\xff" + b"\xff" * 12,
    b"\xd6\xff\xff\xff\xff\xff",
    b"\xd4\x05\x00",
]


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A few bytes, numbers or stretches are others, or the end is missing."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(found))
        kind = rng.random()
        if kind < 0.4:
            found[at] = rng.randrange(256)
        elif kind < 0.6:
            at -= at % 4
            width = rng.choice([4, 8])
            found[at : at + width] = (rng.choice(_EXTREME) & (1 << 8 * width) - 1).to_bytes(width, "little")
        elif kind < 0.7:
            at -= at % 4
            number = int.from_bytes(found[at : at + 4], "little") + rng.choice([-8, -1, 1, 8])
            found[at : at + 4] = (number % 2**32).to_bytes(4, "little")
        elif kind < 0.85:
            del found[at : at + rng.choice([rng.randrange(1, 40), len(found)])]
        else:
            to = rng.randrange(len(found))
            found[to : to + 16] = found[at : at + 16]
        found = found or bytearray(1)
    return bytes(found)


def noise(rng: random.Random) -> bytes:
    """Bytes that were never right."""
    return rng.randbytes(rng.choice([0, 1, 7, 100, 3000]))


def _a_part(rng: random.Random, whole: Any) -> tuple[Any, Any]:
    """A container somewhere in ``whole``, and a place in it; at times one that was not there."""
    at = whole
    while True:
        if isinstance(at, dict) and (not at or rng.random() < 0.1):
            return at, "x"
        place = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        if isinstance(at[place], dict | list) and at[place] and rng.random() < 0.7:
            at = at[place]
            continue
        return at, place


def hostile_json(rng: random.Random, good: bytes) -> bytes:
    """An object with one of its parts, at any depth, replaced, and at times a few bytes changed."""
    if rng.random() < 0.1:
        return mutated(rng, good)
    whole = json.loads(good)
    at, place = _a_part(rng, whole)
    at[place] = "PART"
    text = json.dumps(whole).replace('"PART"', rng.choice(JSON), 1).encode("utf-8", "surrogateescape")
    return mutated(rng, text) if rng.random() < 0.2 else text


def hostile_msgpack(rng: random.Random, good: bytes) -> bytes:
    """The same of a map in msgpack."""
    if rng.random() < 0.1:
        return mutated(rng, good)
    whole = msgspec.msgpack.decode(good)
    at, place = _a_part(rng, whole)
    is_bytes = isinstance(at, dict) and isinstance(at.get(place), bytes) and at[place]
    at[place] = mutated(rng, at[place]) if is_bytes and rng.random() < 0.6 else msgspec.Raw(rng.choice(MSGPACK))
    out = msgspec.msgpack.encode(whole)
    return mutated(rng, out) if rng.random() < 0.2 else out


def hostile_line(rng: random.Random, good: bytes) -> bytes:
    """A line of JSON and one with its checksum, which is right again."""
    line = hostile_json(rng, good.partition(b"\n")[0]).replace(b"\n", b" ")
    return line + b"\n" + xxhash.xxh3_64_hexdigest(line).encode() + b"\n"


def hostile_tensors(rng: random.Random, good: bytes) -> bytes:
    """safetensors: a header with its length before it, then numbers."""
    if rng.random() < 0.5:
        return mutated(rng, good)
    (length,) = struct.unpack("<Q", good[:8])
    header = hostile_json(rng, good[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + good[8 + length :]

"""Decodes files of the delta log that were changed at random, with checksums that are right: a process that may end."""

from __future__ import annotations

import random
import sys
from collections import Counter

import numpy as np

from basis.problems import BadFile
from paramserver import manifest as manifests
from paramserver.delta import decode, decode_rows
from paramserver.follower import Follower
from paramserver.manifest import FileRef, Manifest
from paramserver.marks import pin_next, read_pin
from paramserver.precision import Precision
from tests.paramserver.published import MemoryFiles, Writer, replica_tables

_EXTREME = [0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, 2**40]
_PRECISIONS: list[Precision] = ["float32", "float16", "int8"]


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A few bytes, numbers or stretches are others."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(found))
        kind = rng.random()
        if kind < 0.4:
            found[at] = rng.randrange(256)
        elif kind < 0.8:
            at -= at % 4
            width = rng.choice([4, 8])
            found[at : at + width] = (rng.choice(_EXTREME) & (1 << 8 * width) - 1).to_bytes(width, "little")
        elif kind < 0.9:
            del found[at : at + rng.randrange(1, 40)]
        else:
            to = rng.randrange(len(found))
            found[to : to + 16] = found[at : at + 16]
        found = found or bytearray(1)
    return bytes(found)


def mutated_line(rng: random.Random, data: bytes) -> bytes:
    """The same of a line of JSON, most of it still JSON, with its checksum."""
    line = data.partition(b"\n")[0]
    if rng.random() < 0.3:
        line = mutated(rng, line).replace(b"\n", b" ")
    else:
        text = line.decode()
        numbers = [at for at, letter in enumerate(text) if letter.isdigit()]
        at = rng.choice(numbers)
        other = rng.choice(["-1", "9" * 30, "1e400", "null", "0.5", '"../x"', "[]", "{}", "[" * 3000, str(2**63), "7"])
        text = text[:at] + other + text[at + 1 :]
        line = text.encode()
    return line + b"\n" + manifests.xxhash.xxh3_64_hexdigest(line).encode() + b"\n"


def fuzz(seed: int, times: int) -> Counter[str]:
    """What came of each; anything but `BadFile` ends it."""
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    for precision in _PRECISIONS:
        files = MemoryFiles()
        writer = Writer(files, 1000, seed=seed)
        writer.log._precision = precision
        for _ in range(5):
            writer.publish()
        pin_next(files, 5)
        good = dict(files.content)
        newest = writer.log.newest
        assert newest is not None
        shard = newest.shards[0]
        for _ in range(times // 3):
            files.content = dict(good)
            kind = rng.choice(["rows", "rows", "state", "manifest", "pin"])
            name = {"rows": shard.rows.name, "state": shard.state.name, "manifest": newest.name, "pin": "pin.json"}[
                kind
            ]
            lines = kind in ("manifest", "pin")
            files.content[name] = (mutated_line if lines else mutated)(rng, good[name])
            try:
                if kind == "rows":
                    put_reference(files, newest, files.content[name])
                if kind == "state":
                    decode("rows", good[shard.rows.name], "state", files.content[name])
                elif kind == "pin":
                    read_pin(files)
                else:
                    decode_rows("rows", good[shard.rows.name] if kind == "manifest" else files.content[name])
                    tables = replica_tables()
                    Follower(files, tables).pull()
                    for table in tables.values():
                        table.lookup(np.arange(20))
                outcomes["taken"] += 1
            except BadFile:
                outcomes["refused"] += 1
            except FileNotFoundError:  # a manifest may name what is not there
                assert kind == "manifest"
                outcomes["missing"] += 1
    return outcomes


def put_reference(files: MemoryFiles, manifest: Manifest, data: bytes) -> None:
    """Have the manifest say that these are the rows."""
    shard = manifest.shards[0]
    shards = [manifests.msgspec.structs.replace(shard, rows=FileRef.of(shard.rows.name, data))]
    line = manifests.encode_checked(manifests.msgspec.structs.replace(manifest, shards=shards))
    files.content[manifest.name] = line


if __name__ == "__main__":
    print(dict(fuzz(int(sys.argv[1]), int(sys.argv[2]))))

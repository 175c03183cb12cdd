"""A reader of a joiner's state and of `examples`, from docs/state-format.md alone: nothing of Minutely."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from rocksdict import Options, Rdict

HEAD = (
    *("version", "state_id", "sequence", "decided_until", "published"),
    *("offsets", "reached", "newest", "rebuild_points", "pending", "schemas", "configs", "prefix"),
)
CHANGING = (
    *("wake_at", "served_at", "has_request", "impression_ids", "emitted", "events", "waiting"),
    *("offset", "outdated", "digest"),
)
COMMIT = {*("version", "state_id", "sequence", "published", "decided_until"), *("offsets", "lowest", "configs")}


def named(names: tuple[str, ...], packed: bytes) -> dict[str, Any]:
    return dict(zip(names, msgspec.msgpack.decode(packed), strict=True))


def read_state(folder: Path) -> dict[str, Any]:
    """``head``; ``requests`` by id, each with its ``record``; ``timers`` as (time, request); ``emitted`` by (name, time);
    ``refused`` details of letters about requests that were accepted before, else "", by (topic, offset)."""
    db = Rdict(str(folder), Options(raw_mode=True))
    state: dict[str, Any] = {"head": None, "requests": {}, "timers": [], "emitted": {}, "refused": {}}
    records: dict[str, Any] = {}
    try:
        for key, value in db.items():
            kind, rest = key[:1], key[1:]
            if key == b"head":
                state["head"] = named(HEAD, value)
            elif kind == b"p":
                state["requests"][rest.decode()] = named(CHANGING, value)
            elif kind == b"r":
                records[rest.decode()] = msgspec.msgpack.decode(value)
            elif kind == b"t":
                assert value == b""
                state["timers"].append((int.from_bytes(rest[:8], "big"), rest[8:].decode()))
            elif rest[:1] == b"\xfe":
                state["refused"][rest[1:-8].decode(), int.from_bytes(rest[-8:], "big")] = value.decode()
            else:
                assert kind == b"e", key
                name = rest[:-8].removeprefix(b"\xff").decode()
                state["emitted"][name, int.from_bytes(rest[-8:], "big")] = value[0]
    finally:
        db.close()
    for request_id, request in state["requests"].items():
        request["record"] = records.pop(request_id, None)
    assert not records, "a record without its request"
    return state


def read_commit(metadata: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(metadata)
    assert set(found) == COMMIT and found["version"] == 3 and len(metadata) < 2000
    return found


def read_examples(record: bytes) -> tuple[int, list[dict[str, Any]]]:
    """The watermark, and the examples as rows."""
    found = msgspec.msgpack.decode(record)
    assert set(found) == {"version", "watermark", "batch"} and found["version"] == 3
    with pa.ipc.open_stream(found["batch"]) as stream:
        batch = stream.read_next_batch()
    assert len(batch.schema.metadata[b"minutely.schema"]) == 16
    for column in batch.schema:
        if column.name.startswith(("feature.", "label.")):
            assert len(column.metadata[b"minutely.schema"]) == 8
    assert not any(column.null_count for column in batch.columns)
    rows: list[dict[str, Any]] = batch.to_pylist()
    return found["watermark"], rows

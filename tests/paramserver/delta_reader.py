"""A reader of the delta log from docs/delta-format.md alone: nothing of Minutely, pyarrow for the Arrow files only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

Row = list[float]


def checked(folder: Path, ref: dict[str, Any]) -> bytes:
    data = (folder / ref["name"]).read_bytes()
    assert len(data) == ref["size"] and xxhash.xxh3_64_hexdigest(data) == ref["xxh3"], ref["name"]
    return data


def manifest(folder: Path, kind: str, version: int) -> dict[str, Any] | None:
    path = folder / f"{kind}-{version:012d}.json"
    if not path.exists():
        return None
    line, checksum, rest = path.read_bytes().split(b"\n")
    assert checksum.decode() == xxhash.xxh3_64_hexdigest(line) and not rest, path.name
    found: dict[str, Any] = json.loads(line)
    assert found["format"] == 4
    return found


def path_to(folder: Path, version: int) -> list[dict[str, Any]]:
    path: list[dict[str, Any]] = []
    while True:
        base = manifest(folder, "base", version)
        delta = base or manifest(folder, "manifest", version)
        assert delta is not None, f"version {version} is not there"
        path.insert(0, delta)
        if delta["parent"] <= 0:
            return path
        version = delta["parent"]


def tables_of(data: bytes) -> list[dict[str, Any]]:
    with pa.ipc.open_stream(data) as stream:
        rows: list[dict[str, Any]] = stream.read_next_batch().to_pylist()
    return rows


def split(values: Row, size: int, part: dict[str, Any]) -> list[Row]:
    return [values[at * size : (at + 1) * size] for at in range(len(part["key"]))]


def embeddings(part: dict[str, Any], exact: dict[str, Any]) -> list[Row]:
    rows = split(exact.get("embedding", part["embedding"]), part["dim"], part)
    if "scale" not in part or "embedding" in exact:
        return rows
    return [[level * scale for level in row] for row, scale in zip(rows, part["scale"], strict=True)]


def read(folder: Path, version: int, *, exact: bool = True) -> tuple[dict[str, dict[int, list[Row]]], dict[str, Row]]:
    """By table and id: a row as replicas read it, or exact, with its state and [last seen, count, version]; default rows."""
    rows: dict[str, dict[int, list[Row]]] = {}
    defaults: dict[str, Row] = {}
    for item in path_to(folder, version):
        for shard in item["shards"]:
            states = tables_of(checked(folder, shard["state"])) if exact else None
            for at, part in enumerate(tables_of(checked(folder, shard["rows"]))):
                table, state = rows.setdefault(part["table"], {}), states[at] if states else {}
                found = [embeddings(part, state)]
                if exact:
                    found += [split(state["state"], state["state_dim"], part)]
                    found += [
                        [list(three) for three in zip(*map(state.get, ("last_seen", "count", "version")), strict=True)]
                    ]
                for key in part["expired"]:
                    table.pop(key, None)
                table.update(zip(part["key"], map(list, zip(*found, strict=True)), strict=True))
                defaults[part["table"]] = part["default"] + state.get("default_state", [])
    return rows, defaults

"""Rows of own logs in every format, and how the tests of the source read them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from pydantic import TypeAdapter

from basis.problems import Problems
from streaming.features.columns import Ragged
from streaming.features.ids import MISSING, text_id
from streaming.features.kinds import FeatureSet
from streaming.source.load import load
from streaming.source.logged_events import LoggedEvents
from streaming.source.rows.rejects import Reject
from streaming.source.settings import SourceSettings

FORMATS = ["parquet", "csv", "jsonl"]
NOW = 1_800_000_000_000
T = 1_700_000_000_000  # Tuesday, 14 November 2023, 22:13:20 UTC
HOUR, DAY = 3_600_000, 86_400_000
Row = dict[str, Any]

ROWS: list[Row] = [
    {
        "t": T + 5000,
        "user": 2,
        "item": "b",
        "tags": "x|y",
        "price": 3.0,
        "born": T,
        "click": 1,
        "rating": 5.0,
        "wait": 700,
    },
    {
        "t": T + 1000,
        "user": 1,
        "item": "a",
        "tags": "x",
        "price": 0.0,
        "born": T - 9000,
        "click": 0,
        "rating": 2.5,
        "wait": 10,
    },
    {
        "t": T + 1000,
        "user": 1,
        "item": "c",
        "tags": None,
        "price": None,
        "born": None,
        "click": 1,
        "rating": None,
        "wait": 20,
    },
    {
        "t": T + HOUR,
        "user": 1,
        "item": None,
        "tags": "y|z|y",
        "price": 8.0,
        "born": T,
        "click": 0,
        "rating": 4.0,
        "wait": 0,
    },
    {
        "t": T + DAY,
        "user": 3,
        "item": "7",
        "tags": "",
        "price": 99.5,
        "born": T,
        "click": 1,
        "rating": None,
        "wait": None,
    },
]
KEYED = [{**row, "item": row["item"] or "n"} for row in ROWS]
"""The rows where the item names the impression, which takes one for each."""
ORDER = [1, 2, 0, 3, 4]
"""The rows as events stand: requests by time, impressions of one as in the file."""
USERS: list[Row] = [
    {"id": 1, "age": 30, "city": "Bern"},
    {"id": 2, "age": None, "city": "Graz"},
    {"id": 9, "age": 5, "city": "Lyon"},
]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def source(kind: str, **changes: Any) -> SourceSettings:
    fields: Row = {
        "dir": ".",
        "impressions": {"file": f"log.{kind}", "time": {"column": "t"}, "request": ["user", "t"]},
        "actions": {
            "click": {"when": "click", "delay": "10s"},
            "rate": {"value": "rating", "delay": {"column": "wait"}},
        },
    }
    return SourceSettings.model_validate({**fields, **changes})


def features(**given: Any) -> FeatureSet:
    found: FeatureSet = TypeAdapter(FeatureSet).validate_python(given or {"item": {"column": "item"}})
    return found


def load_rows(
    folder: Path, kind: str, rows: Sequence[Row], wanted: FeatureSet | None = None, **changes: Any
) -> LoggedEvents:
    write(folder / f"log.{kind}", rows)
    return load(folder, source(kind, **changes), wanted or features(), NOW)


def ids(*values: Any) -> list[int]:
    return [MISSING if value is None else value if isinstance(value, int) else text_id(value) for value in values]


def lists(column: Any) -> list[list[int]]:
    assert isinstance(column, Ragged)
    return [column.rows(at, at + 1).values.tolist() for at in range(len(column.offsets) - 1)]


def problems_of(
    folder: Path, settings: SourceSettings, wanted: FeatureSet | None = None
) -> list[tuple[str, str, str, str]]:
    with pytest.raises(Problems) as caught:
        load(folder, settings, wanted or features(), NOW)
    found = [tuple(problem) for problem in caught.value.problems]
    for file, place, _value, allowed in found:
        assert file
        assert place
        assert allowed
    return found  # type: ignore[return-value]


def rejects_of(events: LoggedEvents) -> list[tuple[str, str, str]]:
    assert all(isinstance(reject, Reject) and reject.file and reject.detail for reject in events.rejects)
    return sorted((reject.place, reject.value, reject.reason) for reject in events.rejects)


ENGAGED: list[Row] = [
    {"u": 1, "time": T + 1000, "i": "a", "at": T + 2000, "what": "play", "much": 3.5},
    {"u": 2, "time": T + 5000, "i": "b", "at": T + 6000, "what": "like", "much": 1.0},
    {"u": 1, "time": T + 1000, "i": "nothing of the kind", "at": T + 1500, "what": "play", "much": 1.0},
    {"u": 8, "time": T + 1000, "i": "a", "at": T + 1600, "what": "play", "much": 1.0},
]


def engagement_file(kind: str) -> Row:
    return {
        "impressions": {
            "file": f"log.{kind}",
            "time": {"column": "t"},
            "request": ["user", "t"],
            "impression": ["item"],
        },
        "engagements": {
            "file": f"engaged.{kind}",
            "time": {"column": "at"},
            "request": ["u", "time"],
            "impression": ["i"],
            "action": "what",
            "value": "much",
        },
    }


def line(kind: str, at: int) -> str:
    """The line of a row: CSV has a header."""
    return f"line {at + 1 + (kind == 'csv')}"

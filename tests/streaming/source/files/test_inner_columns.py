"""Objects in JSON and Parquet: ``item.id`` names what one holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streaming.source.load import load
from tests.streaming.source.own_logs import NOW, Row, T, features, ids, problems_of, source, write

KINDS = ["jsonl", "parquet"]
ROWS: list[Row] = [
    {"at": {"ms": T}, "item": {"id": "a", "of": {"brand": 7}, "tags": [1, 2]}, "user": {"id": 3}},
    {"at": {"ms": T + 1}, "item": {"id": "b", "of": None, "tags": []}, "user": {"id": 4}},
]
WANTED = features(
    item={"column": "item.id"}, brand={"column": "item.of.brand"}, tags={"column": "item.tags", "pool": "mean"}
)


def log_of(kind: str, **changes: object) -> Row:
    return {"file": f"log.{kind}", "time": {"column": "at.ms"}, "request": ["user.id"], **changes}


@pytest.mark.parametrize("kind", KINDS)
def test_what_objects_hold(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"log.{kind}", ROWS)
    events = load(tmp_path, source(kind, impressions=log_of(kind), actions={"seen": {}}), WANTED, NOW)
    assert np.asarray(events.features["item"]).tolist() == ids("a", "b")
    assert np.asarray(events.features["brand"]).tolist() == ids(7, None)
    assert events.request_ids.to_pylist() == ["3", "4"]
    assert not events.rejects


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_of_that_name_comes_first(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"log.{kind}", [{**row, "item.id": "own"} for row in ROWS])
    events = load(tmp_path, source(kind, impressions=log_of(kind), actions={"seen": {}}), WANTED, NOW)
    assert np.asarray(events.features["item"]).tolist() == ids("own", "own")


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_object_holds_is_missing(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"log.{kind}", ROWS)
    log = source(kind, impressions=log_of(kind), actions={"seen": {}})
    ((_, place, value, allowed),) = problems_of(tmp_path, log, features(item={"column": "item.name"}))
    assert (place, value) == ("column item.name", "missing")
    assert allowed.startswith("the file has: ")


def test_an_object_as_a_whole_is_refused_with_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "log.jsonl", ROWS)
    log = source("jsonl", impressions=log_of("jsonl"), actions={"seen": {}})
    ((_, place, value, allowed),) = problems_of(tmp_path, log, features(item={"column": "item"}))
    assert (place, value) == ("column item", "an object")
    assert allowed.endswith("; item.KEY is what it has in KEY")

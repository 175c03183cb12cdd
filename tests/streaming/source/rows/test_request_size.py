"""``request: size``: how many impressions a request has, as a feature of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from streaming.features.ids import cross
from streaming.features.kinds import FeatureSet
from streaming.source.to_records import RequestRecords
from tests.streaming.source.own_logs import FORMATS, ROWS, Row, T, features, load_rows, rejects_of

WANTED = features(
    item={"column": "item"},
    size={"request": "size", "scope": "request"},
    about={"request": "size", "bucket": "log2"},
    log={"kind": "dense", "request": "size", "transform": "log"},
    share={"kind": "dense", "request": "size", "transform": "inverse", "floor": 1.0},
    item_size={"cross": ["item", "size"]},
)


def shown(*requests: int) -> list[Row]:
    """So many rows for each request, those of different ones in turns."""
    rows = [(at, request) for request, size in enumerate(requests) for at in range(size)]
    return [{**ROWS[0], "user": request, "t": T + request, "item": at} for at, request in sorted(rows)]


@pytest.mark.parametrize("kind", FORMATS)
def test_each_impression_has_the_size_of_its_request(tmp_path: Path, kind: str) -> None:
    events = load_rows(tmp_path, kind, shown(1, 7, 2), WANTED)
    sizes = np.repeat([1, 7, 2], [1, 7, 2])
    found = {name: np.asarray(column) for name, column in events.features.items()}
    assert found["size"].tolist() == sizes.tolist()
    assert found["about"].tolist() == [1, *[3] * 7, 1, 1]
    assert np.array_equal(found["log"], np.log1p(sizes).astype(np.float32))
    assert np.array_equal(found["share"], (1 / sizes).astype(np.float32))
    assert found["item_size"].tolist() == cross(found["item"], sizes).tolist()
    assert {found[name].dtype.name for name in ("size", "about", "item_size")} == {"int64"}
    assert "size" not in events.missing, "no column can lack it"
    records = RequestRecords(events, WANTED).requests(0, 3, np.zeros((10, 0), np.float32), 0, 0)
    assert len(records) == 3


def test_refused_rows_are_not_in_their_request(tmp_path: Path) -> None:
    rows = shown(3, 2)
    rows[0]["t"] = None
    events = load_rows(tmp_path, "jsonl", rows, WANTED)
    assert len(rejects_of(events)) == 1
    assert np.asarray(events.features["size"]).tolist() == [2] * 4


def test_without_a_request_each_row_is_one(tmp_path: Path) -> None:
    impressions = {"file": "log.csv", "time": {"column": "t"}}
    events = load_rows(tmp_path, "csv", shown(3, 2), WANTED, impressions=impressions)
    assert np.asarray(events.features["size"]).tolist() == [1] * 5


def test_of_a_row_with_lists_each_item_is_an_impression(tmp_path: Path) -> None:
    impressions = {"file": "log.jsonl", "time": {"column": "t"}, "explode": ["items"]}
    rows = [{**ROWS[0], "t": T + at, "items": items} for at, items in enumerate([["a", "b", "c"], [], ["d"]])]
    events = load_rows(tmp_path, "jsonl", rows, features(size={"request": "size"}), impressions=impressions)
    assert np.asarray(events.features["size"]).tolist() == [3, 3, 3, 1]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"request": "size", "column": "n"}, "needs exactly one of column, time, request, cross"),
        ({"request": "size", "pool": "mean"}, "side and split go with column, pool with column or a live list"),
        ({"time": "hour", "bucket": "log2"}, "bucket goes with column or request"),
        ({"kind": "dense"}, "needs exactly one of column, request"),
        ({"kind": "dense", "request": "size", "column": "n"}, "needs exactly one of column, request"),
        ({"kind": "dense", "request": "size", "side": "items"}, "side and transform: age go with column"),
        ({"kind": "dense", "request": "size", "transform": "age"}, "side and transform: age go with column"),
        ({"request": "user"}, "size"),
    ],
)
def test_what_does_not_go_with_it(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TypeAdapter(FeatureSet).validate_python({"f": wrong})

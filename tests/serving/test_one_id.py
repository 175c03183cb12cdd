"""One id, one row: a value has the same id at every entrance, or none at any."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import example, given, settings
from hypothesis import strategies as st

from basis.problems import Problems
from serving.inputs import BadRequest, raw_column
from streaming.features.columns import Ragged
from streaming.features.ids import MISSING
from streaming.features.kinds import SparseFeature
from streaming.records.events import BadRecord
from streaming.records.json_records import column_of_values
from tests.streaming.source.own_logs import NOW, T, features, load, source

ITEM, TAGS = SparseFeature(column="item"), SparseFeature(column="item", pool="mean")
BESIDE = 7
"""What stands beside the value: where nothing else does, a file whose values are all refused is refused as a whole."""
REFUSED = "refused"

integers = st.integers(-(2**70), 2**70) | st.sampled_from(
    [2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64]
)
floats = st.floats(allow_infinity=False) | st.integers(-(2**54), 2**54).map(float)
texts = (
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6)
    | integers.map(str)
    | floats.map(str)
)
values = integers | floats | st.booleans() | texts | st.none()


def of_file(kind: str, value: Any, *, in_list: bool) -> int | str:
    rows = [{"t": T, "user": 1, "item": [each] if in_list else each} for each in (value, BESIDE)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if kind == "parquet":
            same = [value, None if isinstance(value, str | bool | float) else BESIDE]
            rows = [{**row, "item": [each] if in_list else each} for row, each in zip(rows, same, strict=True)]
            large = isinstance(value, int) and value >= 2**63
            kinds = pa.uint64() if large else None
            items = pa.array([row["item"] for row in rows], pa.list_(kinds) if in_list and large else kinds)
            pq.write_table(pa.table({"t": [T, T], "user": [1, 1], "item": items}), folder / "log.parquet")
        elif kind == "csv":
            with (folder / "log.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, ["t", "user", "item"])
                writer.writeheader()
                writer.writerows(rows)
        else:
            (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        wanted = features(item={"column": "item", "pool": "mean"} if in_list else {"column": "item"})
        try:
            events = load(folder, source(kind, actions={"seen": {}}), wanted, NOW)
        except Problems:
            return REFUSED
    if any("item" in reject.place for reject in events.rejects):
        return REFUSED
    column = events.features["item"]
    return int(column.values[0] if isinstance(column, Ragged) else np.asarray(column)[0])


def of_record(value: Any, *, in_list: bool) -> int | str:
    try:
        column = column_of_values(
            "item", TAGS if in_list else ITEM, [[value], [BESIDE]] if in_list else [value, BESIDE]
        )
    except BadRecord:
        return REFUSED
    return int(column.values[0] if isinstance(column, Ragged) else np.asarray(column)[0])


def of_request(value: Any, *, in_list: bool) -> int | str:
    try:
        raw = raw_column("item", TAGS if in_list else ITEM, [[value], [BESIDE]] if in_list else [value, BESIDE], 2)
    except BadRequest:
        return REFUSED
    return int(raw.values[0] if isinstance(raw, Ragged) else raw[0])


@given(values)
@settings(max_examples=150, deadline=None)
@example(2**63 + 5)
@example(2**64 - 1)
@example(17.0)
@example("17.0")
@example("TRUE")
@example(True)
@example("nan")
@example(math.nan)
@example(-0.0)
@example(" 17")
@example(1e22)
@example("1e+22")
def test_a_value_has_one_id(value: Any) -> None:
    found = {"record": of_record(value, in_list=False), "request": of_request(value, in_list=False)}
    found["json lines"] = of_file("jsonl", value, in_list=False)
    is_fraction = isinstance(value, float) and not math.isnan(value) and not value.is_integer()
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))
    if not is_fraction and not (
        is_missing and value is not None
    ):  # CSV knows no numbers: 0.5 is a text there, and so is nan
        found["csv"] = of_file("csv", value, in_list=False)
    if not isinstance(value, int) or -(2**63) <= value < 2**64:  # Parquet has no larger ones
        found["parquet"] = of_file("parquet", value, in_list=False)
    assert len(set(found.values())) == 1, (value, found)
    assert (set(found.values()) == {MISSING}) == is_missing, (value, found)


@given(values)
@settings(max_examples=75, deadline=None)
@example(2**63 + 5)
@example(math.nan)
def test_a_value_in_a_list_has_the_same(value: Any) -> None:
    alone = of_record(value, in_list=False)
    found = {"record": of_record(value, in_list=True), "request": of_request(value, in_list=True)}
    found["json lines"] = of_file("jsonl", value, in_list=True)
    if not isinstance(value, int) or -(2**63) <= value < 2**64:
        found["parquet"] = of_file("parquet", value, in_list=True)
    assert set(found.values()) == {alone}, (value, alone, found)

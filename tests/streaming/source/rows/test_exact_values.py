"""Values whose last digits count: times below a millisecond, and decimals beyond what a float holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streaming.features.arrow_columns import texts_of
from streaming.features.ids import MISSING, as_ids
from streaming.source.load import load
from streaming.source.rows.times import read_times
from streaming.source.rows.walk import read
from streaming.source.settings import EachItem, File, SourceSettings, TimeColumn
from tests.streaming.source.own_logs import FORMATS, NOW, T, features, load_rows, rejects_of, write

MICROSECONDS = [T * 1000 + 37_601, T * 1000 + 37_999, T * 1000 + 37_000, T * 1000, -1, -1000, -1001, 999]
FLOORED = [each // 1000 for each in MICROSECONDS]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns", "iso", "z", "timestamp", "format"])
def test_a_time_is_the_last_millisecond_that_was_over(tmp_path: Path, kind: str, unit: str) -> None:
    times = [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=each) for each in MICROSECONDS]
    texts = [f"{time:%Y-%m-%dT%H:%M:%S.%f}" for time in times]
    values: list[Any] = {
        "s": [each / 1e6 for each in MICROSECONDS],
        "ms": [each / 1000 for each in MICROSECONDS],
        "us": MICROSECONDS,
        "ns": [each * 1000 + 999 for each in MICROSECONDS],
        "z": [f"{text}999z" for text in texts],
        "timestamp": [time if kind == "parquet" else str(time) for time in times],
    }.get(unit, texts)
    write(tmp_path / f"log.{kind}", [{"t": value} for value in values])
    column = TimeColumn.model_validate(
        {"column": "t", "unit": unit if unit in ("s", "ms", "us", "ns") else "ms"}
        | ({"format": "%Y-%m-%dT%H:%M:%S.%f"} if unit == "format" else {})
    )
    read_ = read(tmp_path, File(file=f"log.{kind}"), ["t"]).column("t")
    found, broken = read_times(read_, column)
    assert found.to_pylist() == FLOORED
    assert broken is None or not any(broken.to_pylist())


@pytest.mark.parametrize("kind", [pa.decimal128(38, 10), pa.decimal128(38, 2), pa.decimal256(50, 10)])
def test_decimals_are_told_apart_by_all_their_digits(kind: pa.DataType) -> None:
    whole = [1_234_567_890_123_456_000 + at for at in range(1000)] + [2**53, 2**53 + 1, -7, 0, 2**63 - 1]
    decimals = pa.array(map(Decimal, whole), kind)
    ids, broken = as_ids(decimals)
    assert ids.tolist() == whole
    assert broken is None
    assert texts_of(decimals).to_pylist() == list(map(str, whole))
    others = pa.array([Decimal("9007199254740993.5"), Decimal("9007199254740992.5"), Decimal("-0.25"), None], kind)
    assert np.asarray(as_ids(others)[1]).tolist() == [True, True, True, False]
    assert texts_of(others).to_pylist() == ["9007199254740993.5", "9007199254740992.5", "-0.25", None]
    assert as_ids(pa.array([Decimal(2**63)], kind))[1].to_pylist() == [True]


@pytest.mark.parametrize("digits", [(3, 2), (2, 2), (18, 18), (38, 38), (38, 37)])
def test_a_decimal_that_is_no_id_costs_only_its_row(digits: tuple[int, int]) -> None:
    """What a type has no room for ended the whole log."""
    few = [Decimal(0), Decimal("-0.5"), Decimal("0.99"), None]
    more = [Decimal("-9.5"), Decimal("9.99"), Decimal(-9), Decimal(5)] if digits[0] > digits[1] else []
    ids, broken = as_ids(pa.array(few + more, pa.decimal128(*digits)))
    assert np.asarray(broken).tolist() == [False, True, True, False, True, True, False, False][: len(few + more)]
    assert ids.tolist() == [0, MISSING, MISSING, MISSING, MISSING, MISSING, -9, 5][: len(few + more)]


_LARGEST = {pa.uint64(): 2**64 - 1, pa.int64(): 2**63 - 1, pa.string(): str(2**64 - 1), pa.float64(): 1e300}


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("kind", _LARGEST, ids=str)
def test_a_time_beyond_all_costs_only_its_row(tmp_path: Path, kind: pa.DataType, unit: str) -> None:
    seconds = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}[unit]
    times = [T // 1000 * seconds] * 3
    values = list(map({pa.string(): str, pa.float64(): float}.get(kind, int), times))
    columns = {"t": pa.array([*values, _LARGEST[kind]], kind), "item": ["a"] * 4, "click": [0] * 4}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    settings = SourceSettings.model_validate(
        {
            "dir": ".",
            "impressions": {"file": "log.parquet", "time": {"column": "t", "unit": unit}},
            "actions": {"click": {"when": "click"}},
        }
    )
    events = load(tmp_path, settings, features(), NOW)
    assert events.impressions == 3
    assert [(place, reason) for place, _, reason in rejects_of(events)] == [("line 4, column t", "future")]


def test_an_age_beyond_all_is_like_others() -> None:
    found, broken = read_times(pa.array([T * 10**6, 2**64 - 1, None], pa.uint64()), TimeColumn(column="t", unit="ns"))
    assert found.to_pylist() == [T, (2**63 - 1) // 10**6, None]
    assert broken is None


def test_requests_named_by_decimals_stay_apart(tmp_path: Path) -> None:
    keys = pa.array([Decimal(1_234_567_890_123_456_000 + at) for at in range(1000)], pa.decimal128(38, 10))
    columns = {"t": [T] * 1000, "user": keys, "item": ["a"] * 1000, "click": [0] * 1000}
    nothing = {"rating": pa.nulls(1000), "wait": pa.nulls(1000)}
    pq.write_table(pa.table({**columns, **nothing}), tmp_path / "part.parquet")
    events = load_rows(tmp_path, "parquet", pq.read_table(tmp_path / "part.parquet").to_pylist())
    assert len(events.request_ids) == 1000


def test_values_of_an_item_have_a_column_each() -> None:
    with pytest.raises(ValueError, match="clicked is given twice; allowed: once"):
        EachItem(split="-", columns=["clicked", "clicked"])

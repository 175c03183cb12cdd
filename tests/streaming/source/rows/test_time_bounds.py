"""Times before 1990 and after tomorrow are refused, unless the config says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from streaming.source.load import load
from tests.streaming.source.own_logs import (
    DAY,
    ENGAGED,
    FORMATS,
    KEYED,
    NOW,
    ROWS,
    Row,
    T,
    engagement_file,
    features,
    line,
    load_rows,
    problems_of,
    rejects_of,
    source,
    write,
)

ALLOWED = "allowed: 1990-01-01 to 2027-01-16; source.earliest and source.latest change that"
YEAR = 365 * DAY


def timed(scale: float, shift: int = 0) -> list[Row]:
    return [{**row, "t": int((row["t"] + shift) * scale)} for row in ROWS]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("scale", "unit", "means", "right"),
    [
        (0.001, "ms", "1970-01-20 16:13", "s"),
        (1, "us", "1970-01-20 16:13", "ms"),
        (1, "s", "beyond the year 9999", "ms"),
        (1000, "ms", "beyond the year 9999", "us"),
    ],
)
def test_a_file_whose_times_have_another_unit_is_refused_by_it(
    tmp_path: Path, kind: str, scale: float, unit: str, means: str, right: str
) -> None:
    rows = timed(scale)
    write(tmp_path / f"log.{kind}", rows)
    log = {"file": f"log.{kind}", "time": {"column": "t", "unit": unit}, "request": ["user", "t"]}
    ((file, place, value, allowed),) = problems_of(tmp_path, source(kind, impressions=log))
    first = str(rows[0]["t"]) if kind == "csv" else rows[0]["t"]
    assert (file, place, value) == (str(tmp_path / f"log.{kind}"), "column t", f"{first!r}, which is {means}")
    advice = f"unit: {right} instead of {unit} makes it 2023-11-14 22:13"
    assert allowed == f"no time of the file is in range; {ALLOWED}; {advice}"


@pytest.mark.parametrize("kind", FORMATS)
def test_so_is_a_file_of_engagements(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"log.{kind}", KEYED)
    write(tmp_path / f"engaged.{kind}", [{**row, "at": row["at"] // 1000} for row in ENGAGED])
    ((file, place, _, allowed),) = problems_of(tmp_path, source(kind, actions={}, **engagement_file(kind)))
    assert (Path(file).name, place) == (f"engaged.{kind}", "column at")
    assert allowed.endswith("unit: s instead of ms makes it 2023-11-14 22:13")


@pytest.mark.parametrize(("text", "means"), [("1923-11-14", "1923-11-14 00:00"), ("2123-11-14", "2123-11-14 00:00")])
def test_texts_have_no_unit_to_blame(tmp_path: Path, text: str, means: str) -> None:
    write(tmp_path / "log.csv", [{**row, "t": text} for row in ROWS])
    ((_, _, value, allowed),) = problems_of(tmp_path, source("csv"))
    assert (value, allowed) == (f"{text!r}, which is {means}", f"no time of the file is in range; {ALLOWED}")


@pytest.mark.parametrize(
    ("unit", "factor", "far", "shown"),
    [
        ("ns", 1_000_000, 4_102_444_800_000_000_123, "2100-01-01 00:00:00.000000123"),
        ("us", 1_000, 2**62, "<value out of range: 4611686018427387904>"),
    ],
)
def test_a_time_that_python_cannot_hold_costs_its_row(
    tmp_path: Path, unit: str, factor: int, far: int, shown: str
) -> None:
    times = pa.array([*(row["t"] * factor for row in ROWS[:4]), far], pa.timestamp(unit))
    rows = pa.Table.from_pylist(ROWS)
    pa.parquet.write_table(rows.set_column(rows.schema.get_field_index("t"), "t", times), tmp_path / "log.parquet")
    events = load(tmp_path, source("parquet"), features(), NOW)
    assert rejects_of(events) == [("line 5, column t", repr(shown), "future")]
    assert events.impressions == 4
    pa.parquet.write_table(rows.set_column(0, "t", pa.array([far] * 5, pa.timestamp(unit))), tmp_path / "log.parquet")
    ((_, place, value, _),) = problems_of(tmp_path, source("parquet"))
    assert (place, value.startswith(repr(shown))) == ("column t", True)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("shift", "reason"), [(-40 * YEAR, "malformed"), (20 * YEAR, "future")])
def test_one_row_is_refused_alone(tmp_path: Path, kind: str, shift: int, reason: str) -> None:
    rows = [*ROWS[:4], {**ROWS[4], "t": T + shift}]
    events = load_rows(tmp_path, kind, rows)
    assert [(place, why) for place, _, why in rejects_of(events)] == [(f"{line(kind, 4)}, column t", reason)]
    assert events.rejects[0].detail == ALLOWED
    assert events.impressions == 4
    told = load_rows(tmp_path, kind, rows, earliest="1975-01-01", latest="2060-12-31")
    assert (told.rejects, told.impressions) == ([], 5)


def test_days_that_are_told_belong_to_what_is_allowed(tmp_path: Path) -> None:
    told: dict[str, Any] = {"earliest": "2023-11-14", "latest": "2023-11-15"}
    assert load_rows(tmp_path, "jsonl", ROWS, **told).impressions == 5
    told["latest"] = "2023-11-14"  # the last row is of the day after
    assert load_rows(tmp_path, "jsonl", ROWS, **told).impressions == 4
    told = {"earliest": "2023-11-15", "latest": "2023-11-15"}
    assert load_rows(tmp_path, "jsonl", ROWS, **told).impressions == 1


@pytest.mark.parametrize(("key", "day"), [("earliest", "1969-12-31"), ("latest", "2100-01-01"), ("latest", "soon")])
def test_days_that_rows_cannot_hold_are_a_mistake(key: str, day: str) -> None:
    with pytest.raises(ValidationError):
        source("csv", **{key: day})


def test_an_action_that_a_delay_puts_after_tomorrow_is_refused(tmp_path: Path) -> None:
    rows = [*ROWS[:3], {**ROWS[3], "wait": NOW}, ROWS[4]]
    events = load_rows(tmp_path, "parquet", rows)
    assert [(reject.reason, reject.detail) for reject in events.rejects] == [("future", ALLOWED)]

"""Own logs with unusable rows: each one is left out and reported, and the others are used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from basis.problems import Problems
from streaming.features.given import raw_of_values
from streaming.features.transforms import from_raw
from streaming.records.labels import Label
from streaming.source.load import load
from streaming.source.rows.raw import NO_NUMBER
from tests.streaming.source.own_logs import (
    DAY,
    ENGAGED,
    FORMATS,
    KEYED,
    NOW,
    ROWS,
    USERS,
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


def spoiled(at: int, **changes: Any) -> list[Row]:
    return [{**row, **(changes if place == at else {})} for place, row in enumerate(ROWS)]


def columns_of(kind: str, rows: list[Row], column: str) -> list[Row]:
    """Parquet has one type per column, so a broken number turns the column into text."""
    if kind != "parquet":
        return rows
    return [{**row, column: None if row[column] is None else str(row[column])} for row in rows]


PRICED = features(item={"column": "item"}, price={"kind": "dense", "column": "price"})


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("t", T * 1000, "future"),
        ("t", NOW + 2 * DAY, "future"),
        ("t", 10**300, "future"),
        ("t", -1, "malformed"),
        ("t", T // 1000, "malformed"),
        ("t", None, "malformed"),
        ("t", "noon", "malformed"),
        ("t", "2023-13-45", "malformed"),
    ],
)
def test_a_row_without_a_usable_time_is_refused(
    tmp_path: Path, kind: str, column: str, value: Any, reason: str
) -> None:
    if value == 10**300 and kind == "parquet":
        value = 1e300
    rows = columns_of(kind, spoiled(3, t=value), "t") if isinstance(value, str | float) else spoiled(3, t=value)
    events = load_rows(tmp_path, kind, rows, PRICED)
    assert [(place, why) for place, _, why in rejects_of(events)] == [(f"{line(kind, 3)}, column {column}", reason)]
    assert events.impressions == 4
    assert events.served_at.tolist() == [T + 1000, T + 5000, T + DAY]
    assert len(events.engagements) == 5


@pytest.mark.parametrize("kind", FORMATS)
def test_a_broken_time_among_iso_texts_costs_its_row(tmp_path: Path, kind: str) -> None:
    rows = [{**row, "t": f"2023-11-14T22:13:{20 + at}", "n": at} for at, row in enumerate(ROWS)]
    rows[2]["t"] = "2023-11-31T22:13:22"
    rows[4]["t"] = "yesterday"
    events = load_rows(tmp_path, kind, rows, PRICED)
    assert [place for place, _, _ in rejects_of(events)] == [f"{line(kind, at)}, column t" for at in (2, 4)]
    assert events.served_at.tolist() == [T, T + 1000, T + 3000]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_row_without_a_request_is_refused(tmp_path: Path, kind: str) -> None:
    impressions = {"file": f"log.{kind}", "time": {"column": "t"}, "request": ["user"]}
    rows = [{**row, "user": f"u{row['user']}"} for row in ROWS]
    for at, user in ((1, None), (4, "u" * 300)):
        rows[at] = {**rows[at], "user": user}
    events = load_rows(tmp_path, kind, rows, impressions=impressions)
    assert [(place, why) for place, _, why in rejects_of(events)] == [
        (f"{line(kind, at)}, column user", "malformed") for at in (1, 4)
    ]
    assert events.request_ids.to_pylist() == ["u1", "u2"]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("column", ["price", "rating", "click", "wait"])
def test_a_broken_field_is_counted_once_and_costs_nothing_else(tmp_path: Path, kind: str, column: str) -> None:
    rows = columns_of(kind, spoiled(0, **{column: "12,5"}), column)
    events = load_rows(tmp_path, kind, rows, PRICED)
    whole = load_rows(tmp_path, kind, ROWS, PRICED)
    assert rejects_of(events) == [(f"{line(kind, 0)}, column {column}", "'12,5'", "malformed")]
    assert events.impressions == whole.impressions
    assert events.features["item"].tolist() == whole.features["item"].tolist()
    lost = {"price": 0, "rating": 1, "click": 1, "wait": 1}[column]
    assert len(events.engagements) == len(whole.engagements) - lost
    assert events.features["price"].tolist() == [0, 0, 0 if column == "price" else 3, 8, 99.5]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_broken_field_that_several_things_use_is_one_dead_letter(tmp_path: Path, kind: str) -> None:
    rows = columns_of(kind, spoiled(0, wait="soon"), "wait")
    actions = {name: {"delay": {"column": "wait"}, "value": "wait"} for name in ("play", "like", "share")}
    wanted = features(item={"column": "item"}, wait={"kind": "dense", "column": "wait"})
    events = load_rows(tmp_path, kind, rows, wanted, actions=actions)
    assert rejects_of(events) == [(f"{line(kind, 0)}, column wait", "'soon'", "malformed")]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_negative_delay_costs_its_action_only(tmp_path: Path, kind: str) -> None:
    events = load_rows(tmp_path, kind, spoiled(0, wait=-700))
    ((place, value, reason),) = rejects_of(events)
    assert (place, reason) == (f"{line(kind, 0)}, column wait", "malformed")
    assert "-700" in value
    assert events.impressions == 5
    assert len(events.engagements) == 5
    assert (events.engagements.happened_at >= T).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_broken_field_of_a_side_table_is_missing_there(tmp_path: Path, kind: str) -> None:
    users = columns_of(kind, [{**USERS[0], "age": "old"}, *USERS[1:]], "age")
    write(tmp_path / f"users.{kind}", users)
    wanted = features(item={"column": "item"}, age={"kind": "dense", "column": "age", "side": "users"})
    events = load_rows(
        tmp_path, kind, ROWS, wanted, sides={"users": {"file": f"users.{kind}", "key": "id", "on": "user"}}
    )
    assert rejects_of(events) == [(f"{line(kind, 0)}, column age", "'old'", "malformed")]
    assert events.features["age"].tolist() == [0] * 5


@pytest.mark.parametrize("kind", FORMATS)
def test_engagements_that_cannot_be_used(tmp_path: Path, kind: str) -> None:
    engaged = [*ENGAGED[:2], {**ENGAGED[0], "at": None}, {**ENGAGED[0], "at": NOW + 2 * DAY}, {**ENGAGED[0], "at": -5}]
    write(tmp_path / f"engaged.{kind}", engaged)
    events = load_rows(tmp_path, kind, KEYED, actions={}, **engagement_file(kind))
    assert [(place, why) for place, _, why in rejects_of(events)] == [
        (f"{line(kind, 2)}, column at", "malformed"),
        (f"{line(kind, 3)}, column at", "future"),
        (f"{line(kind, 4)}, column at", "malformed"),
    ]
    assert events.engagements.row.tolist() == [0, 2]
    assert events.impressions == 5


@pytest.mark.parametrize("kind", FORMATS)
def test_an_engagement_with_a_broken_value_is_none(tmp_path: Path, kind: str) -> None:
    """It counts as refused, so it must not decide a label with a made-up value."""
    engaged = columns_of(kind, [ENGAGED[0], {**ENGAGED[1], "much": "lots"}], "much")
    write(tmp_path / f"engaged.{kind}", engaged)
    events = load_rows(tmp_path, kind, KEYED, actions={}, **engagement_file(kind))
    assert rejects_of(events) == [(f"{line(kind, 1)}, column much", "'lots'", "malformed")]
    assert events.engagements.row.tolist() == [0]


UNUSABLE = [
    (kind, value)
    for kind in FORMATS
    for value in (math.inf, -math.inf, 1e300, -3.5e38)
    if kind == "parquet" or math.isfinite(value)  # JSON has no others, and CSV only as texts
]
NUMBERS_ALLOWED = "allowed: numbers that are finite in 32 bits"


@pytest.mark.parametrize(("kind", "value"), UNUSABLE)
def test_an_engagement_whose_value_is_no_number_of_32_bits_is_refused(tmp_path: Path, kind: str, value: float) -> None:
    write(tmp_path / f"engaged.{kind}", [{**ENGAGED[0], "much": value}, ENGAGED[1], {**ENGAGED[0], "much": 3.4e38}])
    events = load_rows(tmp_path, kind, KEYED, actions={}, **engagement_file(kind))
    (reject,) = events.rejects
    assert (reject.file, reject.place) == (str(tmp_path / f"engaged.{kind}"), f"{line(kind, 0)}, column much")
    assert (repr(value) in reject.value, reject.reason, reject.detail) == (True, "malformed", NUMBERS_ALLOWED)
    assert events.engagements.row.tolist() == [0, 2]
    truth = events.truth(Label(action="play", loss="squared", window="1s"))
    assert truth.tolist() == [np.float32(3.4e38), 0, 0, 0, 0]


@pytest.mark.parametrize(("kind", "value"), UNUSABLE)
def test_an_action_of_a_column_with_such_a_value_is_refused(tmp_path: Path, kind: str, value: float) -> None:
    events = load_rows(tmp_path, kind, spoiled(0, rating=value))
    assert [(place, why) for place, _, why in rejects_of(events)] == [(f"{line(kind, 0)}, column rating", "malformed")]
    assert len(events.engagements) == len(load_rows(tmp_path, kind, ROWS).engagements) - 1
    assert np.isfinite(events.truth(Label(action="rate", loss="squared", window="1d"))).all()


@pytest.mark.parametrize(
    ("kind", "missing"), [*((kind, None) for kind in FORMATS), ("parquet", math.nan)], ids=lambda value: str(value)
)
def test_what_is_missing_is_missing_however_it_is_written(tmp_path: Path, kind: str, missing: float | None) -> None:
    """A missing engagement's value is 1, and a missing feature 0; an action without its value or ``when`` did not happen."""
    write(tmp_path / f"engaged.{kind}", [{**ENGAGED[0], "much": missing}, ENGAGED[1]])
    events = load_rows(tmp_path, kind, KEYED, actions={}, **engagement_file(kind))
    assert (events.rejects, events.engagements.value.tolist()) == ([], [1, 1])
    whole = load_rows(tmp_path, kind, spoiled(0, click=1.0), PRICED)
    rows = spoiled(0, click=missing, rating=missing, wait=missing, price=missing)
    gaps = load_rows(tmp_path, kind, rows, PRICED)
    assert (gaps.rejects, gaps.features["price"][2]) == ([], 0)
    assert len(gaps.engagements) == len(whole.engagements) - 2


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("transform", ["none", "log", "sqrt", "square"])
@pytest.mark.parametrize("value", [1e30, -1e30, 1e300, -1e300, math.inf, -math.inf])
def test_a_number_that_makes_none_of_32_bits_is_refused_alone(
    tmp_path: Path, kind: str, transform: str, value: float
) -> None:
    """Records and ranking requests with such a number are refused too, as a whole."""
    if kind == "jsonl" and math.isinf(value):
        return
    wanted = features(price={"kind": "dense", "column": "price", "transform": transform})
    events = load_rows(tmp_path, kind, spoiled(0, price=value), wanted)
    fits = math.isfinite(value) and (transform == "log" or (abs(value) < 1e31 and transform != "square"))
    if kind == "csv" and math.isinf(value):
        assert [reject.detail for reject in events.rejects] == [NO_NUMBER]
    else:
        told = [] if fits else [(f"{line(kind, 0)}, column price", "malformed", NUMBERS_ALLOWED)]
        assert [(reject.place, reject.reason, reject.detail) for reject in events.rejects] == told
    assert np.isfinite(events.features["price"]).all()
    assert (events.features["price"][2] != 0) == (fits and (value > 0 or transform == "none"))
    assert events.impressions == 5
    try:
        raw = raw_of_values(wanted["price"], [1.0, value])
    except ValueError as error:
        assert not fits
        assert str(error) == f"{value!r}; {NUMBERS_ALLOWED}"
    else:
        assert fits
        made = from_raw(wanted["price"], raw, np.zeros(2, np.int64))
        assert isinstance(made, np.ndarray)
        assert made[1] == events.features["price"][2]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_vector_with_such_a_number_keeps_its_others(tmp_path: Path, kind: str) -> None:
    wanted = features(picture={"kind": "vector", "column": "picture", "size": 2})
    rows = [{**row, "picture": [1.0, 1e39 if at == 0 else 2.0]} for at, row in enumerate(ROWS)]
    events = load_rows(tmp_path, kind, rows, wanted)
    assert [place for place, _, _ in rejects_of(events)] == [f"{line(kind, 0)}, column picture"]
    assert np.asarray(events.features["picture"])[2].tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"\[1.0, 1e\+39\]; allowed: numbers that are finite"):
        raw_of_values(wanted["picture"], [[0.0, 0.0], [1.0, 1e39]])


@pytest.mark.parametrize("broken", ["too, many, columns, in, this, line, are, not, used, at, all", "one"])
def test_a_csv_line_of_another_width_costs_itself(tmp_path: Path, broken: str) -> None:
    write(tmp_path / "log.csv", ROWS)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    (tmp_path / "log.csv").write_text("\n".join([*lines[:3], broken, *lines[3:], ""]))
    events = load(tmp_path, source("csv"), features(), NOW)
    assert [place for place, _, _ in rejects_of(events)] == ["line 4"]
    assert events.impressions == 5


@pytest.mark.parametrize("broken", ["{", "", '{"t": 1, "user"', "[1, 2]", '"text"', "\x00", '{"t": NaN}'])
def test_a_json_line_that_is_none_costs_itself(tmp_path: Path, broken: str) -> None:
    write(tmp_path / "log.jsonl", ROWS)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    (tmp_path / "log.jsonl").write_text("\n".join([*lines[:2], broken, *lines[2:], ""]))
    events = load(tmp_path, source("jsonl"), PRICED, NOW)
    places = [place.split(",")[0] for place, _, _ in rejects_of(events)]
    assert places == (["line 3"] if broken else [])
    assert events.impressions == 5
    assert len(events.engagements) == 6


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_blank_lines_count_as_lines(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"log.{kind}"
    write(path, spoiled(3, t=NOW * 2))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "", *lines[1:], ""]))
    events = load(tmp_path, source(kind), features(), NOW)
    assert [place for place, _, _ in rejects_of(events)] == [f"{line(kind, 4)}, column t"]


@pytest.mark.parametrize("value", [2**70, -(2**70), 1e400, "a" * 100_000, "\ud800", [1], {"a": 1}, True])
def test_an_odd_value_in_one_json_line_is_no_other_exception(tmp_path: Path, value: Any) -> None:
    for column in ("item", "price", "user", "t", "unused"):
        rows = spoiled(0, **{column: value})
        try:
            events = load_rows(tmp_path, "jsonl", rows, PRICED)
        except Problems:
            continue
        assert events.impressions >= 4


def test_no_row_at_all_can_be_used(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", [{**row, "user": ""} for row in ROWS])
    log = {"file": "log.csv", "time": {"column": "t"}, "request": ["user"]}
    (file, place, value, allowed), *rows = problems_of(tmp_path, source("csv", impressions=log))
    assert (Path(file).name, place) == ("log.csv", "rows")
    assert [place for _, place, _, _ in rows] == [f"line {at}, column user" for at in range(2, 7)]
    assert value == "none is usable"
    assert allowed == "allowed: at least one row with a time and a request"

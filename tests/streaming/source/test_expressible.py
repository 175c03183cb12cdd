"""What a config can say of own logs: requests with lists of items, conditions, delays, ways to write times and numbers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streaming.features.ids import text_id
from streaming.records.events import decode_request
from streaming.source.to_records import RequestRecords
from tests.streaming.source.own_logs import (
    FORMATS,
    NOW,
    Row,
    T,
    engagement_file,
    features,
    lists,
    load,
    load_rows,
    problems_of,
    rejects_of,
    source,
    write,
)

NEWS: list[Row] = [
    {"t": T, "user": "u1", "shown": [5, 6, 7], "read": [7, 5], "place": [0.5, 1.5, 2.5]},
    {"t": T + 2000, "user": "u2", "shown": [], "read": [], "place": []},
    {"t": T + 1000, "user": "u1", "shown": [6], "read": None, "place": [9.0]},
]
WITH_LISTS = features(
    user={"column": "user", "scope": "request"},
    item={"column": "shown"},
    place={"kind": "dense", "column": "place"},
)


def impressions(kind: str, **changes: Any) -> Row:
    return {"file": f"log.{kind}", "time": {"column": "t"}, **changes}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_row_with_lists_of_items_is_a_request(tmp_path: Path, kind: str) -> None:
    split = {"split": " "} if kind == "csv" else {}
    rows = NEWS
    if kind == "csv":
        rows = [{name: " ".join(map(str, v)) if isinstance(v, list) else v for name, v in row.items()} for row in NEWS]
    log = impressions(kind, explode={"columns": ["shown", "place"], **split})
    read = {"when": {"column": "read", "contains": "shown", **split}, "delay": "5s"}
    events = load_rows(tmp_path, kind, rows, WITH_LISTS, impressions=log, actions={"read": read})
    assert events.starts.tolist() == [0, 3, 4]
    assert events.served_at.tolist() == [T, T + 1000]
    assert np.asarray(events.features["item"]).tolist() == [5, 6, 7, 6]
    assert np.asarray(events.features["place"]).tolist() == [0.5, 1.5, 2.5, 9.0]
    assert np.asarray(events.features["user"]).tolist() == [text_id("u1")] * 4
    assert events.engagements.row.tolist() == [0, 2]
    assert not events.rejects


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_lists_that_differ_in_length_cost_their_row(tmp_path: Path, kind: str) -> None:
    rows = [{**NEWS[0], "place": [1.0]}, NEWS[2]]
    log = impressions(kind, explode=["shown", "place"])
    events = load_rows(tmp_path, kind, rows, WITH_LISTS, impressions=log, actions={"seen": {}})
    assert events.impressions == 1
    ((place, value, reason),) = rejects_of(events)
    assert (place, value, reason) == ("line 1, column place", "[1.0]", "malformed")


def test_what_is_exploded_must_be_lists(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", [{"t": T, "user": 1, "shown": "5 6", "place": "1 2"}])
    log = impressions("csv", explode=["shown", "place"])
    ((_, place, _, allowed),) = problems_of(tmp_path, source("csv", impressions=log, actions={"seen": {}}), WITH_LISTS)
    assert (place, allowed) == ("column shown", "allowed: lists, or texts with explode.split")


@pytest.mark.parametrize("kind", FORMATS)
def test_an_action_happens_where_a_column_has_a_value(tmp_path: Path, kind: str) -> None:
    rows = [
        {"t": T + at, "user": at, "item": at, "answer": answer} for at, answer in enumerate(["ja", "nein", None, "17"])
    ]
    for equals, happened in (("ja", [0]), (["ja", "nein"], [0, 1]), (17, [3]), ("JA", [])):
        actions = {"said": {"when": {"column": "answer", "equals": equals}}}
        events = load_rows(tmp_path, kind, rows, actions=actions)
        assert events.engagements.row.tolist() == happened, equals


@pytest.mark.parametrize("kind", FORMATS)
def test_an_action_without_its_delay_is_counted(tmp_path: Path, kind: str) -> None:
    """Nobody knows when it happened; that it did not is no answer either."""
    rows = [{"t": T + at, "user": at, "item": at, "click": int(at != 2), "wait": None if at else 5} for at in range(3)]
    events = load_rows(tmp_path, kind, rows, actions={"click": {"when": "click", "delay": {"column": "wait"}}})
    assert events.engagements.row.tolist() == [0]
    ((place, _, reason),) = rejects_of(events)
    assert (place, reason) == (f"line {3 if kind == 'csv' else 2}, column wait", "malformed")
    assert [reject.detail for reject in events.rejects] == ["an action without its delay"]


AT = int(datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("2024-05-06 07:08:09 UTC", {}),
        ("20240506T070809Z", {}),
        ("20240506T070809+0000", {}),
        ("2024-05-06T09:08:09+02:00", {}),
        ("05/06/2024 07:08:09 AM", {"format": "%m/%d/%Y %I:%M:%S %p"}),
        ("5/6/2024 7:08:09 AM", {"format": "%m/%d/%Y %I:%M:%S %p"}),
        ("2024-05-06 09:08:09 +0200", {"format": "%Y-%m-%d %H:%M:%S %z"}),
        ("2024-05-06 07:08:09.000", {"format": "%Y-%m-%d %H:%M:%S.%f"}),
        (str(AT * 1_000_000), {"unit": "ns"}),
    ],
)
def test_ways_to_write_a_time(tmp_path: Path, kind: str, text: str, given: Row) -> None:
    rows = [{"t": text, "user": 1, "item": 1}, {"t": "5.6.24", "user": 1, "item": 2}]
    log = impressions(kind, time={"column": "t", **given})
    events = load_rows(tmp_path, kind, rows, impressions=log, actions={"seen": {}})
    assert events.served_at.tolist() == [AT]
    ((place, value, _),) = rejects_of(events)
    assert (place, value) == (f"line {3 if kind == 'csv' else 2}, column t", "'5.6.24'")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_day_that_no_month_has_is_no_time_and_a_format_reads_numbers_too(tmp_path: Path, kind: str) -> None:
    rows = [{"t": each, "user": 1, "item": 1} for each in (20240229, 20240230)]
    log = impressions(kind, time={"column": "t", "format": "%Y%m%d"})
    events = load_rows(tmp_path, kind, rows, impressions=log, actions={"seen": {}})
    assert events.served_at.tolist() == [int(datetime(2024, 2, 29, tzinfo=UTC).timestamp() * 1000)]
    assert len(events.rejects) == 1


def test_a_format_that_is_none_is_a_mistake(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", [{"t": "x", "user": 1, "item": 1}])
    log = impressions("csv", time={"column": "t", "format": "%q"})
    ((_, place, value, _),) = problems_of(tmp_path, source("csv", impressions=log, actions={"seen": {}}))
    assert (place, "format %q" in value) == ("column t", True)


@pytest.mark.parametrize(
    ("clicked", "item", "happened"),
    [
        ([5], 5, True),
        ([None], None, False),
        ([7.5], 1.5, False),
        (["99999999999999999999"], "88888888888888888888", False),
    ],
)
def test_nothing_that_is_missing_or_broken_is_contained(
    tmp_path: Path, clicked: Any, item: Any, happened: bool
) -> None:
    rows = [{"t": T, "user": 1, "item": item, "clicked": clicked}, {"t": T, "user": 2, "item": 8, "clicked": [8]}]
    click = {"when": {"column": "clicked", "contains": "item"}}
    events = load_rows(tmp_path, "jsonl", rows, features(user={"column": "user"}), actions={"click": click})
    assert events.engagements.row.tolist() == [0, 1][not happened :]


def test_a_column_that_is_only_exploded_is_read_and_one_that_is_not_there_is_told(tmp_path: Path) -> None:
    rows = [{"t": T, "user": 1, "a": [1, 2], "b": [3, 4], "c": [5]}]
    log = impressions("jsonl", explode=["a", "b"])
    wanted = features(a={"column": "a"})
    assert load_rows(tmp_path, "jsonl", rows, wanted, impressions=log, actions={"seen": {}}).impressions == 2
    log = impressions("jsonl", explode=["a", "d"])
    ((_, place, value, _),) = problems_of(tmp_path, source("jsonl", impressions=log, actions={"seen": {}}), wanted)
    assert (place, value) == ("column d", "missing")


def test_a_decimal_comma(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        f"t;item;price\n{T};1;1,5\n{T + 1};2;-2,25e1\n{T + 2};3;1.234,5\n{T + 3};4;1.234\n"
    )
    log = impressions("csv", delimiter=";", decimal=",")
    wanted = features(item={"column": "item"}, price={"kind": "dense", "column": "price"})
    events = load(tmp_path, source("csv", impressions=log, actions={"seen": {}}), wanted, NOW)
    assert np.asarray(events.features["price"]).tolist() == [1.5, -22.5, 0, 0]
    assert [place for place, _, _ in rejects_of(events)] == ["line 4, column price", "line 5, column price"]


@pytest.mark.parametrize("price", ["1,5", "+1,5", " -43,17"])
def test_a_decimal_comma_that_the_config_does_not_name_is_hinted_at(tmp_path: Path, price: str) -> None:
    (tmp_path / "log.csv").write_text(f"t;item;price\n{T};1;{price}\n")
    wanted = features(item={"column": "item"}, price={"kind": "dense", "column": "price"})
    log = impressions("csv", delimiter=";")
    ((_, place, _, allowed),) = problems_of(tmp_path, source("csv", impressions=log, actions={"seen": {}}), wanted)
    assert place == "column price"
    assert allowed.startswith("allowed: numbers; ")
    assert allowed.endswith('; where a comma stands for the point, decimal: ","')


@pytest.mark.parametrize("values", [["True", "False"], ["true", "false"], ["1", "0"]])
def test_named_actions_are_compared_as_those_of_equals(tmp_path: Path, values: list[str]) -> None:
    write(tmp_path / "log.csv", [{"t": T, "user": 1, "item": item} for item in "ab"])
    done = [{"at": T + 1, "u": 1, "time": T, "i": item, "b": b} for item, b in zip("ab", values, strict=True)]
    write(tmp_path / "engaged.csv", done)
    found = engagement_file("csv")
    found["engagements"] |= {"action": {"column": "b", "names": {True: "buy", "False": "leave"}}, "value": None}
    events = load(tmp_path, source("csv", actions={}, **found), features(), NOW)
    assert events.engagements.actions == ["buy", "leave"]
    assert events.engagements.row.tolist() == [0, 1]


@pytest.mark.parametrize("kind", [pa.float64(), pa.string(), pa.decimal128(21, 2), pa.int64()])
def test_keys_are_the_same_in_every_type(tmp_path: Path, kind: pa.DataType) -> None:
    """pandas makes floats of integers with gaps; Arrow writes 20260000000.0 as 2.026e+10."""
    keys = [20_260_000_000 + at for at in range(5)]
    stamps = pa.array([T + at for at in range(5)])
    table = {"t": stamps, "user": pa.array(keys), "item": pa.array([f"i{at}" for at in range(5)])}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    engaged = {
        "at": stamps,
        "u": pa.array([*keys[:4], None], pa.int64()).cast(kind),
        "time": stamps.cast(pa.timestamp("ms")),
        "i": table["item"],
        "what": pa.array(["click"] * 5),
    }
    pq.write_table(pa.table(engaged), tmp_path / "engaged.parquet")
    settings = engagement_file("parquet")
    settings["impressions"]["time"] = {"column": "t"}
    settings["impressions"]["request"] = ["user"]
    settings["engagements"] |= {"request": ["u"], "value": None}
    events = load(tmp_path, source("parquet", actions={}, **settings), features(), NOW)
    assert events.engagements.row.tolist() == [0, 1, 2, 3]
    assert len(rejects_of(events)) == 1


@pytest.mark.parametrize("kind", FORMATS)
def test_the_last_of_a_list_count_and_an_empty_text_has_none(tmp_path: Path, kind: str) -> None:
    listed = [[1, 2, 3, 4], [], [5], [6, 7]]
    rows = [{"t": T, "user": 1, "seen": each if kind == "parquet" else " ".join(map(str, each))} for each in listed]
    split = {} if kind == "parquet" else {"split": " "}
    wanted = features(seen={"column": "seen", "pool": "mean", "last": 2, **split})
    events = load_rows(tmp_path, kind, rows, wanted, actions={"seen": {}})
    assert lists(events.features["seen"]) == [[3, 4], [], [5], [6, 7]]
    assert events.missing == {"seen": 0.25}


def test_a_list_of_the_request_is_logged_once_and_must_be_the_same(tmp_path: Path) -> None:
    wanted = features(history={"column": "history", "pool": "mean", "scope": "request"})
    rows = [{"t": T, "user": user, "history": [user, 2, user]} for user in (1, 1, 3, 3)]
    events = load_rows(tmp_path, "jsonl", rows, wanted, actions={"seen": {}})
    (first, second) = RequestRecords(events, wanted).requests(0, 2, np.zeros((4, 0), np.float32), 0, 0)
    assert [decode_request(record, NOW).shared["history"][1] for record in (first, second)] == [
        np.array([user, 2, user]).tobytes() for user in (1, 3)
    ]
    for spoiled in ([1, 2, 4], [1, 2], None):
        rows[1]["history"] = spoiled
        write(tmp_path / "log.jsonl", rows)
        ((_, place, _, allowed),) = problems_of(tmp_path, source("jsonl", actions={"seen": {}}), wanted)
        assert (place, allowed) == ("feature history, line 2", "differs within its request; allowed: scope: impression")


@pytest.mark.parametrize(("zone", "hour", "weekday"), [("Europe/Berlin", 23, 1), ("Asia/Tokyo", 7, 2), (None, 22, 1)])
def test_the_hour_of_a_place(tmp_path: Path, zone: str | None, hour: int, weekday: int) -> None:
    """T is a Tuesday, 22:13 UTC."""
    wanted = features(hour={"time": "hour", "zone": zone}, weekday={"time": "weekday", "zone": zone})
    events = load_rows(tmp_path, "csv", [{"t": T, "user": 1}], wanted, actions={"seen": {}})
    assert [np.asarray(events.features[name]).tolist() for name in ("hour", "weekday")] == [[hour], [weekday]]


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        ({"time": "hour", "zone": "Mars/Olympus"}, "no time zone; allowed"),
        ({"column": "x", "zone": "Europe/Berlin"}, "zone goes with time"),
        ({"column": "x", "last": 3}, "last goes with a list"),
    ],
)
def test_what_does_not_go_together_is_said(feature: Row, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        features(f=feature)

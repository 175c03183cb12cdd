"""Own logs: the same rows give the same events from every format, and what is wrong in them is told, never thrown."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from pydantic import TypeAdapter

from basis.problems import Problems
from streaming.columns import Ragged
from streaming.events import MAX_IMPRESSIONS
from streaming.features import FeatureSet
from streaming.ids import MISSING, cross, text_id
from streaming.labels import Label
from streaming.source import LoggedEvents, load
from streaming.source_settings import SourceSettings
from streaming.tabular import Reject

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
        "rating": 1.0,
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


# What rows become.

ALL_FEATURES = features(
    user={"column": "user", "scope": "request"},
    item={"column": "item"},
    tags={"column": "tags", "split": "|", "pool": "mean"},
    first_tag={"column": "tags", "split": "|", "pool": "first"},
    price_class={"column": "price", "bucket": "log2"},
    hour={"time": "hour", "scope": "request"},
    weekday={"time": "weekday", "scope": "request"},
    city={"column": "city", "side": "users", "scope": "request"},
    user_item={"cross": ["user", "item"]},
    price={"kind": "dense", "column": "price"},
    log={"kind": "dense", "column": "price", "transform": "log"},
    sqrt={"kind": "dense", "column": "price", "transform": "sqrt"},
    square={"kind": "dense", "column": "price", "transform": "square"},
    since={"kind": "dense", "column": "born", "transform": "age"},
    user_age={"kind": "dense", "column": "age", "side": "users", "scope": "request"},
)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_rows_give_the_same_events_in_every_format(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"users.{kind}", USERS)
    sides = {"users": {"file": f"users.{kind}", "key": "id", "on": "user"}}
    events = load_rows(tmp_path, kind, ROWS, ALL_FEATURES, sides=sides)
    assert events.rejects == []
    assert (events.impressions, events.requests) == (5, 4)
    assert events.starts.tolist() == [0, 2, 3, 4, 5]
    assert events.request_of_row.tolist() == [0, 0, 1, 2, 3]
    assert events.served_at.tolist() == [T + 1000, T + 5000, T + HOUR, T + DAY]
    assert events.request_ids.to_pylist() == [f"1/{T + 1000}", f"2/{T + 5000}", f"1/{T + HOUR}", f"3/{T + DAY}"]
    assert events.impression_ids.to_pylist() == [
        f"1/{T + 1000}.0",
        f"1/{T + 1000}.1",
        f"2/{T + 5000}.0",
        f"1/{T + HOUR}.0",
        f"3/{T + DAY}.0",
    ]
    found = events.features
    price = np.array([0, 0, 3, 8, 99.5])
    assert found["user"].tolist() == [1, 1, 2, 1, 3]
    assert found["item"].tolist() == ids("a", "c", "b", None, 7)
    assert lists(found["tags"])[:4] == [ids("x"), [], ids("x", "y"), ids("y", "z", "y")]
    assert found["first_tag"].tolist() == ids("x", None, "x", "y", None)
    assert found["price_class"].tolist() == [0, 0, 2, 3, 6]
    assert found["hour"].tolist() == [22, 22, 22, 23, 22]
    assert found["weekday"].tolist() == [1, 1, 1, 1, 2]
    assert found["city"].tolist() == ids("Bern", "Bern", "Graz", "Bern", None)
    assert found["user_item"].tolist() == cross(found["user"], found["item"]).tolist()
    assert len(set(found["user_item"].tolist())) == 5
    assert found["price"].tolist() == price.tolist()
    assert found["log"] == pytest.approx(np.log1p(price))
    assert found["sqrt"] == pytest.approx(np.sqrt(price))
    assert found["square"] == pytest.approx(price**2)
    assert found["since"].tolist() == [10, 0, 5, 3600, 86_400]
    assert found["user_age"].tolist() == [30, 30, 0, 30, 0]
    log = events.engagements
    assert log.actions == ["click", "rate"]
    assert list(
        zip(log.happened_at.tolist(), log.row.tolist(), log.action.tolist(), log.value.tolist(), strict=True)
    ) == [
        (T + 1010, 0, 1, 2.5),
        (T + 5700, 2, 1, 5.0),
        (T + 11_000, 1, 0, 1.0),
        (T + 15_000, 2, 0, 1.0),
        (T + HOUR, 3, 1, 4.0),
        (T + DAY + 10_000, 4, 0, 1.0),
    ]
    assert log.impression_id.to_pylist() == [events.impression_ids[row].as_py() for row in log.row]
    assert log.request_id.to_pylist() == [events.request_ids[events.request_of_row[row]].as_py() for row in log.row]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_native_lists_and_vectors(tmp_path: Path, kind: str) -> None:
    rows: list[Row] = [
        {"t": T, "user": 1, "item": "a", "words": ["x", "y"], "numbers": [3, 4], "vector": [1.0, 2.0, 3.0]},
        {"t": T + 1, "user": 1, "item": "b", "words": [], "numbers": [5], "vector": [4.0, None, 6.0]},
        {"t": T + 2, "user": 1, "item": "c", "words": None, "numbers": None, "vector": None},
        {"t": T + 3, "user": 1, "item": "d", "words": ["z", None], "numbers": [6, 6, 7], "vector": [7.0, 8.0, 9.0]},
    ]
    wanted = features(
        words={"column": "words", "pool": "sum"},
        numbers={"column": "numbers", "pool": "mean"},
        first={"column": "words", "pool": "first"},
        vector={"kind": "vector", "column": "vector", "size": 3},
    )
    events = load_rows(tmp_path, kind, rows, wanted, actions={"seen": {}})
    assert lists(events.features["words"]) == [ids("x", "y"), [], [], ids("z", None)]
    assert lists(events.features["numbers"]) == [[3, 4], [5], [], [6, 6, 7]]
    assert events.features["first"].tolist() == ids("x", None, None, "z")
    assert events.features["vector"].tolist() == [[1, 2, 3], [4, 0, 6], [0, 0, 0], [7, 8, 9]]
    assert events.features["vector"].dtype == np.float32


def test_native_lists_and_their_text_are_the_same(tmp_path: Path) -> None:
    natively = [{**row, "tags": None if row["tags"] is None else row["tags"].split("|")} for row in ROWS]
    as_text = load_rows(tmp_path, "csv", ROWS[:4], features(tags={"column": "tags", "split": "|", "pool": "mean"}))
    as_lists = load_rows(tmp_path, "parquet", natively[:4], features(tags={"column": "tags", "pool": "mean"}))
    assert lists(as_text.features["tags"]) == lists(as_lists.features["tags"])


@pytest.mark.parametrize("kind", FORMATS)
def test_true_and_false_say_when_an_action_happened(tmp_path: Path, kind: str) -> None:
    rows: list[Row] = [{"t": T + at, "user": at, "item": "a", "click": at % 2 == 0} for at in range(4)]
    if kind == "csv":  # as pyarrow and pandas write them
        rows = [{**row, "click": str(row["click"]).lower() if row["user"] < 2 else str(row["click"])} for row in rows]
    events = load_rows(tmp_path, kind, rows, actions={"click": {"when": "click"}})
    assert events.engagements.row.tolist() == [0, 2]


@pytest.mark.parametrize("kind", FORMATS)
def test_texts_that_look_like_dates_are_ids_like_others(tmp_path: Path, kind: str) -> None:
    rows: list[Row] = [{"t": T + at, "user": at, "item": f"2023-11-{14 + at}"} for at in range(3)]
    events = load_rows(tmp_path, kind, rows, actions={"seen": {}})
    assert events.features["item"].tolist() == ids("2023-11-14", "2023-11-15", "2023-11-16")


@pytest.mark.parametrize(("unit", "scale"), [("s", 1000), ("ms", 1), ("us", 0.001)])
@pytest.mark.parametrize("kind", FORMATS)
def test_units_of_time(tmp_path: Path, kind: str, unit: str, scale: float) -> None:
    rows = [{**row, "t": round(row["t"] / scale)} for row in ROWS]
    impressions = {"file": f"log.{kind}", "time": {"column": "t", "unit": unit}}
    events = load_rows(tmp_path, kind, rows, impressions=impressions)
    assert events.served_at.tolist() == sorted(row["t"] for row in ROWS)


@pytest.mark.parametrize(
    "text",
    [
        "2023-11-14 22:13:20",
        "2023-11-14T22:13:20",
        "2023-11-14T22:13:20Z",
        "2023-11-14T22:13:20+00:00",
        "2023-11-14T23:13:20+01:00",
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_times_as_iso_8601_texts(tmp_path: Path, kind: str, text: str) -> None:
    events = load_rows(tmp_path, kind, [{**ROWS[0], "t": text}])
    assert events.served_at.tolist() == [T]


@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_timestamps_of_parquet(tmp_path: Path, zone: str | None) -> None:
    stamps = pa.array([T * 1000, (T + 1) * 1000]).cast(pa.timestamp("us", zone))
    pa.parquet.write_table(pa.table({"t": stamps, "user": [1, 1], "item": ["a", "b"]}), tmp_path / "log.parquet")
    events = load(tmp_path, source("parquet", actions={"seen": {}}), features(), NOW)
    assert events.served_at.tolist() == [T, T + 1]


def test_dates_of_parquet(tmp_path: Path) -> None:
    days = pa.array([19_000, 19_001], pa.int32()).cast(pa.date32())
    pa.parquet.write_table(pa.table({"t": days, "user": [1, 1], "item": ["a", "b"]}), tmp_path / "log.parquet")
    events = load(tmp_path, source("parquet", actions={"seen": {}}), features(), NOW)
    assert events.served_at.tolist() == [19_000 * DAY, 19_001 * DAY]


def test_dictionaries_of_parquet(tmp_path: Path) -> None:
    """As pandas writes categories."""
    item = pa.array(["a", "b", None, "a"]).dictionary_encode()
    table = pa.table({"t": [T, T + 1, T + 2, T + 3], "user": [1, 2, 3, 4], "item": item})
    pa.parquet.write_table(table, tmp_path / "log.parquet")
    events = load(tmp_path, source("parquet", actions={"seen": {}}), features(), NOW)
    assert events.features["item"].tolist() == ids("a", "b", None, "a")


def test_every_impression_is_a_request_where_nothing_names_one(tmp_path: Path) -> None:
    events = load_rows(tmp_path, "csv", ROWS, impressions={"file": "log.csv", "time": {"column": "t"}})
    assert events.requests == events.impressions == 5
    assert len(set(events.request_ids.to_pylist())) == 5
    assert len(set(events.impression_ids.to_pylist())) == 5
    assert events.features["item"].tolist() == ids(*(ROWS[at]["item"] for at in ORDER[:-1]), 7)


def test_a_request_is_served_when_its_first_impression_was(tmp_path: Path) -> None:
    rows = [{"t": T + at, "user": user, "item": str(100 + at)} for at, user in [(50, 1), (20, 2), (10, 1), (30, 2)]]
    impressions = {"file": "log.jsonl", "time": {"column": "t"}, "request": ["user"]}
    events = load_rows(tmp_path, "jsonl", rows, impressions=impressions, actions={"seen": {}})
    assert events.request_ids.to_pylist() == ["1", "2"]
    assert events.served_at.tolist() == [T + 10, T + 20]
    assert events.starts.tolist() == [0, 2, 4]
    assert events.features["item"].tolist() == [150, 110, 120, 130], "their order in the file is their position"


def test_keys_of_several_columns_do_not_run_together(tmp_path: Path) -> None:
    rows = [{"t": T, "a": "1/2", "b": "3", "item": "x"}, {"t": T, "a": "1", "b": "2/3", "item": "y"}]
    impressions = {"file": "log.csv", "time": {"column": "t"}, "request": ["a", "b"]}
    assert load_rows(tmp_path, "csv", rows, impressions=impressions, actions={"seen": {}}).requests == 2


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


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_of_engagements(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"engaged.{kind}", ENGAGED)
    events = load_rows(tmp_path, kind, KEYED, actions={"click": {"when": "click"}}, **engagement_file(kind))
    log = events.engagements
    named = [log.actions[code] for code in log.action]
    assert list(zip(log.happened_at.tolist(), named, log.row.tolist(), log.value.tolist(), strict=True)) == [
        (T + 1000, "click", 1, 1.0),
        (T + 1500, "play", -1, 1.0),
        (T + 1600, "play", -1, 1.0),
        (T + 2000, "play", 0, 3.5),
        (T + 5000, "click", 2, 1.0),
        (T + 6000, "like", 2, 1.0),
        (T + DAY, "click", 4, 1.0),
    ]
    assert log.impression_id.to_pylist()[1:4] == ["nothing of the kind", "a", "a"]
    assert log.request_id.to_pylist()[2] == f"8/{T + 1000}"
    assert events.truth(Label(action="play", loss="squared", window="1s")).tolist() == [3.5, 0, 0, 0, 0]


def test_truth_is_what_the_log_says_whatever_the_window(tmp_path: Path) -> None:
    events = load_rows(tmp_path, "parquet", ROWS)
    assert events.truth(Label(action="click", window="1ms")).tolist() == [0, 1, 1, 0, 1]
    assert events.truth(Label(action="rate", min_value=4, decided_by="rate", window="1ms")).tolist() == [0, 0, 1, 1, 0]
    assert events.truth(Label(action="rate", loss="squared", window="1ms")).tolist() == [2.5, 0, 5, 4, 0]
    assert events.truth(Label(action="nobody", window="1h")).tolist() == [0] * 5


def test_the_first_of_several_values_is_the_truth(tmp_path: Path) -> None:
    write(tmp_path / "engaged.csv", [{**ENGAGED[0], "at": T + 4000, "much": 9.0}, ENGAGED[0]])
    events = load_rows(tmp_path, "csv", KEYED, actions={}, **engagement_file("csv"))
    assert events.truth(Label(action="play", loss="squared", window="1s")).tolist() == [3.5, 0, 0, 0, 0]


# Files that cannot be used.


@pytest.mark.parametrize("kind", FORMATS)
def test_missing_columns_are_all_told_at_once(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"users.{kind}", USERS)
    write(tmp_path / f"log.{kind}", ROWS)
    settings = source(
        kind,
        actions={"click": {"when": "clicked", "value": "worth", "delay": {"column": "later"}}},
        sides={"users": {"file": f"users.{kind}", "key": "uid", "on": "person"}},
    )
    wanted = features(item={"column": "thing"}, town={"column": "town", "side": "users"}, hour={"time": "hour"})
    found = problems_of(tmp_path, settings, wanted)
    places = sorted((Path(file).name, place) for file, place, _, _ in found)
    columns = [f"column {name}" for name in ("clicked", "later", "person", "thing", "worth")]
    assert places == sorted(
        [
            *((f"log.{kind}", place) for place in columns),
            *((f"users.{kind}", f"column {name}") for name in ("town", "uid")),
        ]
    )
    assert all(value == "missing" and "the file has: " in allowed for _, _, value, allowed in found)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("column", ["price", "t", "wait", "rating", "click"])
def test_a_column_of_the_wrong_type(tmp_path: Path, kind: str, column: str) -> None:
    write(tmp_path / f"log.{kind}", [{**row, column: "plenty"} for row in ROWS])
    wanted = features(item={"column": "item"}, price={"kind": "dense", "column": "price"})
    ((file, place, value, allowed),) = problems_of(tmp_path, source(kind), wanted)
    assert (Path(file).name, place) == (f"log.{kind}", f"column {column}")
    assert "plenty" in value
    assert "numbers" in allowed or "times" in allowed


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    ("column", "values", "feature"),
    [
        ("item", [[1], [2]], {"column": "item"}),
        ("item", [{"a": 1}, {"a": 2}], {"column": "item"}),
        ("item", [0.5, 1.5], {"column": "item"}),
        ("item", ["a", "b"], {"column": "item", "pool": "mean"}),
        ("item", [[[1]], [[2]]], {"column": "item", "pool": "mean"}),
        ("item", [None, None], {"column": "item", "pool": "mean"}),
        ("item", [[1.0], [2.0]], {"kind": "dense", "column": "item"}),
        ("item", [1.0, 2.0], {"kind": "vector", "column": "item", "size": 2}),
        ("item", [[1.0, 2.0], [1.0]], {"kind": "vector", "column": "item", "size": 2}),
        ("item", [["a", "b"], ["c", "d"]], {"kind": "vector", "column": "item", "size": 2}),
        ("item", [[[1.0], [2.0]], [[1.0], [2.0]]], {"kind": "vector", "column": "item", "size": 2}),
        ("t", [[T], [T]], {"column": "user"}),
        ("user", [[1], [2]], {"column": "t"}),
    ],
)
def test_a_column_of_a_type_that_does_not_fit(
    tmp_path: Path, kind: str, column: str, values: list[Any], feature: Row
) -> None:
    rows = [{"t": T + at, "user": at, column: value} for at, value in enumerate(values)]
    write(tmp_path / f"log.{kind}", rows)
    found = problems_of(tmp_path, source(kind, actions={"seen": {}}), features(feature=feature))
    assert any(column in place for _, place, _, _ in found)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_empty_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"log.{kind}").write_bytes(b"")
    ((file, place, value, allowed),) = problems_of(tmp_path, source(kind))
    assert (Path(file).name, place, value) == (f"log.{kind}", "file", "0 bytes")
    assert "allowed" in allowed


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_without_rows(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"log.{kind}"
    write(path, ROWS)
    if kind == "parquet":
        pa.parquet.write_table(pa.parquet.read_table(path).slice(0, 0), path)
    else:
        path.write_text(path.read_text().splitlines()[0] + "\n" if kind == "csv" else "\n\n")
    ((file, _, _, _),) = problems_of(tmp_path, source(kind))
    assert Path(file).name == f"log.{kind}"


def test_a_file_that_is_not_there_and_an_ending_that_says_nothing(tmp_path: Path) -> None:
    ((file, place, _, _),) = problems_of(tmp_path, source("csv"))
    assert (Path(file).name, place) == ("log.csv", "file")
    (tmp_path / "log.dat").write_text("t\n1\n")
    ((_, place, value, allowed),) = problems_of(tmp_path, source("dat"))
    assert (place, value) == ("ending", ".dat")
    assert "parquet" in allowed


def test_several_broken_files_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_bytes(b"")
    write(tmp_path / "log.csv", ROWS)
    sides = {
        "users": {"file": "users.csv", "key": "id", "on": "user"},
        "more": {"file": "more.csv", "key": "id", "on": "user"},
    }
    found = problems_of(tmp_path, source("csv", sides=sides), features(item={"column": "gone"}))
    assert {Path(file).name for file, _, _, _ in found} == {"users.csv", "more.csv", "log.csv"}


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_parquet_cut_in_the_middle(tmp_path: Path, share: float) -> None:
    path = tmp_path / "log.parquet"
    write(path, ROWS * 100)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    ((file, place, _, allowed),) = problems_of(tmp_path, source("parquet"))
    assert (file, place) == (str(path), "file")
    assert "whole Parquet file" in allowed


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_lines_cut_in_the_middle_cost_one_row(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"log.{kind}"
    write(path, ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"99.5") - 2])
    events = load(tmp_path, source(kind), features(), NOW)
    assert events.impressions == 4
    ((place, _, reason),) = rejects_of(events)
    assert place == ("line 6" if kind == "csv" else "line 5")
    assert reason == "malformed"


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\xff\xfe garbage" * 50,
        b"PAR1" + b"\0" * 100 + b"PAR1",
        b"t,user,item\n\xff\xfe,1,2\n",
        b"[1]\n[2]\n",
        b"{}\n{}\n",
        b"3\n",
    ],
)
@pytest.mark.parametrize("kind", FORMATS)
def test_no_bytes_end_it_with_anything_but_problems(tmp_path: Path, kind: str, content: bytes) -> None:
    (tmp_path / f"log.{kind}").write_bytes(content)
    assert problems_of(tmp_path, source(kind))


def test_json_lines_of_null_do_not_end_the_process(tmp_path: Path) -> None:
    """Arrow's reader does (26.0 reads into nowhere), so this one is tried in a process of its own."""
    write(tmp_path / "log.jsonl", [])
    (tmp_path / "log.jsonl").write_text("null\nnull\n")
    program = (
        "import sys, pathlib, basis.problems, streaming.source_settings, streaming.tabular\n"
        "file = streaming.source_settings.File(file='log.jsonl')\n"
        "try: rows = streaming.tabular.read(pathlib.Path(sys.argv[1]), file, ['t'])\n"
        "except basis.problems.Problems: sys.exit(0)\n"
        "sys.exit(0 if rows.rejects else 3)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_column_that_stands_there_twice(tmp_path: Path, kind: str) -> None:
    if kind == "csv":
        (tmp_path / "log.csv").write_text(f"t,user,item,item\n{T},1,a,b\n")
    else:
        table = pa.Table.from_arrays(
            [pa.array([T]), pa.array([1]), pa.array(["a"]), pa.array(["b"])], ["t", "user", "item", "item"]
        )
        pa.parquet.write_table(table, tmp_path / "log.parquet")
    found = problems_of(tmp_path, source(kind, actions={"seen": {}}))
    assert any("item" in place + value for _, place, value, _ in found)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_side_key_that_stands_there_twice(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"users.{kind}", [*USERS, USERS[0]])
    write(tmp_path / f"log.{kind}", ROWS)
    sides = {"users": {"file": f"users.{kind}", "key": "id", "on": "user"}}
    ((file, place, value, allowed),) = problems_of(
        tmp_path, source(kind, sides=sides), features(c={"column": "city", "side": "users"})
    )
    assert (Path(file).name, place) == (f"users.{kind}", "column id")
    assert "1" in value
    assert "one row a key" in allowed


def test_an_impression_that_stands_in_its_request_twice(tmp_path: Path) -> None:
    write(tmp_path / "engaged.csv", ENGAGED)
    events = load_rows(tmp_path, "csv", [*KEYED, KEYED[0]], actions={}, **engagement_file("csv"))
    assert rejects_of(events) == [(f"{line('csv', 5)}, column item", repr(KEYED[0]["item"]), "repeated")]
    assert events.impressions == 5


def test_an_impression_without_its_key_costs_its_row_only(tmp_path: Path) -> None:
    write(tmp_path / "engaged.csv", ENGAGED)
    events = load_rows(tmp_path, "csv", ROWS, actions={}, **engagement_file("csv"))
    assert [(place, reason) for place, _, reason in rejects_of(events)] == [
        (f"{line('csv', 3)}, column item", "malformed")
    ]
    assert events.impressions == 4


def test_a_feature_of_the_request_that_differs_within_it(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", ROWS)
    ((file, place, _, allowed),) = problems_of(
        tmp_path, source("csv"), features(item={"column": "item", "scope": "request"})
    )
    assert Path(file).name == "log.csv"
    assert place == "feature item, line 4"
    assert "scope: impression" in allowed


def test_a_request_too_large_to_be_one(tmp_path: Path) -> None:
    rows = [{"t": T, "user": 1, "item": str(at)} for at in range(MAX_IMPRESSIONS + 1)]
    write(tmp_path / "log.parquet", rows)
    ((_, place, value, allowed),) = problems_of(tmp_path, source("parquet", actions={"seen": {}}))
    assert place == "request"
    assert str(T) in value
    assert str(MAX_IMPRESSIONS) in allowed


def test_a_cross_of_what_cannot_be_crossed(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", ROWS)
    wanted = features(
        item={"column": "item"}, tags={"column": "tags", "split": "|", "pool": "mean"}, both={"cross": ["item", "tags"]}
    )
    ((_, place, value, allowed),) = problems_of(tmp_path, source("csv"), wanted)
    assert "both" in place
    assert "tags" in value
    assert "sparse features of one id" in allowed


def test_a_cross_of_a_number_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", ROWS)
    wanted = features(
        item={"column": "item"}, price={"kind": "dense", "column": "price"}, both={"cross": ["item", "price"]}
    )
    ((_, place, _, _),) = problems_of(tmp_path, source("csv"), wanted)
    assert "both" in place


# Rows that cannot be used.


def spoiled(at: int, **changes: Any) -> list[Row]:
    return [{**row, **(changes if place == at else {})} for place, row in enumerate(ROWS)]


def line(kind: str, at: int) -> str:
    """The line of a row: CSV has a header."""
    return f"line {at + 1 + (kind == 'csv')}"


def columns_of(kind: str, rows: list[Row], column: str) -> list[Row]:
    """Parquet has one type a column, so that a broken number makes it text."""
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
    """It counts as refused, so it must not decide a label with a value that nobody gave."""
    engaged = columns_of(kind, [ENGAGED[0], {**ENGAGED[1], "much": "lots"}], "much")
    write(tmp_path / f"engaged.{kind}", engaged)
    events = load_rows(tmp_path, kind, KEYED, actions={}, **engagement_file(kind))
    assert rejects_of(events) == [(f"{line(kind, 1)}, column much", "'lots'", "malformed")]
    assert events.engagements.row.tolist() == [0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_engagement_whose_value_is_no_number_changes_no_truth(tmp_path: Path, value: float) -> None:
    write(tmp_path / "engaged.parquet", [{**ENGAGED[0], "much": value}, ENGAGED[1]])
    events = load_rows(tmp_path, "parquet", KEYED, actions={}, **engagement_file("parquet"))
    assert np.isfinite(events.engagements.value).all()
    assert np.isfinite(events.truth(Label(action="play", loss="squared", window="1s"))).all()
    assert 2 in events.engagements.row


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


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_missing(tmp_path: Path, value: float) -> None:
    rows = spoiled(0, price=value, rating=value, wait=value)
    events = load_rows(tmp_path, "parquet", [{**row, "wait": float(row["wait"] or 0)} for row in rows], PRICED)
    assert events.impressions == 5
    assert np.isfinite(events.features["price"]).all()
    assert np.isfinite(events.engagements.value).all()
    assert (events.engagements.happened_at <= NOW).all()


def test_huge_numbers_stay_finite(tmp_path: Path) -> None:
    wanted = features(
        item={"column": "item"},
        **{name: {"kind": "dense", "column": "price", "transform": name} for name in ("none", "log", "sqrt", "square")},
    )
    events = load_rows(tmp_path, "parquet", spoiled(0, price=1e300), wanted)
    for name in ("none", "log", "sqrt", "square"):
        assert np.isfinite(events.features[name]).all(), name


def test_no_row_at_all_can_be_used(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", [{**row, "t": NOW + 2 * DAY} for row in ROWS])
    (file, place, value, allowed), *rows = problems_of(tmp_path, source("csv"))
    assert (Path(file).name, place) == ("log.csv", "rows")
    assert [place for _, place, _, _ in rows] in ([], [f"line {at}, column t" for at in range(2, 7)])
    assert "none" in value
    assert "future" in allowed

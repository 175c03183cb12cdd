"""Own logs: the same rows give the same events from every format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from streaming.features.ids import cross
from streaming.records.labels import Label
from streaming.source.load import load
from tests.streaming.source.own_logs import (
    DAY,
    ENGAGED,
    FORMATS,
    HOUR,
    KEYED,
    NOW,
    ORDER,
    ROWS,
    USERS,
    Row,
    T,
    engagement_file,
    features,
    ids,
    lists,
    load_rows,
    source,
    write,
)

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
    """pandas writes categories like this."""
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
    assert log.impression_id.to_pylist()[1:4] == [
        f"1/{T + 1000}/nothing of the kind",
        f"8/{T + 1000}/a",
        f"1/{T + 1000}/a",
    ]
    assert log.request_id.to_pylist()[2] == f"8/{T + 1000}"
    assert len(set(events.impression_ids.to_pylist())) == events.impressions, "other requests showed them too"
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

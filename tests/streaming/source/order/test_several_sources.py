"""Impressions of several sources, and engagements of several files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from streaming.source.load import load
from streaming.source.settings import SourceSettings
from tests.streaming.source.own_logs import NOW, T, features, ids, problems_of, write

FEED = [{"session": "f1", "shown": T + at, "item": at} for at in (30, 10)]
SEARCH = [{"query": "q1", "ms": T + 20, "item": "a"}, {"query": "q2", "ms": T + 5, "item": "b"}]
CLICKS = [{"of": "f1", "item": 10, "at": T + 50}, {"of": "q2", "item": "b", "at": T + 40}]
EVENTS = [
    {"of": "q1", "item": "a", "at": T + 45, "kind": 7, "much": 2.5},
    {"of": "f1", "item": 30, "at": T + 60, "kind": "buy", "much": None},
    {"of": "nobody", "item": 1, "at": T + 70, "kind": 7, "much": 1.0},
    {"of": "f1", "item": 30, "at": T + 80, "kind": None, "much": 1.0},
]
KEYS = {"time": {"column": "at"}, "request": ["of"], "impression": ["item"]}
SOURCE = {
    "dir": ".",
    "impressions": [
        {"file": "feed.csv", "time": {"column": "shown"}, "request": ["session"], "impression": ["item"]},
        {"file": "search.jsonl", "time": {"column": "ms"}, "request": ["query"], "impression": ["item"]},
    ],
    "engagements": [
        {"file": "clicks.parquet", **KEYS, "action": {"name": "click"}},
        {
            "file": "events.jsonl",
            **KEYS,
            "action": {"column": "kind", "names": {7: "watch", "like": "heart"}},
            "value": "much",
        },
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "feed.csv", FEED)
    write(tmp_path / "search.jsonl", SEARCH)
    write(tmp_path / "clicks.parquet", [{**row, "item": str(row["item"])} for row in CLICKS])
    write(tmp_path / "events.jsonl", EVENTS)
    return tmp_path


def test_one_log_of_several_sources_and_files_of_engagements(folder: Path) -> None:
    events = load(folder, SourceSettings.model_validate(SOURCE), features(), NOW)
    assert events.request_ids.to_pylist() == ["q2", "f1", "q1"]
    assert events.served_at.tolist() == [T + 5, T + 10, T + 20]
    assert np.asarray(events.features["item"]).tolist() == ids("b", 30, 10, "a")
    done = events.engagements
    assert [done.actions[code] for code in done.action] == ["click", "watch", "click", "buy", "watch"]
    assert done.happened_at.tolist() == [T + 40, T + 45, T + 50, T + 60, T + 70]
    assert done.row.tolist() == [0, 3, 2, 1, -1]
    assert done.value.tolist() == [1, 2.5, 1, 1, 1]
    assert [(Path(each.file).name, each.place) for each in events.rejects] == [("events.jsonl", "line 4, column kind")]


def test_rows_know_the_file_of_their_source(folder: Path) -> None:
    write(folder / "search.jsonl", [*SEARCH, {"query": "q3", "ms": None, "item": "c"}, SEARCH[0]])
    events = load(folder, SourceSettings.model_validate(SOURCE), features(), NOW)
    told = [(Path(each.file).name, each.place.split(",")[0], each.reason) for each in events.rejects]
    assert told == [
        ("search.jsonl", "line 3", "malformed"),
        ("search.jsonl", "line 4", "repeated"),
        ("events.jsonl", "line 4", "malformed"),
    ]


def test_each_source_must_have_the_columns_and_each_is_told(folder: Path) -> None:
    write(folder / "feed.csv", [{"session": 1, "shown": T}])
    write(folder / "clicks.parquet", [{"of": 1}])
    found = problems_of(folder, SourceSettings.model_validate(SOURCE))
    places = {(Path(file).name, place) for file, place, _, _ in found}
    missing = {("feed.csv", "column item"), ("clicks.parquet", "column at"), ("clicks.parquet", "column item")}
    assert places == {*missing, ("events.jsonl", "line 4, column kind")}


def test_requests_of_several_sources_need_names() -> None:
    first, _ = SOURCE["impressions"]
    without = {"file": "x.csv", "time": {"column": "t"}}
    actions = {"click": {"when": "click"}}
    with pytest.raises(ValidationError, match="impressions of several sources need request in each"):
        SourceSettings.model_validate({"dir": ".", "impressions": [first, without], "actions": actions})
    with pytest.raises(ValidationError, match="at least 1"):
        SourceSettings.model_validate({"dir": ".", "impressions": [], "actions": actions})

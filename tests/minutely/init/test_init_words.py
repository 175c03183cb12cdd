"""What `minutely init` reads in names and values of columns, and what it says: of doubts, and of mistakes in one clear line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from streaming.source.settings import DelayColumn, WhenEquals
from tests.commands import ROOT
from tests.minutely.init_logs import (
    SHOWN,
    changed,
    columns_of,
    rows_of,
    slates_of,
    typed,
    written,
)
from tests.streaming.source.own_logs import write


def test_what_is_said_of_a_log_that_leaves_no_doubt(logs: Path) -> None:
    rows = changed(
        rows_of(), day=lambda row: datetime.fromtimestamp(row["ts"], UTC).date().isoformat(), wait=lambda row: 5
    )
    write(logs / "log.jsonl", rows)
    done = typed("init", "logs", "--out", "made.yaml")
    assert "Choose its labels, then:" in done.output
    assert "unsure: " not in Path("made.yaml").read_text()
    assert "another time is day" in done.output
    write(logs / "log.jsonl", rows_of())
    assert "Choose its labels, look at what is `unsure` in it, then:" in typed("init", "logs", "--out", "b.yaml").output


@pytest.mark.parametrize("out", ["/proc/made.yaml", "logs/log.csv/made.yaml"])
def test_a_place_that_cannot_be_written_is_named_first(logs: Path, out: str) -> None:
    write(logs / "log.csv", rows_of())
    done = typed("init", "logs", "--out", out)
    assert done.exit_code == 1
    assert done.output.startswith(f"error {Path(out).parent}: --out: cannot be written; ")


def test_a_time_is_found_without_its_name_and_doubted(logs: Path) -> None:
    write(logs / "log.csv", [{"q": row["ts"], **{key: row[key] for key in row if key != "ts"}} for row in rows_of()])
    assert written("logs").source.impressions.time.column == "q"
    assert "a time by its values alone" in Path("made.yaml").read_text()


def test_two_ways_to_read_a_date_are_both_said(logs: Path) -> None:
    rows = changed(rows_of(), ts=lambda row: f"03/04/2024 10:{row['ts'] % 60:02}:00")
    write(logs / "log.csv", rows)
    done = typed("init", "logs", "--out", "made.yaml")
    assert done.exit_code == 0, done.output
    assert "'%d/%m/%Y %H:%M:%S' fits too" in Path("made.yaml").read_text()


@pytest.mark.parametrize("place", ["position", "positions", "rank", "ranks", "slots"])
@pytest.mark.parametrize("stay", ["dwell", "dwells", "dwell_time", "watched"])
def test_lists_of_places_and_stays_are_no_features(logs: Path, place: str, stay: str) -> None:
    """Lists are called by their plural as often as not."""
    slates = []
    for at, row in enumerate(slates_of(rows_of())):
        stays = [3.5 + at % 7 if item in row["items_clicked"] else None for item in row["items_shown"]]
        slates.append({**row, place: list(range(SHOWN)), stay: stays})
    write(logs / "log.parquet", slates)
    found = columns_of(written("logs"))
    assert {"item", "price"} & set(found) and not {place, stay} & set(found.values()), found
    assert "# left out: a place is what comes of the ranking" in Path("made.yaml").read_text()


def test_the_news_example_ranks_without_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, ROOT / "examples/news/make_logs.py", "news-logs"], check=True)
    assert "positions" not in columns_of(written("news-logs")).values()


def test_an_id_that_only_purchases_have_is_no_feature(logs: Path) -> None:
    write(logs / "log.csv", changed(rows_of(), orderid=lambda row: row["ts"] if row["clicked"] else ""))
    assert "orderid" not in columns_of(written("logs")).values()


def test_actions_in_a_column_of_their_names(logs: Path) -> None:
    rows = changed(rows_of(), clicked=lambda row: "addtocart" if row["clicked"] else "view")
    write(logs / "log.csv", [{("event" if key == "clicked" else key): row[key] for key in row} for row in rows])
    assert written("logs").source.actions["addtocart"].when == WhenEquals(column="event", equals="addtocart")


def test_a_delay_is_that_of_its_action(logs: Path) -> None:
    write(logs / "log.csv", changed(rows_of(), click_delay_s=lambda row: 700 if row["clicked"] else ""))
    found = written("logs")
    assert found.source.actions["clicked"].delay == DelayColumn(column="click_delay_s", unit="s")
    assert found.labels["clicked"].window == 1_800_000
    assert "click_delay_s" not in columns_of(found).values()


def test_columns_of_every_kind(logs: Path) -> None:
    kinds = {
        "tags": lambda row: "a,b" if row["user_id"] % 2 else "b",
        "vector": lambda row: [float(row["user_id"]), 0.5],
        "history": lambda row: [1, 2, row["user_id"]],
        "title": lambda row: f"A sentence, number {row['request_id']}{row['item_id']} of many",
        "same": lambda row: 1,
        "views_7d": lambda row: int(row["price"] * 100),
        "born": lambda row: "2020-01-01T00:00:00Z" if row["user_id"] % 2 else "2021-01-01T00:00:00Z",
        "position": lambda row: row["user_id"] % 4,
        "place": lambda row: [{"lat": 1.5}],
    }
    write(logs / "log.jsonl", changed(rows_of(), **kinds))
    found = written("logs")
    shown = {
        name: feature.model_dump(exclude_defaults=True)
        for name, feature in found.features.items()
        if getattr(feature, "column", None) in kinds
    }
    assert shown == {
        "tags": {"column": "tags", "split": ",", "pool": "mean"},
        "vector": {"kind": "vector", "column": "vector", "size": 2},
        "history": {"column": "history", "pool": "mean"},
        "views_7d": {"kind": "dense", "column": "views_7d", "transform": "log"},
        "born": {"kind": "dense", "column": "born", "transform": "age", "scope": "request"},
    }
    text = Path("made.yaml").read_text()
    for left_out in (
        "free text",
        "one value everywhere",
        "a place is what comes",
        "column place is not used: a list or an object within a list",
    ):
        assert left_out in text


def test_a_session_that_comes_again_is_no_request(logs: Path) -> None:
    write(logs / "log.csv", changed(rows_of(), request_id=lambda row: f"q{row['user_id']}"))
    found = written("logs")
    assert found.source.impressions.request == ["user_id", "ts"]


def test_what_no_column_says_is_left_to_the_reader(logs: Path) -> None:
    """Without a column like an action, `check` names the one line to fill in."""
    write(logs / "log.csv", [{key: row[key] for key in row if key != "clicked"} for row in rows_of()])
    assert typed("init", "logs", "--out", "made.yaml").exit_code == 0
    assert "choose: no column looks like an action" in Path("made.yaml").read_text()
    checked = typed("check", "made.yaml")
    assert checked.exit_code == 1
    assert "column NAME-A-COLUMN: missing; the file has: ts, request_id" in checked.output


def test_names_that_could_leave_their_place(logs: Path) -> None:
    """A column's name is a text like any other: in quotes where YAML would take it for something else, on one line."""
    odd = {"on": 1, "1e6": 2, "a: b": 3, "#x": 4, "new\nline": 5, "zürich, 'so'": 6}
    rows: list[Mapping[str, Any]] = [
        {**row, **{name: row["user_id"] % (at + 1) for name, at in odd.items()}} for row in rows_of()
    ]
    write(logs / "log.jsonl", rows)
    assert set(odd) <= set(columns_of(written("logs")).values())


@pytest.mark.parametrize(
    ("files", "paths", "told"),
    [
        ({}, ["nowhere"], "nowhere: path: not there; allowed: files of logs, or a folder of them"),
        ({}, ["logs"], "logs: folder: empty; no files in it"),
        ({"_SUCCESS": ""}, ["logs"], "logs: folder: empty; no files in it"),
        ({"cat.png": "\x89PNG\0\0"}, ["logs/cat.png"], "logs/cat.png: file: no table; allowed: Parquet, CSV (with , ;"),
        ({"notes.txt": "Hello\nworld\n"}, ["logs"], "logs/notes.txt: file: no table; allowed: Parquet"),
        ({"log.csv": "user,item\n1,2\n1,3\n"}, ["logs"], "log.csv: time: missing; no column is a time; allowed: "),
        ({"log.csv": ""}, ["logs"], "logs/log.csv: file: 0 bytes; allowed: a file with rows"),
        ({"log.csv": "ts,user\n"}, ["logs"], "logs/log.csv: rows: 0; allowed: a file with rows"),
        ({"log.parquet": "ts,user\n"}, ["logs"], "logs/log.parquet: file: "),
        ({"log.json": json.dumps([1, 2])}, ["logs"], "logs/log.json: rows: 0; allowed: a file with rows"),
    ],
)
def test_mistakes_are_one_clear_line(logs: Path, files: dict[str, str], paths: list[str], told: str) -> None:
    for name, text in files.items():
        (logs / name).write_bytes(text.encode("latin-1"))
    done = typed("init", *paths)
    assert done.exit_code == 1, done.output
    assert told in done.output.splitlines()[0]
    assert not list(Path().glob("*.yaml"))


def test_a_command_without_paths_says_so() -> None:
    done = typed("init")
    assert done.exit_code == 2
    assert "PATHS" in done.output

"""Own logs whose files cannot be used: all mistakes are reported together, and none is a traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from streaming.records.events import MAX_IMPRESSIONS
from streaming.source.load import load
from tests.streaming.source.own_logs import (
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
    ids,
    line,
    lists,
    load_rows,
    problems_of,
    rejects_of,
    source,
    write,
)


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
        ("item", [[1.0], [2.0]], {"kind": "dense", "column": "item"}),
        ("item", [1.0, 2.0], {"kind": "vector", "column": "item", "size": 2}),
        ("item", [[1.0, 2.0, 3.0], [1.0]], {"kind": "vector", "column": "item", "size": 2}),
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


def test_a_folder_that_is_not_there_is_told_once_and_no_file_of_it(tmp_path: Path) -> None:
    sides = {"users": {"file": "users.csv", "key": "id", "on": "user"}}
    ((file, place, value, allowed),) = problems_of(tmp_path / "logs", source("csv", sides=sides))
    assert (file, place) == (str(tmp_path / "logs"), "source.dir")
    assert "logs" in value
    assert "no such folder" in allowed and "--data" in allowed


def test_all_files_that_are_not_there_are_told_at_once(tmp_path: Path) -> None:
    sides = {"users": {"file": "users.csv", "key": "id", "on": "user"}}
    impressions = {"file": "log.csv", "time": {"column": "t"}, "request": ["r"], "impression": ["i"]}
    events = {"file": "events.csv", "time": {"column": "t"}, "request": ["r"], "impression": ["i"], "action": "a"}
    found = problems_of(tmp_path, source("csv", sides=sides, impressions=impressions, engagements=events))
    assert {Path(file).name for file, *_ in found} == {"users.csv", "log.csv", "events.csv"}
    assert all("not there" in allowed for *_, allowed in found)


@pytest.mark.parametrize("list_of", [pa.list_, pa.large_list])
def test_texts_that_are_views_are_texts(tmp_path: Path, list_of: Callable[[pa.DataType], pa.DataType]) -> None:
    """Newer writers leave `string_view` in a Parquet file's schema; no function of Arrow's that is used here takes it."""
    texts, words = pa.array(["a", "b" * 40], pa.string_view()), pa.array([["x", "y"], []], list_of(pa.string_view()))
    columns = {
        "t": pa.array([T, T + 1]),
        "item": texts,
        "words": words,
        "price": pa.array(["1", "2"], pa.string_view()),
    }
    pa.parquet.write_table(pa.table(columns), tmp_path / "log.parquet")
    wanted: Row = {"item": {"column": "item"}, "words": {"column": "words", "pool": "mean"}}
    wanted["price"] = {"kind": "dense", "column": "price"}
    impressions = {"file": "log.parquet", "time": {"column": "t"}}
    logs = source("parquet", actions={"seen": {}}, impressions=impressions)
    events = load(tmp_path, logs, features(**wanted), NOW)
    assert events.impressions == 2
    assert lists(events.features["words"]) == [ids("x", "y"), ids()]
    assert events.features["item"].tolist() == ids("a", "b" * 40)
    assert events.features["price"].tolist() == [1.0, 2.0]


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
    """Arrow's own reader crashes the process (26.0 reads invalid memory), so this test runs ours in another process."""
    write(tmp_path / "log.jsonl", [])
    (tmp_path / "log.jsonl").write_text("null\nnull\n")
    program = (
        "import sys, pathlib, basis.problems, streaming.source.settings, streaming.source.rows.walk\n"
        "file = streaming.source.settings.File(file='log.jsonl')\n"
        "try: rows = streaming.source.rows.walk.read(pathlib.Path(sys.argv[1]), file, ['t'])\n"
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
    assert "one row per key" in allowed


def test_an_impression_that_stands_in_its_request_twice(tmp_path: Path) -> None:
    write(tmp_path / "engaged.csv", ENGAGED)
    events = load_rows(tmp_path, "csv", [*KEYED, KEYED[0]], actions={}, **engagement_file("csv"))
    ((place, shown, reason),) = rejects_of(events)
    assert (place, reason) == (f"{line('csv', 5)}, column user+t+item", "repeated")
    assert shown.endswith(f"/{KEYED[0]['item']}'")
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

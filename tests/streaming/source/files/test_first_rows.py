"""The first rows of files whose columns nobody has named yet, as `minutely init` reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from streaming.source.files.find import find
from streaming.source.files.local import read_file
from streaming.source.rows.walk import read
from streaming.source.settings import File
from tests.streaming.source.own_logs import FORMATS, ROWS, write

NAMES = list(ROWS[0])


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("most", [None, 2, 100])
def test_all_columns_of_the_first_rows(tmp_path: Path, ending: str, most: int | None) -> None:
    write(tmp_path / f"log.{ending}", ROWS)
    file = File(file=f"log.{ending}")
    (found,) = find(tmp_path, file)
    rows = read_file(found, file, None, most)
    assert rows.table.column_names == NAMES
    assert rows.table.num_rows == min(most or len(ROWS), len(ROWS))
    assert [int(value) for value in rows.table["t"].to_pylist()] == [row["t"] for row in ROWS][:most]
    assert rows.missing == []


def test_columns_that_cannot_be_used_are_told_and_left_out(tmp_path: Path) -> None:
    write(tmp_path / "log.jsonl", [{"a": 1, "place": {"lat": 1.0}, "b": [[1]]}, {"c": 2}])
    (tmp_path / "log.csv").write_text("a,b,b\n1,2,3\n")
    told = {}
    for ending in ("jsonl", "csv"):
        file = File(file=f"log.{ending}")
        (found,) = find(tmp_path, file)
        rows = read_file(found, file, None)
        told[ending] = (rows.table.column_names, [(problem.place, problem.value) for problem in rows.missing])
    nested = [("column place", "an object"), ("column b", "a list or an object within a list")]
    assert told == {"jsonl": (["a", "c"], nested), "csv": (["a"], [("column b", "is given twice")])}


def test_a_column_of_files_wins_over_one_of_their_folders(tmp_path: Path) -> None:
    (tmp_path / "day=7").mkdir()
    write(tmp_path / "day=7" / "log.parquet", [{"day": 1, "a": 2}])
    file = File(file="day=7/log.parquet")
    (found,) = find(tmp_path, file)
    assert read_file(found, file, None).table.to_pydict() == {"day": [1], "a": [2]}


@pytest.mark.parametrize("most", [1, 5, 7, 10])
def test_the_first_rows_of_several_parts(tmp_path: Path, most: int) -> None:
    for part in range(2):
        write(tmp_path / f"part-{part}.parquet", [{"t": row["t"] + part} for row in ROWS])
    found = read(tmp_path, File(file="part-*.parquet"), ["t"], most)
    both = [row["t"] + part for part in range(2) for row in ROWS]
    assert found.table["t"].to_pylist() == both[:most]


def test_a_broken_row_ends_nothing(tmp_path: Path) -> None:
    """Its line is not looked up, which would read the whole file."""
    (tmp_path / "log.csv").write_text("a,b\n1,2\n1,2,3\n4,5\n" + "6,7\n" * 10)
    file = File(file="log.csv")
    (found,) = find(tmp_path, file)
    rows = read_file(found, file, None, 2)
    assert rows.table.to_pydict() == {"a": ["1", "4"], "b": ["2", "5"]}

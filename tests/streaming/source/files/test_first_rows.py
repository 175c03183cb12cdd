"""The first rows of files whose columns nobody has named yet, as `minutely init` reads them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from basis.problems import Problem
from streaming.source.files.find import find
from streaming.source.files.open import open_found
from streaming.source.rows.walk import read
from streaming.source.settings import File
from tests.streaming.source.own_logs import FORMATS, ROWS, write

NAMES = list(ROWS[0])


def first_rows(folder: Path, name: str, most: int | None = None) -> tuple[pa.Table, list[Problem]]:
    """All columns of a file's first rows, and those that cannot be used."""
    (found,) = find(folder, file := File(file=name))
    with open_found(found, file, None, most) as contents:
        return pa.concat_tables(contents.tables), contents.missing


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("most", [None, 2, 100])
def test_all_columns_of_the_first_rows(tmp_path: Path, ending: str, most: int | None) -> None:
    write(tmp_path / f"log.{ending}", ROWS)
    table, missing = first_rows(tmp_path, f"log.{ending}", most)
    assert table.column_names == NAMES
    assert table.num_rows == min(most or len(ROWS), len(ROWS))
    assert [int(value) for value in table["t"].to_pylist()] == [row["t"] for row in ROWS][:most]
    assert missing == []


def test_columns_that_cannot_be_used_are_told_and_left_out(tmp_path: Path) -> None:
    write(tmp_path / "log.jsonl", [{"a": 1, "place": {"lat": 1.0}, "b": [[1]]}, {"c": 2, "place": 3}])
    (tmp_path / "log.csv").write_text("a,b,b\n1,2,3\n")
    told = {}
    for ending in ("jsonl", "csv"):
        table, missing = first_rows(tmp_path, f"log.{ending}")
        told[ending] = (table.column_names, [(problem.place, problem.value) for problem in missing])
    nested = [("column b", "a list or an object within a list")]
    assert told == {"jsonl": (["a", "place", "c"], nested), "csv": (["a"], [("column b", "is given twice")])}


def test_a_column_of_files_wins_over_one_of_their_folders(tmp_path: Path) -> None:
    (tmp_path / "day=7").mkdir()
    write(tmp_path / "day=7" / "log.parquet", [{"day": 1, "a": 2}])
    assert first_rows(tmp_path, "day=7/log.parquet")[0].to_pydict() == {"day": [1], "a": [2]}


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
    table, _ = first_rows(tmp_path, "log.csv", 2)
    assert table.to_pydict() == {"a": ["1", "4"], "b": ["2", "5"]}

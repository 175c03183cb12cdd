"""CSV files as others write them: line breaks in quotes, and errors whose reason is told whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from basis.problems import Problems
from streaming.source.settings import File
from streaming.source.tabular import read

FILE = File(file="log.csv")


def test_line_breaks_in_quotes_are_text_however_large_the_file(tmp_path: Path) -> None:
    """Arrow reads a file in blocks of 1 MB, which may end within quotes."""
    texts = ["word\n" * (at % 23) for at in range(40_000)]
    rows = "".join(f'{at},"{text}"\n' for at, text in enumerate(texts))
    (tmp_path / "log.csv").write_text(f"t,text\n{rows}")
    found = read(tmp_path, FILE, ["t", "text"])
    assert found.table.column("text").to_pylist() == texts
    assert not found.rejects


def test_a_file_that_is_no_utf8_says_so(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"t,town\n" + b"1,Rome\n" * 250 + "2,Orléans\n".encode("latin-1"))
    with pytest.raises(Problems) as refused:
        read(tmp_path, FILE, ["t", "town"])
    (problem,) = refused.value.problems
    assert "Row #252" in problem.value and "invalid UTF8 data" in problem.value
    assert problem.allowed == "allowed: CSV in UTF-8 with a header line"


def test_a_row_that_is_too_long_to_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text('t,text\n1,"' + "word\n" * 500_000 + '"\n2,x\n')
    with pytest.raises(Problems) as refused:
        read(tmp_path, FILE, ["t", "text"])
    assert "straddles two block boundaries (try to increase block size?)" in refused.value.problems[0].value

"""Files that change between the reading of their rows and that of their lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from basis.problems import Problems
from streaming.source.rows.rejects import Findings
from streaming.source.rows.walk import Walk
from streaming.source.settings import File
from tests.streaming.source.own_logs import FORMATS, line, write


def _walked(folder: Path, kind: str) -> Findings:
    """Rows 0 to 3, of which the last is refused."""
    write(folder / f"log.{kind}", [{"t": str(at)} for at in range(4)])
    findings = Findings(whole=False)
    for rows in Walk(folder, File(file=f"log.{kind}"), ["t"], findings).rows():
        rows.reject(rows.at.cast("string").is_valid(), "t", rows.column("t"), "malformed", "x")
    return findings


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_of_a_file_that_grows_the_first_rows_have_their_lines(tmp_path: Path, kind: str) -> None:
    findings = _walked(tmp_path, kind)
    log = tmp_path / f"log.{kind}"
    with log.open("a") as out:
        out.write("\n\n" + log.read_text() + '"')
    assert [each.place for each in findings.rejects] == [f"{line(kind, at)}, column t" for at in range(4)]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "change",
    [
        Path.unlink,
        lambda log: log.write_bytes(log.read_bytes()[:-9]),
        lambda log: (log.rename(log.with_suffix(".1")), log.write_bytes(b"\n" * 10_000)),
        lambda log: log.write_bytes(b"\n" + log.read_bytes() * 2),
    ],
    ids=["gone", "cut", "rotated", "written again"],
)
def test_what_else_changes_is_told_without_a_line(tmp_path: Path, kind: str, change: Callable[[Path], object]) -> None:
    findings = _walked(tmp_path, kind)
    change(tmp_path / f"log.{kind}")
    with pytest.raises(Problems, match=f"log.{kind}: file: changed while it was read; allowed: "):
        findings.place(3)

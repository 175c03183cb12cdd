"""`minutely init` sees texts that stand for what is missing, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.minutely.init_logs import changed, rows_of, typed, written
from tests.streaming.source.own_logs import write


@pytest.mark.parametrize("text", ["NULL", r"\N", "unknown"])
def test_a_text_among_numbers(logs: Path, text: str) -> None:
    rows = changed(rows_of(), price=lambda row: row["price"] if row["item_id"] > "i2" else text)
    write(logs / "log.csv", rows)
    found = written("logs")
    assert found.source.impressions.missing == [text]
    assert found.features["price"].kind == "dense"
    (said,) = [line for line in Path("made.yaml").read_text().splitlines() if "missing:" in line]
    assert f"# unsure: {text} in price is taken for a missing value" in said
    assert f"{text} in price" in typed("init", "logs", "--out", "again.yaml").output


def test_texts_that_are_values(logs: Path) -> None:
    """One of several kinds, and one that comes once."""
    rows = changed(
        rows_of(),
        country=lambda row: {"CH": "1", "AT": "2", "FR": "other"}[row["country"]],
        price=lambda row: row["price"] if row is not None else "",
    )
    rows[5]["price"] = "dear"
    write(logs / "log.csv", rows)
    done = typed("init", "logs", "--out", "made.yaml")
    assert done.exit_code == 0, done.output
    assert "missing:" not in Path("made.yaml").read_text()


def test_check_says_that_a_marker_is_an_id(logs: Path) -> None:
    write(logs / "log.csv", changed(rows_of(), country=lambda row: row["country"].replace("FR", "NULL")))
    assert written("logs").source.impressions.missing == ["NULL"]
    made = Path("made.yaml")
    made.write_text("\n".join(line for line in made.read_text().splitlines() if "missing:" not in line))
    said = typed("check", made).output
    assert "features.country" in said
    assert "are 'NULL', an id like any other; where it means none, missing: ['NULL'] in its file" in said

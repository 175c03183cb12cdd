"""Small logs that went wrong for others: what `check` says of them, and that a replay counts the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from minutely.cli import cli

T = 1_767_225_600_000
CLICKED, REQUESTS, ITEMS = 70, 60, 3
CONFIG = """
name: t
source:
  dir: .
  impressions: {{file: {imp}, time: {{column: time, unit: ms}}, request: [request], impression: [item]}}
  engagements:
    {{file: {ev}, time: {{column: time, unit: ms}}, request: [request], impression: [item], action: action, value: value}}
{more}
features:
  user: {{column: user, scope: request}}
  item: {{column: item}}
  price: {{kind: dense, column: price}}
labels:
  click: {{action: click, window: 1m}}
model: {{kind: deepfm, dim: 4, hidden: [8]}}
"""
Rows = list[dict[str, Any]]


def logs() -> tuple[Rows, Rows]:
    """60 requests of three impressions, 70 of which were clicked a second later."""
    impressions = [
        {
            "time": T + 1000 * request,
            "request": 20_260_000_000 + request,
            "user": request % 8,
            "item": item,
            "price": 1.5 + item,
        }
        for request in range(REQUESTS)
        for item in range(ITEMS)
    ]
    engagements = [
        {"time": row["time"] + 1000, "request": row["request"], "item": row["item"], "action": "click", "value": 1.0}
        for row in impressions[:CLICKED]
    ]
    return impressions, engagements


def write(path: Path, rows: Rows) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Log:
    """A folder with a log, and what `check` and `replay` make of it."""

    def __init__(self, folder: Path, impressions: Rows, engagements: Rows, kind: str = "jsonl", more: str = "") -> None:
        write(folder / f"imp.{kind}", impressions)
        write(folder / f"ev.{kind}", engagements)
        (folder / "config.yaml").write_text(CONFIG.format(imp=f"imp.{kind}", ev=f"ev.{kind}", more=more))
        self.folder = folder

    def check(self) -> tuple[int, str]:
        done = CliRunner(env={"COLUMNS": "300"}).invoke(cli, ["check", "config.yaml", "--data", str(self.folder)])
        return done.exit_code, done.output

    def replay(self) -> dict[str, Any]:
        out = self.folder / "out"
        done = CliRunner().invoke(
            cli, ["replay", "config.yaml", "--data", str(self.folder), "--out", str(out), "--warmup", "0"]
        )
        assert done.exit_code == 0, done.output
        summary: dict[str, Any] = json.loads((out / "summary.json").read_bytes())
        return summary


@pytest.fixture(autouse=True)
def in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_value_that_32_bits_cannot_hold(tmp_path: Path) -> None:
    impressions, engagements = logs()
    engagements[3]["value"] = 1e300
    log = Log(tmp_path, impressions, engagements)
    status, said = log.check()
    assert (status, "line 4, column value" in said) == (1, True), said
    summary = log.replay()
    assert (summary["engagements"], summary["dead_letters_by_reason"]) == (CLICKED - 1, {"malformed": 1})


def test_values_that_are_nan_are_missing(tmp_path: Path) -> None:
    impressions, engagements = logs()
    for row in engagements[::2]:
        row["value"] = float("nan")
    log = Log(tmp_path, impressions, engagements, "parquet")
    status, said = log.check()
    assert (status, "70 engagements" in said) == (0, True), said
    assert log.replay()["engagements"] == CLICKED


def test_one_outlier_among_prices_is_named(tmp_path: Path) -> None:
    impressions, engagements = logs()
    for at, row in enumerate(impressions):
        row["price"] = 1e6 if at == 100 else float(at % 10)
    status, said = Log(tmp_path, impressions, engagements).check()
    assert (status, "features.price" in said and "a value of 1e+06" in said) == (0, True), said


@pytest.mark.parametrize(
    ("spoil", "reason", "count", "named"),
    [
        (
            lambda row: row | {"time": row["time"] - 3000},
            "before_served",
            35,
            "35 of 70 before their impression was served",
        ),
        (lambda row: row | {"item": 99}, "unmatched", 35, ""),
    ],
)
def test_check_counts_what_a_replay_refuses(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], dict[str, Any]], reason: str, count: int, named: str
) -> None:
    impressions, engagements = logs()
    log = Log(tmp_path, impressions, [spoil(row) if at % 2 else row for at, row in enumerate(engagements)])
    status, said = log.check()
    assert named in said
    assert (status == 1) == (named != "")
    assert named or f"({count} of them without an impression)" in said
    assert log.replay()["dead_letters_by_reason"] == {reason: count}


def test_times_of_another_unit(tmp_path: Path) -> None:
    impressions, engagements = logs()
    status, said = Log(tmp_path, impressions, [row | {"time": row["time"] // 1000} for row in engagements]).check()
    assert (status, "unit: s instead of ms" in said) == (1, True), said


def test_keys_that_are_floats_on_one_side(tmp_path: Path) -> None:
    impressions, engagements = logs()
    log = Log(tmp_path, impressions, [row | {"request": float(row["request"])} for row in engagements], "parquet")
    status, said = log.check()
    assert (status, "without an impression" in said) == (0, False), said
    assert log.replay()["dead_letters"] == 0


def test_a_request_larger_than_a_record(tmp_path: Path) -> None:
    impressions, engagements = logs()
    large = [impressions[0] | {"item": item, "words": list(range(100))} for item in range(6000)]
    others = [row | {"words": [1]} for row in impressions[ITEMS:]]
    log = Log(tmp_path, large + others, engagements[ITEMS:])
    config = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("labels:", "  words: {column: words, pool: mean}\nlabels:"))
    status, said = log.check()
    assert status == 1
    assert "request: '20260000000': " in said and "of 6,000 impressions; allowed: 4,194,304 bytes a request" in said, (
        said
    )
    summary = log.replay()
    assert summary["dead_letters_by_reason"] == {"too_large": 1}
    assert summary["examples"] == len(others)


@pytest.mark.parametrize("at", ["2100-01-01T00:00:00.000000123", "9999-12-31T00:00:00"])
def test_one_time_that_cannot_be(tmp_path: Path, at: str) -> None:
    impressions, engagements = logs()
    log = Log(tmp_path, impressions, engagements)
    unit = "ns" if "2100" in at else "us"
    times = pa.array([row["time"] for row in impressions]).cast(pa.timestamp("ms")).cast(pa.timestamp(unit))
    spoiled = pa.array([np.datetime64(at, unit)], pa.timestamp(unit))
    table = pa.Table.from_pylist(impressions)
    table = table.set_column(0, "time", pa.concat_arrays([times[:5], spoiled, times[6:]]))
    pq.write_table(table, tmp_path / "imp.parquet")
    (tmp_path / "config.yaml").write_text(CONFIG.format(imp="imp.parquet", ev="ev.jsonl", more=""))
    status, said = log.check()
    assert (status, "line 6, column time" in said) == (1, True), said
    summary = log.replay()
    assert summary["impressions"] == len(impressions) - 1
    assert summary["dead_letters_by_reason"] == {"future": 1, "unmatched": 1}


def test_a_side_table_by_on_as_documented(tmp_path: Path) -> None:
    impressions, engagements = logs()
    write(tmp_path / "items.jsonl", [{"sku": 0, "brand": "b"}])
    log = Log(tmp_path, impressions, engagements, more="  sides:\n    items: {file: items.jsonl, key: sku, on: item}")
    config = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("labels:", "  brand: {column: brand, side: items}\nlabels:"))
    status, said = log.check()
    assert status == 0, said
    assert "side table items: 33.3% of the impressions have a row of it" in said
    assert "source.sides.items: 33.3%" in said, "less than half is worth a look"


def test_an_id_that_comes_again_a_day_later(tmp_path: Path) -> None:
    impressions, engagements = logs()
    again = [row | {"time": row["time"] + 86_400_000, "item": row["item"] + 10} for row in impressions[:30]]
    status, said = Log(tmp_path, impressions + again, engagements).check()
    assert status == 1
    assert "source.impressions.request: '20260000000', whose rows are 1d apart; 10 such requests" in said, said


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_of_nulls(tmp_path: Path, kind: str) -> None:
    impressions, engagements = logs()
    log = Log(tmp_path, [row | {"price": None} for row in impressions], engagements, kind)
    status, said = log.check()
    assert (status, "features.price: missing everywhere" in said) == (0, True), said
    assert log.replay()["examples"] == len(impressions)

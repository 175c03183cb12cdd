"""The config of docs/warehouse.md reads what each warehouse writes, and finds the same in all of them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from minutely.cli import cli
from minutely.config import load_pipeline
from streaming.features.columns import Ragged
from streaming.source.load import load
from streaming.source.logged_events import LoggedEvents
from tests.commands import ROOT

PAGE = (ROOT / "docs" / "warehouse.md").read_text(encoding="utf-8")
CONFIG = PAGE.split("```yaml\n")[1].split("```")[0]
LISTS = "{column: tags, pool: mean}"
TEXTS = '{column: tags, split: ",", pool: mean}'
START, DAY = 1_767_571_200_000, 86_400_000  # 2026-01-05
FIRST_ID = 2**53 + 1
"""Ids that no float holds."""
Row = dict[str, Any]
Table = dict[str, list[Row]]
Writer = Callable[[Path, list[Row]], None]


def shop() -> dict[str, Table]:
    """Rows by table and day: requests for three items each, over two days; the items have no day."""
    rng = np.random.default_rng(4)
    impressions: Table = {"2026-01-05": [], "2026-01-06": []}
    engagements: Table = {"2026-01-05": [], "2026-01-06": []}
    for request in range(200):
        day, time = sorted(impressions)[request // 100], START + request * DAY // 100
        for item in rng.choice(20, 3, replace=False).tolist():
            price, tags = Decimal(int(rng.integers(100, 9_999))) / 100, [f"t{tag}" for tag in range(item % 3)]
            shown = {
                "request_id": f"r{request}",
                "time": time,
                "user_id": FIRST_ID + request % 9,
                "item_id": FIRST_ID + item,
            }
            impressions[day].append({**shown, "price": price, "tags": tags})
            if rng.random() < 0.3:
                done = {"request_id": f"r{request}", "time": time + 5_000, "item_id": FIRST_ID + item}
                engagements[day].append({**done, "action": "click", "value": Decimal(1)})
                engagements[day].append({**done, "time": time + 60_000, "action": "buy", "value": price})
    items = [
        {"item_id": FIRST_ID + item, "brand": f"b{item % 4}" if item else None, "created": START - item * DAY}
        for item in range(20)
    ]
    return {"impressions": impressions, "engagements": engagements, "items": {"": items}}


def _with_tags(rows: list[Row], tags: Callable[[list[str]], Any]) -> list[Row]:
    return [{**row, "tags": tags(row["tags"])} if "tags" in row else row for row in rows]


def _joined(tags: list[str]) -> str | None:
    return ",".join(tags) or None


def bigquery(folder: Path, rows: list[Row]) -> None:
    """NUMERIC has 38 digits, 9 of them decimal places; lists are ``list.element``."""
    table = pa.Table.from_pylist(rows)
    for name in {"price", "value"} & set(table.column_names):
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.decimal128(38, 9)))
    pq.write_table(table, folder / "part-000000000000.parquet", use_compliant_nested_type=True)


def snowflake(folder: Path, rows: list[Row]) -> None:
    """Integers are NUMBER(38, 0); lists are texts; the day is a column, too."""
    day = {"day": folder.name.removeprefix("day=")} if "=" in folder.name else {}
    table = pa.Table.from_pylist([{**row, **day} for row in _with_tags(rows, _joined)])
    for name in {"time", "user_id", "item_id", "created"} & set(table.column_names):
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.decimal128(38, 0)))
    pq.write_table(table, folder / "data_019260c2-00c0-f2f2-0000-4383001cf046_0_0_0.snappy.parquet")


def clickhouse(folder: Path, rows: list[Row]) -> None:
    """Ids may be UInt64; lists are written by the older names here."""
    table = pa.Table.from_pylist(rows)
    for name in {"user_id", "item_id"} & set(table.column_names):
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.uint64()))
    pq.write_table(table, folder / "part-0.parquet", use_compliant_nested_type=False)


def postgres(folder: Path, rows: list[Row]) -> None:
    with (folder / "part-0.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(_with_tags(rows, _joined))


WAREHOUSES: dict[str, tuple[Writer, str]] = {
    "bigquery": (bigquery, LISTS),
    "snowflake": (snowflake, TEXTS),
    "clickhouse": (clickhouse, LISTS),
    "postgres": (postgres, TEXTS),
}


def exported(folder: Path, write: Writer, tags: str, tables: dict[str, Table]) -> Path:
    """An export, with the page's config beside it."""
    for name, days in tables.items():
        for day, rows in days.items():
            part = folder / name / f"day={day}" if day else folder / name
            part.mkdir(parents=True)
            write(part, rows)
    assert LISTS in CONFIG
    assert TEXTS in PAGE
    config = folder / "warehouse.yaml"
    config.write_text(CONFIG.replace(LISTS, tags), encoding="utf-8")
    return config


def found(config: Path) -> LoggedEvents:
    pipeline = load_pipeline(config)
    return load(config.parent, pipeline.source, pipeline.features, START + 9 * DAY)


@pytest.mark.parametrize("name", WAREHOUSES)
def test_each_export_says_the_same(tmp_path: Path, name: str) -> None:
    tables = shop()
    write, tags = WAREHOUSES[name]
    events = found(exported(tmp_path, write, tags, tables))
    assert events.rejects == []
    assert events.served_at.tolist() == [START + request * DAY // 100 for request in range(200)]
    assert events.matched == {"items": 1.0}
    rows = [row for rows in tables["impressions"].values() for row in rows]
    for feature in ("user", "item"):
        assert np.asarray(events.features[feature]).tolist() == [row[f"{feature}_id"] for row in rows]
    shown = events.features["tags"]
    assert isinstance(shown, Ragged)
    assert np.diff(shown.offsets).tolist() == [len(row["tags"]) for row in rows]
    assert np.allclose(np.asarray(events.features["price"]), np.log1p([float(row["price"]) for row in rows]))
    done = [row for rows in tables["engagements"].values() for row in rows]
    assert sorted(events.engagements.happened_at.tolist()) == sorted(row["time"] for row in done)
    assert float(events.engagements.value.sum()) == pytest.approx(float(sum(row["value"] for row in done)))


@pytest.mark.parametrize("name", WAREHOUSES)
def test_check_passes(tmp_path: Path, name: str) -> None:
    config = exported(tmp_path, *WAREHOUSES[name], shop())
    done = CliRunner().invoke(cli, ["check", str(config), "--data", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "600 impressions in 200 requests" in done.output


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        (lambda tags: {"list": [{"element": tag} for tag in tags]}, "column tags: type struct"),
        (lambda tags: [tag.encode() for tag in tags], "column tags: type binary"),
    ],
    ids=["wrapped by a load without list inference", "texts as bytes"],
)
def test_shapes_that_the_page_mends_are_told(tmp_path: Path, tags: Callable[[list[str]], Any], told: str) -> None:
    tables = shop()
    tables["impressions"] = {day: _with_tags(rows, tags) for day, rows in tables["impressions"].items()}
    config = exported(tmp_path, bigquery, LISTS, tables)
    done = CliRunner().invoke(cli, ["check", str(config), "--data", str(tmp_path)])
    assert done.exit_code == 1
    assert told in done.output

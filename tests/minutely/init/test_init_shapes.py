"""`minutely init` on logs of many shapes: each config is taken by `minutely check` as it is."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from streaming.source.settings import WhenContains
from tests.minutely.init_logs import (
    SHOWN,
    START,
    changed,
    columns_of,
    rows_of,
    slates_of,
    typed,
    written,
)
from tests.streaming.source.own_logs import write


def test_an_ordinary_log(logs: Path) -> None:
    write(logs / "log.jsonl", rows_of())
    found = written("logs")
    own = found.source.impressions
    assert (own.time.column, own.time.unit, own.request) == ("ts", "s", ["request_id"])
    assert columns_of(found) == {
        "user": "user_id",
        "item": "item_id",
        "hour": None,
        "price": "price",
        "country": "country",
    }
    assert {name: feature.scope for name, feature in found.features.items()} == {
        "user": "request",
        "item": "impression",
        "hour": "request",
        "price": "impression",
        "country": "request",
    }
    assert found.features["price"].kind == "dense"
    assert found.source.actions["clicked"].when == "clicked"


def test_parts_in_hive_folders_are_one_source(logs: Path) -> None:
    rows = rows_of()
    for number, day in enumerate(("2023-11-14", "2023-11-15")):
        folder = logs / "impressions" / f"day={day}"
        folder.mkdir(parents=True)
        for part in range(2):
            write(folder / f"part-0000{part}.parquet", rows[2 * number + part :: 4])
        (folder / "_SUCCESS").touch()
    write(logs / "items.csv", [{"item_id": f"i{item}", "brand": f"b{item % 5}"} for item in range(30)])
    found = written("logs")
    assert found.source.impressions.file == "impressions"
    assert found.source.sides["items"].file == "items.csv"
    assert "day" not in columns_of(found).values()
    alone = written("logs/impressions/day=2023-11-14", "--force")
    assert alone.source.dir == "logs/impressions"
    assert alone.source.impressions.file == "day=2023-11-14"


def test_a_lone_part_is_its_folder(logs: Path) -> None:
    """Where the next export has a second one, the config means both."""
    for name in ("served", "items", "kept"):
        (logs / name).mkdir()
    write(logs / "served" / "part-0.csv", rows_of())
    for name, file in (("items", "part-0.csv"), ("kept", "brands.csv")):
        write(logs / name / file, [{"item_id": f"i{item}", f"{name}_brand": f"b{item % 5}"} for item in range(30)])
    source = written("logs").source
    assert source.impressions.file == "served"
    assert {name: side.file for name, side in source.sides.items()} == {"items": "items", "brands": "kept/brands.csv"}


def test_files_of_days_beside_others_are_a_pattern(logs: Path) -> None:
    rows = rows_of()
    write(logs / "log-2023-11-14.csv", rows[::2])
    write(logs / "log-2023-11-15.csv", rows[1::2])
    write(logs / "items.csv", [{"item_id": f"i{item}", "brand": f"b{item % 5}"} for item in range(30)])
    assert written("logs").source.impressions.file == "log-*-*-*.csv"


def test_a_csv_of_a_spreadsheet(logs: Path) -> None:
    """Semicolons, decimal commas, dates as they are written there, an encoding that is not UTF-8, compressed."""
    rows = changed(
        rows_of(),
        ts=lambda row: datetime.fromtimestamp(row["ts"], UTC).strftime("%d.%m.%Y %H:%M:%S"),
        price=lambda row: str(row["price"]).replace(".", ","),
        country=lambda row: {"CH": "Zürich", "AT": "Graz", "FR": "Nîmes"}[row["country"]],
    )
    lines = [";".join(rows[0]), *(";".join(map(str, row.values())) for row in rows)]
    (logs / "log.csv.gz").write_bytes(gzip.compress("\r\n".join(lines).encode("cp1252")))
    found = written("logs")
    own = found.source.impressions
    assert (own.delimiter, own.decimal, own.encoding, own.time.format) == (";", ",", "cp1252", "%d.%m.%Y %H:%M:%S")
    assert found.features["price"].kind == "dense"


def test_a_point_is_no_number_where_commas_begin_fractions(logs: Path) -> None:
    """`check` refuses such numbers, so they are no feature of numbers."""
    rows = changed(
        rows_of(),
        price=lambda row: str(row["price"]).replace(".", ","),
        score=lambda row: f"0.{847 + row['ts'] % 7}",
    )
    lines = [";".join(rows[0]), *(";".join(map(str, row.values())) for row in rows)]
    (logs / "log.csv").write_text("\n".join(lines))
    found = written("logs")
    assert found.source.impressions.decimal == ","
    assert found.features["price"].kind == "dense"
    assert all(each.kind == "sparse" for each in found.features.values() if each.column == "score")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings(logs: Path, encoding: str) -> None:
    rows = changed(rows_of(), country=lambda row: "Österreich" if row["country"] == "AT" else "Zürich")
    lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
    (logs / "log.txt").write_bytes("\n".join(lines).encode(encoding))
    own = written("logs").source.impressions
    assert (own.format, own.delimiter) == ("csv", "\t")
    assert own.encoding == (encoding if encoding in ("utf-16", "cp1252") else None)


@pytest.mark.parametrize(
    ("write_time", "unit", "form"),
    [
        (lambda at: at, "s", None),
        (lambda at: at * 1000, "ms", None),
        (lambda at: at * 1_000_000, "us", None),
        (lambda at: at * 1_000_000_000, "ns", None),
        (lambda at: float(at) + 0.25, "s", None),
        (lambda at: str(at), "s", None),
        (lambda at: datetime.fromtimestamp(at, UTC).isoformat(), None, None),
        (lambda at: datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"), None, None),
        (lambda at: datetime.fromtimestamp(at, UTC).strftime("%m/%d/%Y %I:%M:%S %p"), None, "%m/%d/%Y %I:%M:%S %p"),
        (lambda at: datetime.fromtimestamp(at, UTC).strftime("%Y%m%d%H%M%S"), None, "%Y%m%d%H%M%S"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_times_are_found_by_their_dates(logs: Path, ending: str, write_time: Any, unit: str | None, form: str) -> None:
    write(logs / f"log.{ending}", changed(rows_of(), ts=lambda row: write_time(row["ts"])))
    time = written("logs").source.impressions.time
    assert (time.column, time.format) == ("ts", form)
    assert time.model_dump(exclude_unset=True).get("unit") == unit


@pytest.mark.parametrize("split", [None, " ", "|"])
def test_lists_with_those_that_were_clicked(logs: Path, split: str | None) -> None:
    rows = slates_of(rows_of())
    if split is None:
        write(logs / "log.jsonl", rows)
    else:
        for row in rows:
            row.update({name: split.join(row[name]) for name in ("items_shown", "items_clicked")})
            del row["prices"]
        write(logs / "log.csv", rows)
    found = written("logs")
    assert "look at" not in typed("check", "made.yaml").output
    explode, when = found.source.impressions.explode, found.source.actions["click"].when
    assert explode is not None
    assert explode.columns == (["items_shown", "prices"] if split is None else ["items_shown"])
    assert explode.split == split
    assert when == WhenContains(column="items_clicked", contains="items_shown", split=split)
    assert "items_clicked" not in columns_of(found).values()


def test_lists_with_a_click_for_each_item(logs: Path) -> None:
    rows = rows_of()
    flags = [[row["clicked"] for row in rows[at : at + SHOWN]] for at in range(0, len(rows), SHOWN)]
    slates = [{**row, "clicks": found} for row, found in zip(slates_of(rows), flags, strict=True)]
    write(logs / "log.jsonl", [{key: row[key] for key in row if key != "items_clicked"} for row in slates])
    found = written("logs")
    assert found.source.impressions.explode is not None
    assert found.source.impressions.explode.columns == ["items_shown", "clicks", "prices"]
    assert found.source.actions["click"].when == "clicks"


def test_engagements_in_a_file_of_their_own(logs: Path) -> None:
    rows = rows_of()
    write(logs / "served.parquet", [{key: row[key] for key in row if key != "clicked"} for row in rows])
    events = [
        {
            "at": 1000 * row["ts"] + 900_000,
            "request_id": row["request_id"],
            "item_id": row["item_id"],
            "event": "click",
            "amount": row["price"],
        }
        for row in rows
        if row["clicked"]
    ]
    write(logs / "events.csv", events)
    found = written("logs")
    events_ = found.source.engagements
    assert events_ is not None
    assert (events_.file, events_.time.unit, events_.action, events_.value) == ("events.csv", "ms", "event", "amount")
    assert (events_.request, events_.impression) == (["request_id"], ["item_id"])
    assert found.labels["click"].window == 1_800_000, "the events come after a quarter of an hour"


def test_side_tables_go_with_the_item_shown(logs: Path) -> None:
    """Not with another article that a request names, nor with times that happen to be equal."""
    rows = [{**row, "item_id": "i1" if at % 3 else None} for at, row in enumerate(slates_of(rows_of()))]
    write(logs / "log.jsonl", rows)
    write(logs / "items.csv", [{"item_id": f"i{item}", "brand": f"b{item % 5}"} for item in range(30)])
    write(logs / "holidays.csv", [{"ts": START + 60 * number, "holiday": f"h{number % 3}"} for number in range(20)])
    sides = written("logs").source.sides
    assert {name: side.on for name, side in sides.items()} == {"items": ["items_shown"]}
    assert "# holidays.csv is not used: it has no key" in Path("made.yaml").read_text()


def test_a_file_without_names_has_them_made_up(logs: Path) -> None:
    lines = [",".join(str(row[key]) for key in ("ts", "user_id", "price", "clicked")) for row in rows_of()]
    (logs / "log.csv").write_text("\n".join(lines))
    found = written("logs")
    assert found.source.impressions.columns == ["column_1", "column_2", "column_3", "column_4"]
    assert found.source.impressions.time.column == "column_1"

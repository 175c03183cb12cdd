"""`minutely init` on logs of many shapes: each config is taken by `minutely check` as it is, and mistakes are one clear line."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from minutely.cli import cli
from minutely.config import Pipeline, load_pipeline
from streaming.source.settings import DelayColumn, WhenContains, WhenEquals
from tests.commands import ROOT
from tests.streaming.source.own_logs import write

START = 1_700_000_000  # 2023-11-14
REQUESTS, SHOWN = 200, 4
Row = dict[str, Any]


def rows_of() -> list[Row]:
    """Requests of four impressions, a minute apart, with clicks and the seconds until them."""
    random = np.random.default_rng(5)
    found = []
    for number in range(REQUESTS):
        user = int(random.integers(40))
        for item in random.choice(30, SHOWN, replace=False).tolist():
            clicked = int(random.random() < 0.3)
            found.append(
                {
                    "ts": START + 60 * number,
                    "request_id": f"r{number}",
                    "user_id": user,
                    "item_id": f"i{item}",
                    "price": round(float(random.gamma(2.0, 20.0)), 2),
                    "country": ("CH", "AT", "FR")[user % 3],
                    "clicked": clicked,
                }
            )
    return found


def slates_of(rows: Sequence[Row]) -> list[Row]:
    """A row a request, with lists of what was shown and of what was clicked."""
    found = []
    for at in range(0, len(rows), SHOWN):
        first, shown = rows[at], rows[at : at + SHOWN]
        clicked = [row["item_id"] for row in shown if row["clicked"]]
        items = {"items_shown": [row["item_id"] for row in shown], "prices": [row["price"] for row in shown]}
        found.append({"ts": first["ts"], "user_id": first["user_id"], **items, "items_clicked": clicked})
    return found


def changed(rows: Sequence[Row], **by: Any) -> list[Row]:
    """Rows with columns replaced by functions of the row."""
    return [{**row, **{name: make(row) for name, make in by.items()}} for row in rows]


def typed(*command: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(part) for part in command])


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder `logs` in the current one."""
    monkeypatch.chdir(tmp_path)
    folder = Path("logs")
    folder.mkdir()
    return folder


def written(*paths: str | Path) -> Pipeline:
    """The config for some paths, which `check` takes without an edit."""
    done = typed("init", *paths, "--out", "made.yaml")
    assert done.exit_code == 0, done.output
    checked = typed("check", "made.yaml")
    assert checked.exit_code == 0, checked.output + Path("made.yaml").read_text()
    return load_pipeline(Path("made.yaml"))


def columns_of(pipeline: Pipeline) -> dict[str, str | None]:
    return {name: getattr(feature, "column", None) for name, feature in pipeline.features.items()}


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
        "place": lambda row: {"lat": 1.5},
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
        "column place is not used: an object",
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


def test_a_file_without_names_has_them_made_up(logs: Path) -> None:
    lines = [",".join(str(row[key]) for key in ("ts", "user_id", "price", "clicked")) for row in rows_of()]
    (logs / "log.csv").write_text("\n".join(lines))
    found = written("logs")
    assert found.source.impressions.columns == ["column_1", "column_2", "column_3", "column_4"]
    assert found.source.impressions.time.column == "column_1"


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

"""`minutely init` on several files of impressions, and on a file for each action: lists that `check` takes as they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from basis.problems import Problems
from streaming.source.files.find import find
from streaming.source.settings import EngagementFile, File, ImpressionFile, OneAction
from tests.minutely.init_logs import Row, changed, columns_of, rows_of, typed, written
from tests.streaming.source.own_logs import write


def without(rows: Sequence[Row], *columns: str) -> list[Row]:
    return [{name: row[name] for name in row if name not in columns} for row in rows]


def events(rows: Sequence[Row], after_s: int) -> list[Row]:
    """What was done on some impressions."""
    return [{"request_id": row["request_id"], "item_id": row["item_id"], "at": row["ts"] + after_s} for row in rows]


def search_rows() -> list[Row]:
    """Requests of another place, half an hour later each."""
    return changed(rows_of(), request_id=lambda row: f"s{row['request_id']}", ts=lambda row: row["ts"] + 1800)


def files_of(found: Sequence[ImpressionFile | EngagementFile]) -> list[str]:
    return [each.file for each in found]


def test_a_file_for_each_action(logs: Path) -> None:
    rows = rows_of()
    write(logs / "served.csv", without(rows, "clicked"))
    write(logs / "clicks.csv", events([row for row in rows if row["clicked"]], 30))
    likes = changed(events(rows[::7], 2000), stars=lambda row: 1 + row["at"] % 5)
    write(logs / "likes.jsonl", likes)
    found = written("logs")
    told = found.source.engagement_files
    assert files_of(told) == ["clicks.csv", "likes.jsonl"]
    assert [each.action for each in told] == [OneAction(name="click"), OneAction(name="like")]
    assert [each.value for each in told] == [None, "stars"]
    assert [(each.request, each.impression) for each in told] == [(["request_id"], ["item_id"])] * 2
    assert {name: (label.action, label.window) for name, label in found.labels.items()} == {
        "click": ("click", 600_000),
        "like": ("like", 3_600_000),
    }
    assert "# by the file's name" in Path("made.yaml").read_text()
    assert "are in no request" not in typed("check", "made.yaml").output


def test_one_action_in_two_files_is_one_label(logs: Path) -> None:
    rows = rows_of()
    write(logs / "served.csv", without(rows, "clicked"))
    clicked = [row for row in rows if row["clicked"]]
    write(logs / "app_clicks.csv", events(clicked[::2], 30))
    write(logs / "web_clicks.csv", changed(events(clicked[1::2], 30), browser=lambda row: "x"))
    found = written("logs")
    assert files_of(found.source.engagement_files) == ["app_clicks.csv", "web_clicks.csv"]
    assert list(found.labels) == ["click"]
    assert f"{len(clicked)} in the rows looked at" in Path("made.yaml").read_text()


def test_a_file_of_several_actions_beside_one_of_its_own(logs: Path) -> None:
    rows = rows_of()
    write(logs / "served.csv", without(rows, "clicked"))
    write(
        logs / "log.csv",
        changed(events(rows[::3], 60), event=lambda row: "share" if row["item_id"] < "i2" else "follow"),
    )
    write(logs / "purchases.csv", events(rows[::9], 600))
    found = written("logs")
    assert [each.action for each in found.source.engagement_files] == ["event", OneAction(name="purchase")]
    assert {"share", "follow", "purchase"} == {label.action for label in found.labels.values()}


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_impressions_of_several_places(logs: Path, ending: str) -> None:
    write(logs / f"feed.{ending}", rows_of())
    query = changed(search_rows(), query=lambda row: f"q{row['user_id'] % 9}")
    write(logs / f"search.{ending}", query)
    found = written("logs")
    told = found.source.impression_files
    assert files_of(told) == [f"feed.{ending}", f"search.{ending}"]
    assert [(each.time.column, each.time.unit, each.request) for each in told] == [("ts", "s", ["request_id"])] * 2
    assert set(columns_of(found).values()) == {"user_id", "item_id", "price", "country", None}
    assert f"# column query is not used: feed.{ending} has none" in Path("made.yaml").read_text()
    checked = typed("check", "made.yaml").output
    assert f"{2 * len(rows_of()):,} impressions" in checked and "look at" not in checked


def test_impressions_and_engagements_of_several_places(logs: Path) -> None:
    feed, search = without(rows_of(), "clicked"), without(search_rows(), "clicked")
    write(logs / "feed.csv", feed)
    write(logs / "search.csv", search)
    write(logs / "clicks.csv", events([*feed[::5], *search[::3]], 20))
    write(logs / "likes.csv", events(search[::6], 40))
    found = written("logs")
    assert files_of(found.source.impression_files) == ["feed.csv", "search.csv"]
    assert files_of(found.source.engagement_files) == ["clicks.csv", "likes.csv"], "though likes are of search alone"
    assert all(each.impression == ["item_id"] for each in found.source.impression_files)


def test_a_file_whose_name_is_not_utf8_is_not_used(logs: Path) -> None:
    """Neither can a config name it, nor DuckDB open it."""
    write(logs / "log.csv", rows_of())
    other = Path(os.fsdecode(b"caf\xe9.csv"))
    (logs / other).write_bytes((logs / "log.csv").read_bytes())
    said = typed("init", "logs", "--out", "made.yaml")
    assert said.exit_code == 0 and r"caf\xe9.csv" in said.output and "name: not UTF-8" in said.output
    said = typed("init", str(logs / other))
    assert said.exit_code == 1 and r"caf\xe9.csv: name: not UTF-8; allowed: names in UTF-8" in said.output
    with pytest.raises(Problems, match=r"caf\\xe9\.csv: name: not UTF-8"):
        find(logs, File(file="*.csv"))


def test_a_copy_is_no_second_place(logs: Path) -> None:
    write(logs / "log.csv", rows_of())
    write(logs / "old.csv", rows_of()[: len(rows_of()) // 2])
    found = written("logs")
    assert files_of(found.source.impression_files) == ["log.csv"]
    assert "# old.csv is not used: it has requests of log.csv" in Path("made.yaml").read_text()


def test_several_places_need_requests(logs: Path) -> None:
    write(logs / "feed.csv", without(rows_of(), "request_id", "user_id", "country"))
    write(logs / "search.csv", without(search_rows()[:-4], "request_id", "user_id", "country"))
    found = written("logs")
    assert files_of(found.source.impression_files) == ["feed.csv"]
    assert "# search.csv is not used: impressions of several files need columns" in Path("made.yaml").read_text()

"""`minutely init` says what it guessed: repeated items, few users, outcomes and slates under names that it does not know."""

from __future__ import annotations

from pathlib import Path

from tests.minutely.init_logs import REQUESTS, Row, changed, columns_of, rows_of, typed, written
from tests.streaming.source.own_logs import write


def text_of(*paths: str) -> str:
    done = typed("init", *paths, "--out", "made.yaml")
    assert done.exit_code == 0, done.output
    return Path("made.yaml").read_text()


def same_of_request(row: Row) -> str:
    return f"i{int(row['request_id'][1:]) % 30}"


def test_an_item_that_comes_twice_in_a_few_requests_names_impressions_all_the_same(logs: Path) -> None:
    """A replay refuses those rows alone; all engagements were left out for them."""
    rows = rows_of()
    clicks = [
        {"request_id": row["request_id"], "item_id": row["item_id"], "at": row["ts"] + 30}
        for row in rows
        if row["clicked"]
    ]
    served = [{name: row[name] for name in row if name != "clicked"} for row in rows]
    for at in range(0, 40, 4):
        served[at]["item_id"] = served[at + 1]["item_id"]
    write(logs / "served.csv", served)
    write(logs / "clicks.csv", clicks)
    text = text_of("logs")
    assert "impression: [item_id] # names the impression within its request" in text
    assert f"unsure: given twice within a request in 10 of {4 * REQUESTS} rows" in text


def test_an_item_that_comes_twice_everywhere_names_nothing_and_is_named(logs: Path) -> None:
    rows = rows_of()
    write(logs / "served.csv", changed(rows, item_id=same_of_request, clicked=lambda row: 7))
    write(
        logs / "clicks.csv",
        [{"request_id": row["request_id"], "item_id": same_of_request(row), "at": row["ts"] + 9} for row in rows],
    )
    done = typed("init", "logs", "--out", "made.yaml")
    assert "item_id come again in many requests" in " ".join(done.output.split())


def test_a_column_that_was_skipped_is_an_outcome(logs: Path) -> None:
    rows = changed(rows_of(), skipped=lambda row: 1 - row["clicked"])
    write(logs / "served.csv", rows)
    found = written("logs")
    assert "skipped" not in columns_of(found).values()


def test_a_flag_that_says_nothing_by_its_name_is_unsure(logs: Path) -> None:
    rows = changed(rows_of(), zapped=lambda row: int(row["price"] > 30))
    write(logs / "served.csv", rows)
    assert "zapped: {column: zapped} # unsure: leave it out if it says what came of the impression" in text_of("logs")


def test_few_ids_are_no_users(logs: Path) -> None:
    rows = [{name: row[name] for name in row if name != "user_id"} for row in rows_of()]
    write(logs / "served.csv", changed(rows, device=lambda row: ("ios", "web")[row["ts"] // 60 % 2]))
    assert "unsure: 2 different values are few for users" in text_of("logs")


def test_a_list_of_items_with_a_0_or_1_is_named_as_what_it_is(logs: Path) -> None:
    rows = [
        {"time": 1_700_000_000 + 60 * at, "user": f"u{at % 9}", "shown": f"N{at}-0 N{at + 1}-1", "clicked": at % 2}
        for at in range(120)
    ]
    write(logs / "behaviors.csv", rows)
    assert "a list of items, each with a 0 or 1: `explode` with `each` makes impressions of it" in text_of("logs")


def test_where_no_label_was_found_that_is_said(logs: Path) -> None:
    rows = [{name: row[name] for name in row if name != "clicked"} for row in rows_of()]
    write(logs / "served.csv", rows)
    done = typed("init", "logs", "--out", "made.yaml")
    said = " ".join(done.output.split())
    assert "none found" in said and "in place of NAME-A-COLUMN" in said

"""Items of several values: MIND's ``N1-0 N2-1`` gives the events of the same log with lists of its own for each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from streaming.features.ids import MISSING
from streaming.source.logged_events import LoggedEvents
from streaming.source.rows.explode import explode
from streaming.source.rows.rejects import Findings
from streaming.source.rows.rows import Rows
from streaming.source.settings import Explode, SourceSettings
from tests.streaming.source.own_logs import NOW, Row, T, features, ids, load, problems_of, rejects_of, source, write

BEHAVIORS = """1\tU1\t11/14/2019 9:05:58 AM\tN7 N3\tN1-0 N2-1 N3-0
2\tU2\t11/14/2019 12:11:09 AM\t\tN2-0
3\tU1\t11/14/2019 10:00:00 PM\tN7 N3 N2\tN9-1 N1-1
"""
NEWS = "N1\tsports\nN2\tnews\nN3\tsports\nN7\tnews\n"
COLUMNS = ["id", "user", "time", "history", "shown"]
EACH = {"split": "-", "columns": ["article", "clicked"]}
TIME = {"column": "time", "format": "%m/%d/%Y %I:%M:%S %p"}
SIDES: dict[str, Any] = {
    "news": {"file": "news.tsv", "delimiter": "\t", "columns": ["article", "topic"], "key": "article"}
}
WANTED = features(
    user={"column": "user", "scope": "request"},
    history={"column": "history", "split": " ", "pool": "mean", "scope": "request"},
    article={"column": "article"},
    topic={"column": "topic", "side": "news"},
)


def as_of_mind(sides: dict[str, Any] = SIDES, **changes: Any) -> SourceSettings:
    explode = {"columns": ["shown"], "split": " ", "each": EACH} | changes
    file = {"file": "behaviors.tsv", "delimiter": "\t", "columns": COLUMNS, "time": TIME, "request": ["id"]}
    return source("csv", impressions={**file, "explode": explode}, actions={"click": {"when": "clicked"}}, sides=sides)


def write_logs(folder: Path, behaviors: str = BEHAVIORS) -> Path:
    (folder / "behaviors.tsv").write_text(behaviors)
    (folder / "news.tsv").write_text(NEWS)
    return folder


def as_rows(behaviors: str = BEHAVIORS) -> list[Row]:
    """The same log with a row an impression."""
    rows = []
    for line in behaviors.splitlines():
        request, user, time, history, shown = line.split("\t")
        for item in shown.split(" "):
            article, clicked = item.split("-")
            given = {"id": request, "user": user, "time": time, "history": history or None}
            rows.append({**given, "article": article, "clicked": int(clicked)})
    return rows


def told(events: LoggedEvents) -> dict[str, Any]:
    """All of a log that a model is trained on."""
    return {
        "starts": events.starts.tolist(),
        "served_at": events.served_at.tolist(),
        "requests": events.request_ids.to_pylist(),
        "features": {name: repr(column) for name, column in events.features.items()},
        "happened": (events.engagements.row.tolist(), events.engagements.happened_at.tolist()),
        "matched": events.matched,
        "rejects": events.rejects,
    }


def test_the_events_are_those_of_a_row_an_impression(tmp_path: Path) -> None:
    write_logs(tmp_path)
    write(tmp_path / "plain.csv", as_rows())
    plain = {"file": "plain.csv", "time": TIME, "request": ["id"]}
    other = source("csv", impressions=plain, actions={"click": {"when": "clicked"}}, sides=SIDES)
    events = load(tmp_path, as_of_mind(), WANTED, NOW)
    assert told(events) == told(load(tmp_path, other, WANTED, NOW))
    assert np.asarray(events.features["article"]).tolist() == ids("N2", "N1", "N2", "N3", "N9", "N1")
    assert events.engagements.row.tolist() == [2, 4, 5]
    assert events.matched == {"news": 5 / 6}


def test_lists_of_a_file_are_taken_apart_too(tmp_path: Path) -> None:
    write_logs(tmp_path)
    lines = [line.split("\t") for line in BEHAVIORS.splitlines()]
    columns = [pa.array(column) for column in zip(*lines, strict=True)]
    columns[-1] = pa.array([line[-1].split(" ") for line in lines])
    pq.write_table(pa.table(columns, COLUMNS), tmp_path / "log.parquet")
    lists = {"file": "log.parquet", "time": TIME, "request": ["id"], "explode": {"columns": ["shown"], "each": EACH}}
    other = source("csv", impressions=lists, actions={"click": {"when": "clicked"}}, sides=SIDES)
    assert told(load(tmp_path, other, WANTED, NOW)) == told(load(tmp_path, as_of_mind(), WANTED, NOW))


def test_a_part_may_have_the_name_of_the_list(tmp_path: Path) -> None:
    write_logs(tmp_path)
    each = {"split": "-", "columns": ["shown", "clicked"]}
    wanted = features(article={"column": "shown"}, user={"column": "user"})
    events = load(tmp_path, as_of_mind({}, each=each), wanted, NOW)
    assert np.asarray(events.features["article"]).tolist() == ids("N2", "N1", "N2", "N3", "N9", "N1")


def test_an_item_of_other_values_costs_itself(tmp_path: Path) -> None:
    """A value that is empty is missing, as a field of CSV is."""
    write_logs(tmp_path, BEHAVIORS.replace("N2-1", "N-2-1").replace("N9-1", "-1"))
    events = load(tmp_path, as_of_mind(), WANTED, NOW)
    assert np.asarray(events.features["article"]).tolist() == [*ids("N2", "N1", "N3"), MISSING, *ids("N1")]
    assert rejects_of(events) == [("line 1, column shown", "'N-2-1'", "malformed")]
    assert [each.detail for each in events.rejects] == ["not 2 values with '-' between them"]


def test_where_no_item_fits_the_separator_is_wrong(tmp_path: Path) -> None:
    write_logs(tmp_path, BEHAVIORS.replace("-", ":"))
    ((_, place, value, allowed),) = problems_of(tmp_path, as_of_mind(), WANTED)
    assert (place, value) == ("column shown", "values such as 'N1:0'")
    assert allowed == "not 2 values with '-' between them; allowed: article-clicked"


def test_each_broken_item_counts_and_a_value_of_the_row_counts_once(tmp_path: Path) -> None:
    behaviors = f"1\tU1\t11/14/2019 9:05:58 AM\tN7\t{'N7 ' * 1000}N8 N1-0 N2-1\n2\t{2**70}.5\tnever\t\tN2-0\n"
    write_logs(tmp_path, behaviors + f"3\t{2.0**60}\t11/14/2019 9:05:58 AM\t\tN1-1 N2-0\n")
    events = load(tmp_path, as_of_mind(), WANTED, NOW)
    places = [place for place, _, _ in rejects_of(events)]
    assert Counter(places) == {"line 1, column shown": 1001, "line 2, column time": 1, "line 3, column user": 1}
    assert events.impressions == 4


def test_rows_without_items_are_counted_and_their_times_are_looked_at(tmp_path: Path) -> None:
    none = "".join(f"{request}\tU1\t{time}\t\t\n" for request, time in ((7, "11/14/2019 9:05:58 AM"), (8, "bad")))
    write_logs(tmp_path, BEHAVIORS + none)
    events = load(tmp_path, as_of_mind(), WANTED, NOW)
    assert (events.impressions, events.empty) == (6, 1)
    assert rejects_of(events) == [("line 5, column time", "'bad'", "malformed")]


def test_an_item_that_is_given_twice_is_refused_each_time(tmp_path: Path) -> None:
    write_logs(tmp_path, "1\tU1\t11/14/2019 9:05:58 AM\tN7\tN1-0 N1-0 N1-1 N2-0\n")
    settings = as_of_mind()
    (file,) = settings.impression_files
    named = settings.model_copy(update={"impressions": file.model_copy(update={"impression": ["article"]})})
    events = load(tmp_path, named, WANTED, NOW)
    assert [each.reason for each in events.rejects] == ["repeated", "repeated"]
    assert events.impressions == 2


@pytest.mark.parametrize(("count", "items", "history"), [(24, 4000, 0), (3000, 40, 100)])
def test_what_is_exploded_at_once_is_bounded(tmp_path: Path, count: int, items: int, history: int) -> None:
    """By the items times what each has of its row; the exploded text itself is not copied for each."""
    shown = " ".join(f"N{item}-{item % 2}" for item in range(items))
    past = " ".join(f"N{item}" for item in range(history))
    table = pa.table({"t": np.arange(count), "history": [past] * count, "shown": [shown] * count})
    rows = Rows("log", table, pa.array(np.arange(count)), Findings(whole=True))
    settings = Explode.model_validate({"columns": ["shown"], "split": " ", "each": EACH})
    found = 0
    for piece in explode(rows, settings):
        assert piece.table.nbytes < 64 << 20
        assert piece.at.to_pylist() == [
            found // items + at for at in range(len(piece.at) // items) for _ in range(items)
        ]
        assert piece.column("article")[:items].to_pylist() == [f"N{item}" for item in range(items)]
        found += len(piece.at)
    assert found == count * items


def test_it_is_of_one_column() -> None:
    with pytest.raises(ValidationError, match="each: of 2 columns; allowed: one, whose items hold all values"):
        Explode.model_validate({"columns": ["shown", "places"], "each": EACH})


def test_a_row_of_too_many_items_costs_only_itself(tmp_path: Path) -> None:
    """Garbage of a million items, each with the row's other values, had no piece that it fitted in."""
    items = ["a b"] * 3 + ["x " * 1_000_000] + ["y " * 9_999 + "y"]
    columns = {"t": [T + at for at in range(5)], "item": items, "other": ["o" * 3000] * 5, "click": [0] * 5}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    file = {"file": "log.parquet", "time": {"column": "t"}, "explode": {"columns": ["item"], "split": " "}}
    settings = source("parquet", impressions=file, actions={"click": {"when": "click"}})
    events = load(tmp_path, settings, features(item={"column": "item"}, other={"column": "other"}), NOW)
    assert events.impressions == 3 * 2 + 10_000
    (reject,) = events.rejects
    assert (reject.place, reject.detail) == ("line 4, column item", "more items than a request may have: 10000")


def test_the_items_of_one_row_come_some_at_a_time() -> None:
    """Each has the row's other values; those that are broken are told apart wherever they are."""
    items = [[str(at) for at in range(9000)], ["a"]]
    table = pa.table({"item": items, "text": ["o" * 10_000, "p"]})
    rows = Rows("log", table, pa.array([0, 1]), Findings(whole=False))
    pieces = list(explode(rows, Explode(columns=["item"])))
    assert len(pieces) > 5
    assert max(piece.table.nbytes for piece in pieces) < 18 << 20
    assert [item for piece in pieces for item in piece.table.column("item").to_pylist()] == [*items[0], "a"]
    assert [text[0] for piece in pieces for text in piece.table.column("text").to_pylist()] == ["o"] * 9000 + ["p"]
    numbers = [number for piece in pieces if piece.items for number in piece.items.number.to_pylist()]
    assert len(set(numbers)) == 9001

"""Items of several values: MIND's ``N1-0 N2-1`` gives the events of the same log with lists of its own for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from streaming.features.ids import MISSING
from streaming.source.logged_events import LoggedEvents
from streaming.source.settings import Explode, SourceSettings
from tests.streaming.source.own_logs import NOW, Row, features, ids, load, problems_of, rejects_of, source, write

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


def test_it_is_of_one_column() -> None:
    with pytest.raises(ValidationError, match="each: of 2 columns; allowed: one, whose items hold all values"):
        Explode.model_validate({"columns": ["shown", "places"], "each": EACH})

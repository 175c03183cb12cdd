"""Which rows and values of a file count: `when` chooses rows, and `missing` names texts that are no values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streaming.features.ids import text_id
from streaming.source.load import load
from streaming.source.rows.raw import NO_NUMBER
from tests.streaming.source.own_logs import (
    FORMATS,
    NOW,
    Row,
    T,
    features,
    ids,
    line,
    problems_of,
    rejects_of,
    source,
    write,
)

FAR = {"kind": "dense", "column": "far"}


def impressions(kind: str, **keys: object) -> Row:
    return {"file": f"log.{kind}", "time": {"column": "t"}, **keys}


def rows_of(*values: str) -> list[Row]:
    return [{"t": T + at, "far": value, "town": value} for at, value in enumerate(values)]


@pytest.mark.parametrize("kind", FORMATS)
def test_texts_for_what_is_missing(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"log.{kind}", rows_of("1.5", "NULL", r"\N", "7", "null"))
    wanted = features(town={"column": "town"}, far=FAR)
    log = impressions(kind, missing=["NULL", r"\N"])
    events = load(tmp_path, source(kind, impressions=log, actions={"seen": {}}), wanted, NOW)
    assert np.asarray(events.features["far"]).tolist() == [1.5, 0, 0, 7, 0]
    assert np.asarray(events.features["town"]).tolist() == ids("1.5", None, None, 7, "null")
    assert events.missing == {"town": 0.4, "far": 0.6}
    assert [place for place, _, _ in rejects_of(events)] == [f"{line(kind, 4)}, column far"]


@pytest.mark.parametrize("kind", FORMATS)
def test_without_the_key_such_a_text_is_an_id_and_no_number(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"log.{kind}", rows_of("1.5", "NULL"))
    log = source(kind, impressions=impressions(kind), actions={"seen": {}})
    events = load(tmp_path, log, features(town={"column": "town"}, far=FAR), NOW)
    assert np.asarray(events.features["town"])[1] == text_id("NULL")
    assert [reject.detail for reject in events.rejects] == [NO_NUMBER]
    assert "`missing`" in NO_NUMBER


def test_a_column_of_such_texts_alone_names_the_key(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", rows_of("NULL", "NULL"))
    log = source("csv", impressions=impressions("csv"), actions={"seen": {}})
    ((_, place, value, allowed),) = problems_of(tmp_path, log, features(item={"column": "t"}, far=FAR))
    assert (place, value) == ("column far", "values such as 'NULL'")
    assert 'missing: ["THE-TEXT"]' in allowed


def test_side_tables_and_engagements_have_the_key_too(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", [{"t": T, "request": "r", "item": item} for item in ("a", "b")])
    write(tmp_path / "items.csv", [{"item": "a", "price": "NULL"}, {"item": "b", "price": "2"}])
    write(tmp_path / "done.csv", [{"t": T + 1, "request": "r", "item": "a", "what": "buy", "paid": "NULL"}])
    done = {"time": {"column": "t"}, "request": ["request"], "impression": ["item"], "action": "what", "value": "paid"}
    log = source(
        "csv",
        impressions=impressions("csv", request=["request"], impression=["item"]),
        sides={"items": {"file": "items.csv", "key": "item", "missing": ["NULL"]}},
        engagements={"file": "done.csv", **done, "missing": "NULL"},
        actions={},
    )
    wanted = features(item={"column": "item"}, price={"kind": "dense", "column": "price", "side": "items"})
    events = load(tmp_path, log, wanted, NOW)
    assert np.asarray(events.features["price"]).tolist() == [0, 2]
    assert events.engagements.value.tolist() == [1]
    assert not events.rejects


def test_an_unquoted_null_names_no_text() -> None:
    with pytest.raises(ValueError, match=r'allowed: texts in quotes, such as \["NULL"\]'):
        source("csv", impressions=impressions("csv", missing=[None]))


MIXED: list[Row] = [
    {"t": T, "event": "impression", "feed": "f", "item": "a", "seconds": None},
    {"t": T, "event": "impression", "feed": "f", "item": "b", "seconds": None},
    {"t": T + 500, "event": "tap", "feed": "f", "item": "b", "seconds": None},
    {"t": T + 9000, "event": "watch_end", "feed": "f", "item": "b", "seconds": 7.5},
    {"t": T + 9500, "event": "impression", "feed": "", "item": "c", "seconds": None},
]
DONE: Row = {
    "time": {"column": "t"},
    "request": ["feed"],
    "impression": ["item"],
    "action": "event",
    "value": "seconds",
}


@pytest.mark.parametrize("kind", FORMATS)
def test_one_file_of_all_events(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"log.{kind}", MIXED)
    when = {"column": "event", "equals": "impression"}
    done = {"file": f"log.{kind}", **DONE, "when": {"column": "event", "equals": ["tap", "watch_end"]}}
    log = impressions(kind, request=["feed"], impression=["item"], when=when)
    events = load(tmp_path, source(kind, impressions=log, engagements=done, actions={}), features(), NOW)
    assert np.asarray(events.features["item"]).tolist() == ids("a", "b")
    assert events.engagements.actions == ["tap", "watch_end"]
    assert events.engagements.row.tolist() == [1, 1]
    assert events.engagements.value.tolist() == [1, 7.5]
    ((place, _, reason),) = rejects_of(events)
    assert (place, reason) == (f"{line(kind, 4)}, column feed", "malformed")


def test_rows_that_are_never_there(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", MIXED)
    log = impressions("csv", when={"column": "event", "equals": ["view", "shown"]})
    ((_, place, value, allowed),) = problems_of(tmp_path, source("csv", impressions=log, actions={"seen": {}}))
    assert (place, value) == ("column event", "never 'view' or 'shown'")
    assert allowed == "allowed: impression, tap, watch_end"
    log = impressions("csv", when={"column": "kind", "equals": "view"})
    ((_, place, value, _),) = problems_of(tmp_path, source("csv", impressions=log, actions={"seen": {}}))
    assert (place, value) == ("column kind", "missing")


def test_rows_of_a_side_table(tmp_path: Path) -> None:
    """Rows that are not read may have the same keys, and those that are refused keep their lines."""
    write(tmp_path / "log.csv", [{"t": T, "item": item} for item in ("a", "b")])
    prices = [("a", "CH", "1"), ("a", "AT", "2"), ("b", "CH", "x"), ("c", "CH", "4")]
    write(tmp_path / "prices.csv", [{"item": item, "land": land, "price": price} for item, land, price in prices])
    side = {"file": "prices.csv", "key": "item", "when": {"column": "land", "equals": "CH"}}
    wanted = features(item={"column": "item"}, price={"kind": "dense", "column": "price", "side": "prices"})
    log = source("csv", impressions=impressions("csv"), sides={"prices": side}, actions={"seen": {}})
    events = load(tmp_path, log, wanted, NOW)
    assert np.asarray(events.features["price"]).tolist() == [1, 0]
    assert [place for place, _, _ in rejects_of(events)] == ["line 4, column price"]

"""Logs are read some rows at a time. What comes of them does not depend on how many."""

from __future__ import annotations

import gc
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from basis.problems import Problems
from streaming.features.columns import Ragged
from streaming.source.files import duck
from streaming.source.load import load
from streaming.source.logged_events import LoggedEvents
from streaming.source.order.on_disk import FeatureColumn, Mapped, Texts
from streaming.source.rows import rejects
from streaming.source.settings import SourceSettings
from tests.streaming.source.own_logs import NOW, T, features, load_rows, problems_of, source, write

USERS = [{"id": at, "age": 20 + at} for at in range(4)]
FEATURES = features(
    user={"column": "user"},
    item={"column": "item"},
    tags={"column": "tags", "pool": "mean"},
    price={"kind": "dense", "column": "price"},
    vector={"kind": "vector", "column": "vector", "size": 2},
    age={"kind": "dense", "column": "age", "side": "users"},
    hour={"time": "hour"},
    pair={"cross": ["user", "hour"]},
)
times = st.integers(0, 8).map(lambda step: T + step * 1_800_000)
texts = st.sampled_from(["a", "b", "a/b", "\\", "é", ""])
impressions = st.fixed_dictionaries(
    {
        "t": st.one_of(times, times, times, st.sampled_from([None, 0, "soon"])),
        "user": st.sampled_from([1, 2, 3, "2", None, 17]),
        "item": st.sampled_from(["a", "b", "a/b", 2, None]),
        "tags": st.one_of(st.none(), st.lists(st.integers(0, 5), max_size=3)),
        "price": st.sampled_from([1.5, 2, "3.5", "many", None]),
        "vector": st.one_of(st.none(), st.just([1.0, 2.5])),
        "click": st.sampled_from([0, 1, None]),
        "wait": st.sampled_from([0, 5, -1, None, 10**15]),
    }
)
engagements = st.fixed_dictionaries(
    {
        "at": st.one_of(times, times, st.sampled_from([None, -5])),
        "user": st.sampled_from([1, 2, 3, 9]),
        "time": times,
        "item": st.sampled_from(["a", "b", "a/b", 2]),
        "what": st.sampled_from(["click", "like", "buy", None]),
        "much": st.sampled_from([1.0, 2.5, None, "x"]),
    }
)


def settings_of(folder: Path, *, keyed: bool) -> SourceSettings:
    files = {"file": "log.jsonl", "time": {"column": "t"}, "request": ["user", "t"]}
    own: dict[str, Any] = {
        "impressions": {**files, "impression": ["item"]} if keyed else files,
        "sides": {"users": {"file": "users.jsonl", "key": "id", "on": "user"}},
        "actions": {"click": {"when": "click", "delay": {"column": "wait"}}},
    }
    if keyed:
        own["engagements"] = {
            "file": "ev.jsonl",
            "time": {"column": "at"},
            "request": ["user", "time"],
            "impression": ["item"],
            "action": "what",
            "value": "much",
        }
    return source("jsonl", dir=str(folder), **own)


def contents(folder: Path, wanted: SourceSettings) -> Any:
    """All that a log has, or what is wrong with it."""
    try:
        events = load(folder, wanted, FEATURES, NOW)
    except Problems as problems:
        return sorted(problems.problems)
    return (*arrays(events), sorted(events.rejects), events.missing, events.matched)


def arrays(events: LoggedEvents) -> list[Any]:
    done = events.engagements
    columns = [
        part for column in events.features.values() for part in (column if isinstance(column, Ragged) else [column])
    ]
    own = [events.starts, events.served_at, events.spread, events.request_of_row, *columns]
    texts_ = [events.request_ids, events.impression_ids, done.request_id, done.impression_id]
    numbers = [done.happened_at, done.row, done.action, done.value]
    return [*(each.tolist() for each in (*own, *numbers)), *(each.to_pylist() for each in texts_), done.actions]


@given(
    st.lists(impressions, min_size=1, max_size=12), st.lists(engagements, max_size=8), st.integers(1, 4), st.booleans()
)
@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_any_number_of_rows_at_once_gives_the_same(
    shown: list[dict[str, Any]], done: list[dict[str, Any]], at_once: int, keyed: bool
) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        for file, rows in (("log", shown), ("users", USERS), ("ev", done)):
            write(folder / f"{file}.jsonl", rows)
        wanted = settings_of(folder, keyed=keyed)
        whole = contents(folder, wanted)
        patch.setattr(duck, "ROWS_AT_ONCE", at_once)
        assert contents(folder, wanted) == whole


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_request_may_lie_in_many_files_and_its_rows_keep_their_order(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duck, "ROWS_AT_ONCE", 2)
    for part in range(3):
        rows = [
            {"t": T + 1000 * (5 - part), "user": 1, "session": "s", "item": 10 * part + at, "click": 0}
            for at in range(5)
        ]
        write(tmp_path / f"part-{part}.{kind}", rows)
    file = {"file": f"part-*.{kind}", "time": {"column": "t"}, "request": ["session"]}
    events = load(tmp_path, source(kind, impressions=file, actions={"click": {"when": "click"}}), features(), NOW)
    assert events.starts.tolist() == [0, 15]
    assert events.served_at.tolist() == [T + 3000]
    assert events.spread.tolist() == [2000]
    assert np.asarray(events.features["item"]).tolist() == [10 * part + at for part in range(3) for at in range(5)]


def test_what_is_wrong_with_all_rows_is_a_mistake_of_the_column_and_with_some_it_is_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duck, "ROWS_AT_ONCE", 2)
    wanted = features(price={"kind": "dense", "column": "price"})
    rows = [{"t": T + at, "user": 1, "price": "many", "click": 0, "rating": None, "wait": 0} for at in range(5)]
    write(tmp_path / "log.csv", rows)
    allowed = 'allowed: numbers; a text that stands for what is missing: missing: ["THE-TEXT"]'
    assert problems_of(tmp_path, source("csv"), wanted) == [
        (str(tmp_path / "log.csv"), "column price", "values such as 'many'", allowed)
    ]
    events = load_rows(tmp_path, "csv", [*rows, {**rows[0], "t": T + 9, "price": 3}], wanted)
    assert [reject.place for reject in events.rejects] == [f"line {at}, column price" for at in range(2, 7)]
    assert np.asarray(events.features["price"]).tolist() == [0, 0, 0, 0, 0, 3]


def test_rows_beyond_those_that_are_told_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejects, "KEPT", 3)
    monkeypatch.setattr(duck, "ROWS_AT_ONCE", 2)
    rows = [
        {"t": T + at if at < 2 else "soon", "user": 1, "item": 1, "click": 0, "rating": None, "wait": 0}
        for at in range(9)
    ]
    events = load_rows(tmp_path, "csv", rows)
    assert len(events.rejects) == 3
    assert events.more_rejects == {"malformed": 4}


def test_columns_on_disk_are_those_that_were_written(tmp_path: Path) -> None:
    mapped = Mapped(tmp_path)
    names, lists, vectors = Texts(mapped), FeatureColumn(mapped), FeatureColumn(mapped)
    for part in range(3):
        names.append(pa.array(["x", "", f"é{part}"]).slice(part))
        lists.append(Ragged(np.array([0, 2, 2]) + part, np.arange(5)).rows(0, 2))
        vectors.append(np.full((2, 3), part, np.float32))
    found, ragged, rows = names.finish(), lists.finish(), vectors.finish()
    assert list(tmp_path.iterdir()) == []  # nothing is left of them, however the process ends
    mapped.release()
    assert found.to_pylist() == ["x", "", "é0", "", "é1", "é2"]
    assert isinstance(ragged, Ragged)
    assert ragged.offsets.tolist() == [0, 2, 2, 4, 4, 6, 6]
    assert ragged.values.tolist() == [0, 1, 1, 2, 2, 3]
    assert np.asarray(rows).tolist() == [[part] * 3 for part in range(3) for _ in range(2)]


def test_a_log_that_is_not_used_any_more_takes_nothing(tmp_path: Path) -> None:
    events = load_rows(tmp_path, "csv", [{"t": T, "user": 1, "item": 1, "click": 1, "rating": None, "wait": 0}])
    (maps,) = (weakref.ref(events.release.__self__),)  # type: ignore[attr-defined]
    del events
    gc.collect()
    assert maps() is None

"""Live features of logs are what their definitions say of everything before them, and of nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming.features.columns import Ragged
from streaming.features.kinds import Feature, SparseFeature
from streaming.live.settings import LiveSettings, Sequence
from streaming.live.spec import LiveSpec
from streaming.records.labels import Label
from streaming.source import live_columns
from streaming.source.load import load
from streaming.source.logged_events import LoggedEvents
from tests.streaming.live.brute_force import Done, Shown, engagement_rows, lists_of, rows_of, values
from tests.streaming.source.own_logs import NOW, T, features, source, write

LABELS = {
    "click": Label(action="click", decided_by="play", window="10s"),
    "buy": Label(action="buy", window="20s"),
}
DEFINED: dict[str, Any] = {
    "rates": {
        "item": {"key": ["item"], "of": ["click", "share"], "half_life": ["1s", "2s"]},
        "pair": {"key": ["user", "item"], "of": ["buy"], "half_life": ["1h"], "prior": 0.5},
    },
    "age": {"item": {"key": ["item"], "of": ["click", "play"], "expire_after": "30s"}},
    "seen": {"item": {"key": ["user", "item"], "within": "5s"}},
    "sequences": {
        "user": {"key": ["user"], "of": ["click", "share"], "fields": ["item", "user"], "last": 3, "within": "5s"},
        "item": {"key": ["item"], "of": ["buy", "click"], "fields": ["user"], "last": 200},
    },
}
STEP = 500


def live_of(visible_after: str = "0s") -> LiveSettings:
    return LiveSettings.model_validate({"visible_after": visible_after, **DEFINED})


def features_of(live: LiveSettings) -> dict[str, Feature]:
    """A vector or all lists of each definition, one number in buckets, one short list, and the columns that keys need."""
    found: dict[str, Any] = {}
    for name, definition in live.definitions():
        place = name.replace(".", "_")
        if isinstance(definition, Sequence):
            for each in definition.numbers():
                found[f"{place}_{each}"] = {"live": f"{name}.{each}", "pool": "mean"}
        else:
            found[place] = {"live": name}
    bucket = {"live": "rates.item.click.1s", "step": 0.25}
    short = {"live": "sequences.user.item", "pool": "sum", "last": 2}
    columns = {name: {"column": name} for name in ("id", "user", "item")}
    wanted = features(**found, bucket=bucket, short=short, **columns)
    return {**wanted, **LiveSpec.of(live, LABELS).defined(wanted)}


def load_live(folder: Path, live: LiveSettings, log: list[Shown], done: list[Done]) -> LoggedEvents:
    """The log with `features_of` it."""
    write(folder / "log.parquet", rows_of(log))
    write(folder / "done.parquet", engagement_rows(log, done) or [{"at": T, "request": -1, "id": -1, "what": "click"}])
    spec = LiveSpec.of(live, LABELS)
    settings = source(
        "parquet",
        impressions={"file": "log.parquet", "time": {"column": "t"}, "request": ["request"], "impression": ["id"]},
        actions={},
        engagements={
            "file": "done.parquet",
            "time": {"column": "at"},
            "request": ["request"],
            "impression": ["id"],
            "action": "what",
        },
    )
    return load(folder, settings, features_of(live), NOW, spec)


def differences(events: LoggedEvents, live: LiveSettings, log: list[Shown], done: list[Done]) -> list[str]:
    """The numbers that differ from what the definitions say."""
    windows = LiveSpec.of(live, LABELS).windows
    expected = values(live, log, done, windows)
    ids = np.asarray(events.features["id"]).tolist()
    found = []
    for name, definition in live.definitions():
        if isinstance(definition, Sequence):
            for each in definition.numbers():
                lists = lists_of(events.features[f"{name.replace('.', '_')}_{each}"])
                pairs = zip(ids, lists, strict=True)
                found += [f"{name}.{each} of {row}: {got}" for row, got in pairs if got != expected[name][row][each]]
            continue
        column = events.features[name.replace(".", "_")]
        assert isinstance(column, np.ndarray) and column.dtype == np.float32
        wanted = np.array([[expected[name][row][each] for each in definition.numbers()] for row in ids])
        assert column.shape == wanted.shape
        wrong = ~np.isclose(column, wanted, rtol=1e-6, atol=1e-6)
        found += [f"{name} of {ids[row]}: {column[row]}, not {wanted[row]}" for row in np.flatnonzero(wrong.any(1))]
    return found


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[Shown], list[Done]]:
    """A log with equal times, missing keys, long pauses, repeats, and engagements that no joiner takes; in any order."""
    steps = st.one_of(st.integers(0, 12), st.integers(0, 12), st.integers(0, 400))
    requests = draw(st.lists(st.tuples(steps, st.integers(1, 3)), min_size=1, max_size=12))
    users, items = st.sampled_from([1, 2, None]), st.sampled_from([7, 8, 9, None])
    log = []
    for request, (step, count) in enumerate(requests):
        user = draw(users)
        for _ in range(count):
            ids = {"user": user, "item": draw(items)}
            log.append(Shown(len(log), request, T + STEP * step, ids))
    actions = st.sampled_from(["click", "buy", "play", "share", "other"])
    delays = st.one_of(st.integers(0, 8), st.integers(-1, 60))
    done = [
        Done(each.id, action, each.served_at + STEP * delay)
        for each, action, delay in draw(st.lists(st.tuples(st.sampled_from(log), actions, delays), max_size=30))
    ]
    done += draw(st.lists(st.builds(Done, st.just(-5), actions, st.just(T)), max_size=1))
    return draw(st.permutations(log)), draw(st.permutations(done))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logs(), st.sampled_from(["0s", "500ms", "2s"]), st.sampled_from([1, 4, 1 << 18]))
def test_a_number_is_what_its_definition_says(
    tmp_path: Path, drawn: tuple[list[Shown], list[Done]], visible_after: str, at_once: int
) -> None:
    log, done = drawn
    live = live_of(visible_after)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live_columns, "_AT_ONCE", at_once)
        events = load_live(tmp_path, live, log, done)
    assert differences(events, live, log, done) == []
    clicked = np.asarray(events.features["rates_item"])[:, 1]
    assert np.asarray(events.features["bucket"]).tolist() == np.floor(clicked / np.float32(0.25)).tolist()
    whole = lists_of(events.features["sequences_user_item"])
    assert lists_of(events.features["short"]) == [each[-2:] for each in whole]


def busy_log(seed: int = 3) -> tuple[list[Shown], list[Done]]:
    """Requests half a second apart, most of whose impressions are clicked at once or soon."""
    rng = np.random.default_rng(seed)
    log, done = [], []
    for request in range(60):
        for _ in range(2):
            ids = {"user": int(rng.integers(3)), "item": int(rng.integers(4))}
            log.append(Shown(len(log), request, T + STEP * request, ids))
            if rng.random() < 0.7:
                done.append(Done(len(log) - 1, "click", log[-1].served_at + STEP * int(rng.integers(3))))
    return log, done


def test_a_leak_is_found(tmp_path: Path) -> None:
    """What is visible too early, and a request that counts itself, differ from the definitions in many places."""
    log, done = busy_log()
    late, at_once = live_of("2s"), live_of("0s")
    assert differences(load_live(tmp_path, late, log, done), late, log, done) == []
    assert len(differences(load_live(tmp_path, at_once, log, done), late, log, done)) > 100
    counts_itself = at_once.model_copy(update={"visible_after": -1})
    assert len(differences(load_live(tmp_path, counts_itself, log, done), at_once, log, done)) > 100


def test_a_log_gives_the_same_bits_however_it_is_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, done = busy_log()
    whole = load_live(tmp_path, live_of("2s"), log, done)
    monkeypatch.setattr(live_columns, "_AT_ONCE", 7)
    pieces = load_live(tmp_path, live_of("2s"), log[::-1], done[::-1])
    for name in ("rates_item", "rates_pair", "age_item", "seen_item"):
        one, other = (np.asarray(each.features[name])[np.argsort(each.features["id"])] for each in (whole, pieces))
        assert np.allclose(one, other, rtol=1e-6), "rows of one request may be in another order"
    again = load_live(tmp_path, live_of("2s"), log[::-1], done[::-1])
    for name, column in pieces.features.items():
        if isinstance(column, Ragged):
            assert lists_of(again.features[name]) == lists_of(column)
        else:
            assert np.asarray(again.features[name]).tobytes() == column.tobytes()


def test_keys_are_counted(tmp_path: Path) -> None:
    log, done = busy_log()
    found = load_live(tmp_path, live_of(), log, done).live
    assert found["rates.item"].keys == len({each.ids["item"] for each in log})
    assert all(each.bytes >= 16 * each.keys > 0 for each in found.values())


def test_a_bucket_is_a_sparse_feature() -> None:
    found = features(bucket={"live": "rates.item.click.1s", "step": 0.25}, all={"live": "rates.item"})
    assert isinstance(found["bucket"], SparseFeature) and found["all"].kind == "vector"

"""A replica takes what the product has: its answers are those of the features that a replay makes of the same values."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console

from basis.problems import Problems
from minutely.config import Pipeline
from minutely.replays.replay import replay
from minutely.services.serve import make_replica_service
from paramserver.files import LocalFiles
from serving.http import Service
from serving.inputs import Inputs
from serving.requests import Query
from serving.service import ReplicaService
from streaming.clock import WallClock
from streaming.features.columns import Column, Ragged, Repeated, pack, slice_columns
from streaming.features.kinds import NUMBERS_ALLOWED, SparseFeature
from streaming.records.events import Request
from streaming.source.load import load
from streaming.source.logged_events import LoggedEvents
from streaming.source.settings import SideFile
from tests.serving.asgi import ask

START = 1_700_000_000_000
OF_REQUEST = {"user": "user_id"}
OF_CANDIDATES = {  # features, and the key of a side table that is no feature, by the columns that hold them
    "item": "item",
    "tags": "tags",
    "first_tag": "tags",
    "words": "words",
    "length": "length_ms",
    "price": "price",
    "stars": "stars",
    "age": "added",
    "picture": "picture",
    "made_by": "made_by",
}
CONFIG: dict[str, Any] = {
    "name": "raw",
    "source": {
        "impressions": {"file": "log.jsonl", "time": {"column": "t"}, "request": ["user_id", "t"]},
        "sides": {
            "users": {"file": "users.csv", "key": "user_id"},
            "makers": {"file": "makers.jsonl", "key": "maker", "on": "made_by"},
            "deals": {"file": "deals.jsonl", "key": ["user", "item"], "on": ["user_id", "item"]},
        },
        "actions": {"click": {"when": "clicked", "delay": "5s"}},
    },
    "features": {
        "user": {"column": "user_id", "scope": "request"},
        "item": {"column": "item"},
        "tags": {"column": "tags", "split": "|", "pool": "mean"},
        "first_tag": {"column": "tags", "split": "|", "pool": "first"},
        "words": {"column": "words", "pool": "sum"},
        "length": {"column": "length_ms", "bucket": "log2"},
        "price": {"kind": "dense", "column": "price", "transform": "log"},
        "stars": {"kind": "dense", "column": "stars", "transform": "square"},
        "age": {"kind": "dense", "column": "added", "transform": "age", "unit": "s"},
        "picture": {"kind": "vector", "column": "picture", "size": 2},
        "hour": {"time": "hour", "scope": "request"},
        "degree": {"column": "degree", "side": "users", "scope": "request"},
        "likes": {"column": "likes", "side": "users", "split": " ", "pool": "mean"},
        "brand": {"column": "brand", "side": "makers"},
        "founded": {"kind": "dense", "column": "founded", "side": "makers", "transform": "age"},
        "wares": {"column": "wares", "side": "makers", "pool": "mean"},
        "deal": {"kind": "dense", "column": "percent", "side": "deals"},
        "size": {"request": "size", "scope": "request"},
        "crowd": {"kind": "dense", "request": "size", "transform": "inverse", "floor": 1.0},
        "user_hour": {"cross": ["user", "hour"]},
        "item_size": {"cross": ["item", "size"]},
        "tag_length": {"cross": ["first_tag", "length"]},
        "degree_brand": {"cross": ["degree", "brand"]},
    },
    "labels": {"click": {"action": "click", "window": "1m"}},
    "model": {"dim": 4, "hidden": [8]},
    "serve": {"log": True, "max_body_bytes": 1 << 20},
}


def _rows() -> list[dict[str, Any]]:
    """Logged impressions as products have them: gaps, numbers as texts, texts beside numbers, keys that no side table has."""
    random = np.random.default_rng(4)
    rows = []
    for request in range(60):
        at, user = START + request * 61_000, f"u{request % 9}" if request % 3 else request % 9
        for item in random.choice(30, 4 + request % 2, replace=False).tolist():
            words = [int(each) for each in random.integers(0, 9, item % 4)]
            rows.append(
                {
                    "t": at,
                    "user_id": user,
                    "item": item if item % 2 else f"item {item}",
                    "tags": None if item % 7 == 0 else "|".join(["new", f"t{item % 5}", str(item % 3)][item % 2 :]),
                    "words": None if item % 5 == 0 else [*words, "on sale"][item % 2 :],
                    "length_ms": [item * 1000, str(item * 999), None][item % 3],
                    "price": [item + 0.1, None, f"{item}.75", 0][item % 4],
                    "stars": [item / 7, None][item % 2],
                    "added": [at / 1000 - item * 86_400, None, "2023-11-01T10:00:00Z"][item % 3],
                    "picture": None if item % 6 == 0 else [item / 3, None if item % 5 == 0 else -1.5],
                    "made_by": ["acme", 17, "17", "nobody", None][item % 5],
                    "clicked": item % 3 == 0,
                }
            )
    return rows


def _deals() -> list[dict[str, Any]]:
    """Items that are cheaper for some users: a key of one column of the request and one of each candidate."""
    users = [*(f"u{user}" for user in range(9)), *map(str, range(9))]
    items = [*(f"item {item}" for item in range(0, 30, 4)), *map(float, range(1, 30, 6))]
    return [
        {"user": user, "item": item, "percent": at}
        for at, (user, item) in enumerate((user, item) for user in users for item in items)
    ]


MAKERS = [
    {"maker": "acme", "brand": "Acme", "founded": "1999-01-01", "wares": ["a", 5]},
    {"maker": 17, "brand": None, "founded": 1_500_000_000_000, "wares": None},
]


def _write(folder: Path, makers: list[dict[str, Any]]) -> None:
    aside = folder / "makers.new"
    aside.write_text("".join(json.dumps(row) + "\n" for row in makers))
    aside.replace(folder / "makers.jsonl")


class SetClock(WallClock):
    """A clock that a test sets, forwards and back."""

    at_ms = START

    def now_ms(self) -> int:
        return self.at_ms


class World:
    """A replay's log, and a replica of what it published."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, _rows()
        (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        users = "".join(f"u{user},d{user % 3},a b{user}\n{user}.0,{user},\n" for user in range(7))
        (folder / "users.csv").write_text(f"user_id,degree,likes\n{users}")
        (folder / "deals.jsonl").write_text("".join(json.dumps(deal) + "\n" for deal in _deals()))
        _write(folder, MAKERS)
        self.pipeline = Pipeline.model_validate({**CONFIG, "source": {**CONFIG["source"], "dir": str(folder)}})
        run = replay(self.pipeline, {"60s": 60_000}, 0.0, folder / "run", Console(quiet=True)).run
        self.clock = SetClock()
        self.replica: ReplicaService = make_replica_service(
            self.pipeline, LocalFiles(run.deltas, durable=False), self.clock, "replica"
        )
        self.service = Service(self.replica, lambda: None)
        self.replica.replica.pull()
        self.replica.scoring.start()

    def events(self) -> LoggedEvents:
        """The log as a replay reads it now."""
        return load(self.folder, self.pipeline.source, self.pipeline.features, time.time_ns() // 1_000_000)

    def body(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The ranking request that the product would send for these rows of its log."""
        return {
            "features": {name: rows[0][column] for name, column in OF_REQUEST.items()},
            "candidates": {
                "ids": list(range(len(rows))),
                "features": {name: [row[column] for row in rows] for name, column in OF_CANDIDATES.items()},
            },
        }

    def at(self, request: int) -> list[dict[str, Any]]:
        """The rows of a request, in the order of the log, with the clock at its time."""
        rows = [row for row in self.rows if row["t"] == START + request * 61_000]
        self.clock.at_ms = rows[0]["t"]
        return [dict(row) for row in rows]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("raw"))
    yield made
    made.replica.scoring.stop()


def test_raw_values_are_scored_and_logged_as_the_replays_features(world: World) -> None:
    events, features = world.events(), world.pipeline.features
    assert all(
        len(np.unique(column.values if isinstance(column, Ragged) else column)) > 1
        for column in events.features.values()
    )
    differing = set()
    for request in range(len(events.starts) - 1):
        begin, end = events.starts[request : request + 2].tolist()
        wanted = world.replica.replica.score(slice_columns(events.features, begin, end), end - begin)[:, 0]
        body = world.body(world.at(request))
        for msgpack in (False, True):
            status, answer = ask(world.service, "POST", "/v1/rank", body, msgpack=msgpack)
            assert status == 200, answer
            order = np.array(answer["ids"])
            assert np.array_equal(np.array(answer["score"], np.float32), wanted[order])
            record = msgspec.msgpack.decode(world.replica.outbox.take(1)[0].value, type=Request)
            for name, feature in features.items():
                column = slice_columns(events.features, begin, end)[name]
                assert not isinstance(column, Repeated)
                if feature.scope == "request":
                    assert record.shared[name] == pack(column, 0, 1), name
                else:
                    taken = column.take(order) if isinstance(column, Ragged) else column[order]
                    assert record.features[name] == pack(taken, 0, len(order)), name
        differing.add(wanted.tobytes())
    assert len(differing) > 50


def test_packed_columns_hold_raw_values_too(world: World) -> None:
    rows = world.at(3)
    for row in rows:
        row.update(
            item=5, words=[1, 2], length_ms=1000, price=2.5, stars=0.5, added=START / 1000 - 60, picture=[1.0, 2.0]
        )
        row.update(made_by=17)
    body = world.body(rows)
    plain = ask(world.service, "POST", "/v1/rank", body, msgpack=True)[1]
    packed = {name: np.array(body["candidates"]["features"][name]) for name in OF_CANDIDATES if "tag" not in name}
    kinds = {"item": "<i8", "made_by": "<i8", "length": "<f8", "age": "<f8"}
    for name, values in packed.items():
        body["candidates"]["features"][name] = values.astype(kinds.get(name, "<f4")).tobytes()
    words = np.array([[1, 2]] * len(rows), "<i8")
    body["candidates"]["features"]["words"] = [np.full(len(rows), 2, "<i4").tobytes(), words.tobytes()]
    status, answer = ask(world.service, "POST", "/v1/rank", body, msgpack=True)
    assert status == 200, answer
    assert answer["score"] == plain["score"]
    body["candidates"]["features"]["age"] = b"1234567"
    status, answer = ask(world.service, "POST", "/v1/rank", body, msgpack=True)
    assert (status, answer["error"]) == (
        422,
        f"candidates.features.age: 7 bytes; allowed: {8 * len(rows)}, a float64 for each candidate",
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("item", 1.5, "item: 1.5: numbers with fractions; allowed: an integer or a text"),
        ("item", {"a": 1}, "item: {'a': 1}: "),
        ("item", [1], "item: [1]: "),
        ("tags", 7.5, None),
        ("tags", ["new"], "tags: ['new']: "),
        (
            "words",
            "new",
            "words: 'new': type string: one value an impression, lists of ids are expected; allowed: a list of",
        ),
        ("words", [1.5], "words: [1.5]: numbers with fractions; allowed: a list of integers or texts"),
        ("length", "long", "length: 'long' is not a number; allowed: a number"),
        ("length", [3], "length: [3]: "),
        ("price", "dear", "price: 'dear' is not a number; allowed: a number"),
        ("price", 10**400, "price: "),
        ("stars", 1e300, "stars: 1e+300; " + NUMBERS_ALLOWED),
        ("age", "yesterday", "age: 'yesterday' is not a time; allowed: a time: s since 1970, or a text as in ISO 8601"),
        ("age", {"at": 3}, "age: {'at': 3}: "),
        ("age", True, None),
        ("age", "2023-02-31", "age: '2023-02-31' is not a time"),
        ("picture", [1, 2, 3], "picture: [1, 2, 3]: a list of 3 numbers; allowed: a list of 2 numbers"),
        ("picture", [1, "dark"], "picture: [1, 'dark'] is not a list of 2 numbers; allowed: a list of 2 numbers"),
        ("picture", [1, 1e39], "picture: [1, 1e+39]; " + NUMBERS_ALLOWED),
        ("made_by", 2.5, "made_by: 2.5: numbers with fractions"),
    ],
    ids=str,
)
@pytest.mark.parametrize("msgpack", [False, True])
def test_errors_name_the_feature_the_value_and_what_is_allowed(
    world: World, name: str, value: Any, said: str | None, msgpack: bool
) -> None:
    body = world.body(world.at(7))
    body["candidates"]["features"][name][2] = value
    if msgpack and isinstance(value, int) and value > 2**64:
        return  # msgpack has no such number
    status, answer = ask(world.service, "POST", "/v1/rank", body, msgpack=msgpack)
    if said is None:
        assert status == 200, answer
    else:
        assert status in (400, 422) and (said in answer["error"] or status == 400), answer


def test_requests_are_scored_together_as_alone(world: World) -> None:
    """Lists that a request has once stand beside lists of each row."""
    reader, now_ms = world.replica.reader, START
    asked: list[Query] = [
        reader.rank(msgspec.json.encode(world.body(world.at(request))), msgpack=False, now_ms=now_ms)
        for request in (1, 2, 4)
    ]
    asked.append(Query({name: _spread(column) for name, column in asked[0].columns.items()}, asked[0].count))
    together = world.replica.ranker.answer(asked)
    assert together is not None
    for each, answer in zip(asked, together, strict=True):
        assert np.allclose(answer.scores, world.replica.replica.score(each.columns, each.count), rtol=1e-5, atol=1e-7)
    # Not to the bit: where a row stands in a batch decides whether it is summed by vectors or at their tail.
    assert np.allclose(together[0].scores, together[3].scores, rtol=1e-5, atol=1e-7)


def _spread(column: Column | Repeated) -> Column:
    return column.take(np.arange(column.counts.sum())) if isinstance(column, Repeated) else column


def test_side_tables_are_read_again_when_their_files_change(world: World) -> None:
    sides, request = world.replica.sides, 11

    def score() -> list[float]:
        found: list[float] = ask(world.service, "POST", "/v1/rank", world.body(world.at(request)))[1]["score"]
        return found

    before = score()
    try:
        _write(world.folder, [{**MAKERS[0], "brand": "Umbrella"}, {**MAKERS[1], "founded": 0}])
        sides.step()
        assert score() == before, "it may still be being written"
        sides.step()
        events = world.events()
        begin, end = events.starts[request : request + 2].tolist()
        wanted = world.replica.replica.score(slice_columns(events.features, begin, end), end - begin)[:, 0]
        assert score() == np.sort(wanted)[::-1].tolist() != before
        after = score()
        (world.folder / "makers.jsonl").write_text("{\n")
        sides.step()
        sides.step()
        assert score() == after, "what was read last is served"
        problem = ask(world.service, "GET", "/v1/status")[1]["problem"]
        assert "side table makers" in problem and "makers.jsonl" in problem
        (world.folder / "makers.jsonl").unlink()
        sides.step()
        sides.step()
        assert score() == after
    finally:
        _write(world.folder, MAKERS)
    sides.step()
    sides.step()
    assert score() == before
    assert ask(world.service, "GET", "/v1/status")[1]["problem"] is None


def test_a_list_of_the_request_is_not_copied_for_each_candidate(world: World) -> None:
    features = {
        "seen": SparseFeature(column="seen", pool="mean", scope="request"),
        "item": SparseFeature(column="item"),
    }
    source = {**CONFIG["source"], "dir": str(world.folder), "sides": {}}
    pipeline = Pipeline.model_validate({**CONFIG, "source": source, "features": features})
    replica = make_replica_service(pipeline, LocalFiles(world.folder / "none", durable=False), world.clock, "lists")
    count, ids = 2000, np.random.default_rng(1).integers(0, 10**6, 5000).tolist()
    body = {"features": {"seen": ids}, "candidates": {"ids": list(range(count)), "features": {"item": ids[:count]}}}
    payload = msgspec.json.encode(body)
    assert len(payload) < 60_000
    tracemalloc.start()
    try:
        asked = replica.reader.rank(payload, msgpack=False, now_ms=START)
        scored = replica.replica.score_with_versions(asked.columns, count)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 << 20, f"{peak_bytes} bytes for a body of {len(payload)}"
    tiled: dict[str, Column] = {
        "item": np.array(ids[:50]),
        "seen": Ragged(np.arange(51) * 5000, np.tile(np.array(ids), 50)),
    }
    assert np.array_equal(scored.scores[:50], replica.replica.score(tiled, 50))


def test_where_keys_of_side_tables_come_from() -> None:
    sides = {"makers": SideFile(file="x", key="maker", on="made_by"), "unused": SideFile(file="x", key="no")}
    brand = SparseFeature(column="brand", side="makers")
    made_by = SparseFeature(column="made_by")
    of_feature = Inputs({"from": made_by, "brand": brand}, sides)
    assert of_feature.keys == {"makers": [("from", False)]} and list(of_feature.of_candidates) == ["from"]
    alone = Inputs({"brand": brand}, sides)
    assert alone.keys == {"makers": [("made_by", False)]} and list(alone.of_candidates) == ["made_by"]
    of_request = Inputs({"from": made_by, "brand": brand.model_copy(update={"scope": "request"})}, sides)
    assert of_request.keys == {"makers": [("made_by", True)]}, "candidates have several keys, their request one brand"
    assert (list(of_request.of_request), list(of_request.of_candidates)) == (["made_by"], ["from"])
    with pytest.raises(Problems, match="made_by; allowed: no feature named made_by"):
        Inputs({"made_by": SparseFeature(column="made_by", pool="mean"), "brand": brand}, sides)
    pair = {"makers": SideFile(file="x", key=["maker", "land"], on=["made_by", "country"])}
    of_both = Inputs({"from": SparseFeature(column="country", scope="request"), "brand": brand}, pair)
    assert of_both.keys == {"makers": [("made_by", False), ("from", True)]}
    assert (list(of_both.of_request), list(of_both.of_candidates)) == (["from"], ["made_by"])

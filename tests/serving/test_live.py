"""Live features of requests: values are those of a replay and are logged as they were scored; without them ranking goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minutely.config import Pipeline
from minutely.services.serve import make_replica_service
from serving.http import Service
from serving.live import LiveValues
from serving.service import ReplicaService
from streaming.clock import EventClock
from streaming.features.columns import Column, Ragged, ScoringColumns, repeated, unpack
from streaming.features.ids import MISSING
from streaming.features.kinds import live_address
from streaming.join.upgrades import Upgrades
from streaming.live.core import Happened, LiveCore
from streaming.live.published import published_keys
from streaming.log import Record
from streaming.records.events import MAX_TIME_MS, Request, decode_request
from streaming.source.load import load
from streaming.source.logged_events import LoggedEvents
from tests.serving.asgi import answered, ask
from tests.serving.publishing import Publisher, make_pipeline
from tests.streaming.live.brute_force import Done, Shown, engagement_rows, events_of, lists_of, rows_of
from tests.streaming.live.publishing import Publishing, Records
from tests.streaming.source.own_logs import NOW, T, source, write

LIVE: dict[str, Any] = {
    "visible_after": "0s",
    "rates": {
        "item": {"key": ["item"], "of": ["click", "buy"], "half_life": ["10s", "1h"]},
        "user": {"key": ["user"], "of": ["click"], "half_life": ["10m"]},
    },
    "age": {"user": {"key": ["user"], "of": ["click"], "expire_after": "1m"}},
    "seen": {"pair": {"key": ["user", "item"], "within": "20s"}},
    "sequences": {
        "user": {"key": ["user"], "of": ["click", "buy"], "fields": ["item"], "last": 4, "within": "20s"},
        "item": {"key": ["item"], "of": ["buy"], "fields": ["user", "item"]},
    },
}
FEATURES: dict[str, Any] = {
    "user_rates": {"live": "rates.user", "scope": "request"},
    "item_rates": {"live": "rates.item"},
    "clicked": {"live": "rates.item.click.10s", "step": 0.25},
    "user_clicked": {"live": "rates.user.click.10m", "step": 0.25, "scope": "request"},
    "user_ages": {"live": "age.user"},
    "pair_seen": {"live": "seen.pair"},
    "user_items": {"live": "sequences.user.item", "pool": "mean", "scope": "request"},
    "user_actions": {"live": "sequences.user.action", "pool": "sum"},
    "last_buyers": {"live": "sequences.item.user", "pool": "mean", "last": 2},
    "bought_ago": {"live": "sequences.item.age", "pool": "mean"},
}
STEP = 500


class World:
    """A replica in this process, and what keeps its live features."""

    def __init__(self, folder: Path) -> None:
        self.pipeline: Pipeline = make_pipeline(
            features=FEATURES, live=LIVE, serve={"log": True, "fresh_within": "1m", "max_candidates": 100}
        )
        publisher = Publisher(self.pipeline, folder / "deltas")
        publisher.publish(T)
        self.clock = EventClock(T)
        self.replica: ReplicaService = make_replica_service(self.pipeline, publisher.files, self.clock, "replica")
        self.replica.puller.step()
        self.service = Service(self.replica, lambda: None)
        self.publishing = Publishing(self.pipeline.live_spec(), self.pipeline.features)
        assert self.replica.live is not None
        self.live: LiveValues = self.replica.live

    def fold(self, records: Records) -> None:
        """As the thread that reads the topic does it."""
        for partition, _, value in records:
            self.live.fold(partition, [Record(0, value, self.clock.now_ms())])
        self.live.heard(0)

    def rank(self, shown: list[Shown], **more: Any) -> dict[str, Any]:
        """The answer to a request for these impressions."""
        status, answer = ask(self.service, "POST", "/v1/rank", body_of(shown, **more))
        assert status == 200, answer
        found: dict[str, Any] = answer
        return found

    def logged(self) -> Request:
        """The record of the last answer."""
        return decode_request(self.replica.outbox.take(1 << 30)[-1].value, MAX_TIME_MS)

    def columns(self, request: Request) -> ScoringColumns:
        """The features of a record, as they are scored, for the order in which its impressions were asked."""
        places = np.argsort([int(each.split(".")[-1]) for each in request.impression_ids])
        found: dict[str, Any] = {}
        for name, feature in self.pipeline.features.items():
            if name in request.shared:
                found[name] = repeated(unpack(feature, [request.shared[name]]), len(places))
            elif name in request.features:
                column = unpack(feature, [request.features[name]])
                found[name] = column[places] if isinstance(column, np.ndarray) else column.take(places)
        return found


def body_of(shown: list[Shown], **more: Any) -> dict[str, Any]:
    count = len(shown)
    items = [each.ids["item"] for each in shown]
    others = {"tags": [[]] * count, "price": [1.0] * count, "picture": [[0, 1, 2]] * count}
    candidates = {"ids": list(range(count)), "features": {"item": items, **others}}
    return {"features": {"user": shown[0].ids["user"]}, "candidates": candidates, **more}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path)
    found.replica.scoring.start()
    yield found
    found.replica.scoring.stop()


def a_log(seed: int) -> tuple[list[Shown], list[Done]]:
    """Requests of some impressions each, of few users and items and sometimes of unknown ones, many of which are clicked."""
    rng = np.random.default_rng(seed)
    log: list[Shown] = []
    done = []
    for request in range(60):
        user = None if rng.random() < 0.1 else int(rng.integers(4))
        at = T + STEP * request * int(1 + 20 * (request > 50))
        for item in rng.choice(8, 1 + request % 3, replace=False).tolist():
            log.append(Shown(len(log), request, at, {"user": user, "item": None if item == 7 else item}))
            for action, share in (("click", 0.6), ("buy", 0.2)):
                if rng.random() < share:
                    done.append(Done(len(log) - 1, action, at + STEP * int(rng.integers(4))))
    return log, done


def replayed(folder: Path, pipeline: Pipeline, log: list[Shown], done: list[Done]) -> LoggedEvents:
    """The log with its live features, as a replay computes them."""
    write(folder / "log.parquet", rows_of(log))
    write(folder / "done.parquet", engagement_rows(log, done))
    named = {"request": ["request"], "impression": ["id"]}
    settings = source(
        "parquet",
        impressions={"file": "log.parquet", "time": {"column": "t"}, **named},
        actions={},
        engagements={"file": "done.parquet", "time": {"column": "at"}, **named, "action": "what"},
    )
    wanted = {name: each for name, each in pipeline.features.items() if name in ("user", "item", *FEATURES)}
    return load(folder, settings, wanted, NOW, pipeline.live_spec())


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_served_is_what_a_replay_computes(world: World, tmp_path: Path, seed: int) -> None:
    """And what is scored is what is logged."""
    log, done = a_log(seed)
    events = events_of(log, done, world.pipeline.live_spec().windows)
    expected = replayed(tmp_path, world.pipeline, log, done)
    assert expected.requests == 60
    world.live.caught_up()
    folded = 0
    for request in range(expected.requests):
        shown = [each for each in log if each.request == request]
        world.clock.move_to(shown[0].served_at)
        before = [event for event in events if event.at < shown[0].served_at]
        if before[folded:]:
            world.fold(world.publishing.take(before[folded:]))
        folded = len(before)
        world.live.heard(0)
        assert "missing" not in world.rank(shown, limit=len(shown))
        logged = world.logged()
        assert (logged.columns, logged.served_at) == ("all", shown[0].served_at)
        assert {name for name in FEATURES if name in logged.shared} == {"user_rates", "user_clicked", "user_items"}
        columns = world.columns(logged)
        rows = slice(int(expected.starts[request]), int(expected.starts[request + 1]))
        for name in FEATURES:
            wanted = expected.features[name]
            if isinstance(wanted, Ragged):
                assert lists_of(columns[name]) == lists_of(wanted.rows(rows.start, rows.stop)), (name, request)
            else:
                found = np.asarray(columns[name])
                assert found.dtype == wanted.dtype and np.allclose(found, wanted[rows], rtol=1e-5, atol=1e-6), name
        scores = world.replica.replica.score(columns, len(shown))
        assert np.allclose(
            np.frombuffer(logged.scores, "<f4").reshape(-1, 2)[np.argsort(_places(logged))], scores, atol=1e-6
        )
    assert np.unique(np.asarray(expected.features["clicked"])).size > 4, "there is something to tell apart"
    longest = [max(map(len, lists_of(expected.features[name]))) for name in ("user_items", "last_buyers", "bought_ago")]
    assert longest[:2] == [4, 2] and longest[2] > 2


def _places(request: Request) -> list[int]:
    return [int(each.split(".")[-1]) for each in request.impression_ids]


def test_a_replica_that_has_not_caught_up_ranks_without_and_says_so(world: World) -> None:
    log, done = a_log(1)
    events = events_of(log, done, world.pipeline.live_spec().windows)
    world.fold(world.publishing.take(events))
    assert ask(world.service, "GET", "/v2/health/ready") == (
        503,
        {"ready": False, "state": "live features are being read"},
    )
    world.live.problem = "live features: nobody answers"
    assert ask(world.service, "GET", "/v2/health/ready")[1]["state"] == "live features: nobody answers"
    assert ask(world.service, "GET", "/v1/status")[1]["problem"] == "live features: nobody answers"
    answer = world.rank(log[1:3])
    assert answer["missing"] == list(FEATURES)
    logged = world.logged()
    assert logged.columns == "some"
    assert not {*logged.shared, *logged.features} & FEATURES.keys()
    Upgrades(world.pipeline.join_spec()).accept(logged, None)  # joiners take it
    assert logged.columns == "some"

    world.live.caught_up()
    world.live.heard(0)
    assert ask(world.service, "GET", "/v2/health/ready")[0] == 200
    known = world.rank(log[1:3])
    assert "missing" not in known and known["score"] != answer["score"]
    assert world.logged().columns == "all"
    said = ask_metrics(world.service)
    assert said["minutely_serve_missing_live_total"] == 1


def ask_metrics(service: Service) -> dict[str, float]:
    lines = answered(service, "GET", "/metrics", b"", {})[2].decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#"}


def test_values_of_long_ago_are_not_served(world: World) -> None:
    """Brokers that are away keep no replica from answering, nor from being ready; what it knew is used for ``fresh_within``."""
    log, _ = a_log(1)
    world.live.caught_up()
    world.live.heard(0)
    world.clock.move_to(T + 60_000)
    assert "missing" not in world.rank(log[:1])
    world.clock.move_to(T + 60_001)
    assert world.rank(log[:1])["missing"] == list(FEATURES)
    assert ask(world.service, "GET", "/v2/health/ready")[0] == 200
    world.live.heard(0)
    assert "missing" not in world.rank(log[:1])


def test_what_was_read_before_is_served_until_it_has_caught_up_again(world: World) -> None:
    log, done = a_log(1)
    events = events_of(log, done, world.pipeline.live_spec().windows)
    world.clock.move_to(events[-1].at + 1)
    records = world.publishing.take(events)
    world.fold(records)
    world.live.caught_up()
    score = world.rank(log[1:3])["score"]
    world.live.begin()
    world.fold(records[:1])
    assert world.rank(log[1:3])["score"] == score
    world.live.caught_up()
    assert world.rank(log[1:3])["score"] != score
    world.fold(records[1:])
    assert world.rank(log[1:3])["score"] == score


def test_products_do_not_send_live_features(world: World) -> None:
    document = ask(world.service, "GET", "/openapi.json")[1]["components"]["schemas"]
    inputs = {*document["RankRequest"]["properties"]["features"]["properties"]}
    inputs |= {*document["Candidates"]["properties"]["features"]["properties"]}
    assert inputs == {"user", "item", "tags", "price", "picture"}
    metadata = ask(world.service, "GET", "/v2/models/test")[1]
    assert {each["name"] for each in metadata["inputs"]} == {*inputs, "tags.lengths"}
    shown = a_log(1)[0][:2]
    body = body_of(shown)
    body["features"]["user_rates"] = [9.0, 9.0]
    world.live.caught_up()
    world.live.heard(0)
    assert ask(world.service, "POST", "/v1/rank", body)[0] == 200
    assert np.asarray(world.columns(world.logged())["user_rates"])[0, 0] == 0, (
        "what is sent is not taken for what is known"
    )
    assert ask_metrics(world.service)['minutely_serve_unknown_features_total{feature="user_rates"}'] == 1


def test_inference_is_by_the_same_values(world: World) -> None:
    log, done = a_log(1)
    events = events_of(log, done, world.pipeline.live_spec().windows)
    world.clock.move_to(events[-1].at + 1)
    world.fold(world.publishing.take(events))
    shown = [each for each in log if each.ids["user"] is not None and each.ids["item"] is not None][:1]

    def tensor(name: str, kind: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
        return {"name": name, "datatype": kind, "shape": shape, "data": data}

    body = {
        "inputs": [
            tensor("user", "INT64", [1], [shown[0].ids["user"]]),
            tensor("item", "INT64", [1], [shown[0].ids["item"]]),
            tensor("tags", "INT64", [0], []),
            tensor("tags.lengths", "INT64", [1], [0]),
            tensor("price", "FP32", [1], [1.0]),
            tensor("picture", "FP32", [1, 3], [0, 1, 2]),
        ]
    }
    answer = ask(world.service, "POST", "/v2/models/test/infer", body)[1]
    assert answer["parameters"]["missing"] == ", ".join(FEATURES)
    world.live.caught_up()
    answer = ask(world.service, "POST", "/v2/models/test/infer", body)[1]
    assert "missing" not in answer["parameters"]
    assert answer["outputs"][0]["data"] == pytest.approx(world.rank(shown)["scores"]["click"])


def test_metrics_say_what_is_kept_and_how_old_it_is(world: World) -> None:
    log, done = a_log(1)
    records = world.publishing.take(events_of(log, done, world.pipeline.live_spec().windows))
    assert 'minutely_live_age_seconds{replica="replica"}' not in ask_metrics(world.service)
    world.fold([*records, (0, b"", b"\xc1")])
    world.live.unreadable = 3
    world.live.heard(7)
    world.clock.move_to(T + 2500)
    said = ask_metrics(world.service)
    users, items = ({each.ids[part] for each in log} - {None} for part in ("user", "item"))
    assert said['minutely_live_keys{definition="rates.user"}'] == len(users)
    assert said['minutely_live_keys{definition="rates.item"}'] == len(items)
    assert said['minutely_live_bytes{definition="seen.pair"}'] > 0
    assert said["minutely_live_records_total"] == len(records) + 1
    assert said['minutely_live_skipped_total{reason="malformed"}'] == 1
    assert said['minutely_live_skipped_total{reason="unreadable"}'] == 3
    assert said['minutely_live_lag{replica="replica"}'] == 7
    assert said['minutely_live_age_seconds{replica="replica"}'] == 2.5


def test_a_config_without_live_features_has_none(tmp_path: Path) -> None:
    publisher = Publisher(make_pipeline(live=LIVE), tmp_path)
    replica = make_replica_service(publisher.pipeline, publisher.files, EventClock(T), "replica")
    assert replica.live is None
    assert not [name for name in ask_metrics(Service(replica, lambda: None)) if name.startswith("minutely_live")]


def test_a_value_is_of_one_state_of_its_key(world: World) -> None:
    """In each state all times of a key are the same; what is read while others are folded in is one of them, whole."""
    definition = "age.user"
    pipeline = make_pipeline(
        features={"ages": {"live": definition, "scope": "request"}},
        live={"age": {"user": {"key": ["user"], "of": ["click", "buy", "seen"]}}},
    )
    live = LiveValues(pipeline.live_spec(), pipeline.features, world.clock, 1 << 40)
    (identity,) = pipeline.live_spec().identities(pipeline.features).values()
    keys = np.arange(200)
    states = []
    for state in range(64):
        core = LiveCore(pipeline.live, ["click", "buy", "seen"])
        for what in (1, 2, 3, 4):
            at = np.full(len(keys), T + 1000 * state)
            core.note(
                definition,
                Happened(keys, np.full(len(keys), what, np.int32), at, at, np.empty((len(keys), 0), np.int64)),
            )
        packed = core.packed(definition, keys)
        states.append([Record(0, value, T) for _, value in published_keys(identity, keys, packed)])
    live.fold(0, states[0])
    live.caught_up()
    live.heard(0)
    stop = threading.Event()

    def fold() -> None:
        while not stop.is_set():
            for records in states:
                live.fold(0, records)

    folding = threading.Thread(target=fold)
    folding.start()
    seen = set()
    try:
        made: dict[str, Column] = {"user": np.repeat(keys, 20)}
        for _ in range(1500):
            values = live.values(made, T + 64_000)
            assert values is not None
            ages = np.asarray(values["ages"])
            assert (ages == ages[:, :1]).all()
            assert (ages.reshape(len(keys), 20, -1) == ages[::20, None]).all(), "and one for all rows of a request"
            seen.add(float(ages[0, 0]))
    finally:
        stop.set()
        folding.join()
    assert len(seen) > 10


def test_unknown_keys_are_read_as_if_nothing_had_happened(world: World) -> None:
    world.live.caught_up()
    world.live.heard(0)
    made: dict[str, Column] = {"user": np.array([MISSING]), "item": np.array([1, MISSING])}
    found = world.live.values(made, T)
    assert found is not None
    assert {name for name in world.pipeline.features if live_address(world.pipeline.features[name])} == found.keys()
    assert np.asarray(found["pair_seen"]).tolist() == [[0, pytest.approx(np.log1p(20))]] * 2
    assert np.asarray(found["user_rates"]).shape == (1, 2)
    assert lists_of(found["user_items"]) == [[]]
    assert lists_of(found["last_buyers"]) == [[], []]

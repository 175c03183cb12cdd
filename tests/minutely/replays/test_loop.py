"""The embedded loop on a small log that was made up: what it promises about examples, versions, cadences and freshness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from minutely.config import Pipeline
from minutely.replays.loop import EmbeddedLoop
from minutely.replays.measure import Measures
from minutely.replays.results import results_of, summarize
from paramserver import manifest as manifests
from paramserver.files import Files
from serving.replica import Replica
from streaming.clock import Clock, EventClock
from streaming.embedded_log import EmbeddedLog
from streaming.features.columns import slice_columns
from streaming.join.commit import Committed
from streaming.join.embedded import EmbeddedBrokers, embedded_service
from streaming.join.partition import JoinPartition
from streaming.join.service import JoinService
from streaming.join.timers import NEVER
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, Record
from streaming.loop.brokers import History, Outlet
from streaming.records.events import Request, decode_engagement, decode_request
from streaming.records.identity import example_id
from streaming.source.load import load
from streaming.source.logged_events import LoggedEvents
from tests.paramserver.published import MemoryFiles, up_to
from tests.streaming.join.join_world import roomy_state
from trainer.metrics import class_metrics, value_metrics
from trainer.models import make_model
from trainer.prequential import Prequential

START = 1_700_000_000_000
MINUTE, HOUR = 60_000, 3_600_000
NOW = START + 1000 * HOUR
CADENCES: dict[str, int | None] = {"60s": MINUTE, "10m": 10 * MINUTE, "2h": 2 * HOUR, "never": None}


def write_log(path: Path, requests: int = 600, hours: float = 4) -> None:
    """Every hour brings new items, half of them good; early users do not come back; a play tells when it is over."""
    rng = np.random.default_rng(7)
    served_at = np.sort(rng.integers(0, int(hours * HOUR), requests)) + START
    users = rng.integers(0, 120, requests) + np.where(served_at < START + HOUR, 1000, 0)
    sizes = rng.integers(1, 4, requests)
    user, at = np.repeat(users, sizes), np.repeat(served_at, sizes)
    count = len(user)
    item = rng.integers(0, 20, count) + 20 * ((at - START) // HOUR)
    liked = rng.random(count) < np.where(item % 2 == 0, 0.8, 0.1)
    play_ms = rng.integers(2_000, 200_000, count)
    pa.parquet.write_table(
        pa.table(
            {
                "t": at,
                "user": user,
                "item": [f"item {number}" for number in item],
                "words": [[int(number % 7), int(number % 5)] for number in item],
                "price": rng.random(count),
                "liked": liked,
                "played_ms": play_ms,
            }
        ),
        path,
    )


def make_pipeline(folder: Path, **changes: Any) -> Pipeline:
    fields: dict[str, Any] = {
        "name": "synthetic",
        "source": {
            "dir": str(folder),
            "impressions": {"file": "log.parquet", "time": {"column": "t"}, "request": ["user", "t"]},
            "actions": {
                "like": {"when": "liked", "delay": {"column": "played_ms"}},
                "play": {"value": "played_ms", "delay": {"column": "played_ms"}},
            },
        },
        "features": {
            "user": {"column": "user", "scope": "request"},
            "item": {"column": "item"},
            "words": {"column": "words", "pool": "mean"},
            "price": {"kind": "dense", "column": "price"},
        },
        "labels": {
            "like": {"action": "like", "decided_by": "play", "window": "10m"},
            "watched": {"action": "play", "window": "10m", "loss": "squared", "scale": 60_000, "transform": "log"},
        },
        "model": {"dim": 4, "hidden": [8]},
        "tables": {"learning_rate": 0.1},
    }
    return Pipeline.model_validate({**fields, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("logs")
    write_log(path / "log.parquet")
    return path


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return make_pipeline(folder)


@pytest.fixture(scope="module")
def events(pipeline: Pipeline, folder: Path) -> LoggedEvents:
    return load(folder, pipeline.source, pipeline.features, NOW)


class UntrimmedLog(EmbeddedLog):
    """The embedded log, which here keeps what it might have forgotten, and says when that is read."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        super().__init__(folder, durable=False, clock=clock)
        self._trimmed: dict[str, int] = {}

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        assert offset >= self._trimmed.get(topic, 0), "what was trimmed is still needed"
        return super().read(topic, partition, offset, limit)

    def trim(self, topic: str, partition: int, offset: int) -> None:
        self._trimmed[topic] = max(offset, self._trimmed.get(topic, 0))

    def values(self, topic: str) -> list[bytes]:
        return [record.value for record in super().read(topic, 0, 0, self.end(topic, 0))]

    def stamps(self, topic: str) -> list[int]:
        return [record.appended_at for record in super().read(topic, 0, 0, self.end(topic, 0))]


Joining: TypeAlias = Callable[[Pipeline, EmbeddedLog, EventClock], JoinService]


def all_at_once(pipeline: Pipeline, log: EmbeddedLog, clock: EventClock) -> JoinService:
    return embedded_service(log, pipeline.join_spec(), roomy_state, clock)


def three_requests_at_once(pipeline: Pipeline, log: EmbeddedLog, clock: EventClock) -> JoinService:
    def make(number: int, outlet: Outlet[Committed], history: History) -> JoinPartition:
        spec = pipeline.join_spec()
        return JoinPartition(
            spec, roomy_state(), outlet, history, number, new_id=lambda: "cut", write_every_ms=NEVER, requests_at_once=3
        )

    return JoinService(EmbeddedBrokers(log, 0), make, clock, max_wait_ms=1, batch_records=1, publish_every_ms=1)


class Ran:
    """A loop at its end, with what its log holds by topic, its files, and the ids of the examples in the order in which they
    were trained."""

    def __init__(
        self,
        pipeline: Pipeline,
        events: LoggedEvents,
        cadences: Mapping[str, int | None],
        warmup: float = 0.5,
        joining: Joining = all_at_once,
    ) -> None:
        self.files, self.trained = MemoryFiles(), list[str]()
        clock = EventClock()
        with TemporaryDirectory() as folder, closing(UntrimmedLog(Path(folder), clock)) as log:
            service = joining(pipeline, log, clock)
            self.loop = EmbeddedLoop(pipeline, events, log, service, clock, self.files, cadences, warmup)
            self.prequential = self.loop.trainer.prequential = Prequential(pipeline.labels)
            train = self.loop.trainer.train

            def noted(batch: pa.RecordBatch) -> np.ndarray:
                self.trained += batch.column("example_id").to_pylist()
                return train(batch)

            self.loop.trainer.train = noted  # type: ignore[method-assign]
            while self.loop.tick():
                pass
            self.loop.finish()
            self.stamps = {topic: log.stamps(topic) for topic in (IMPRESSIONS, ENGAGEMENTS)}
            self.log = {topic: log.values(topic) for topic in (IMPRESSIONS, ENGAGEMENTS, EXAMPLES, DEAD_LETTERS)}
        self.summary = summarize(self.loop, warmup, 1.0, interrupted=False)

    def rows(self) -> dict[str, tuple[bytes, bytes]]:
        tables = {name: table.export() for name, table in self.loop.trainer.tables.items()}
        return {name: (rows.ids.tobytes(), rows.embeddings.tobytes()) for name, rows in tables.items()}


def names_of(events: LoggedEvents) -> list[str]:
    """The examples of all impressions, in order."""
    requests = events.request_ids.take(pa.array(events.request_of_row)).to_pylist()
    return [example_id(*pair) for pair in zip(requests, events.impression_ids.to_pylist(), strict=True)]


@pytest.fixture(scope="module")
def plain(pipeline: Pipeline, events: LoggedEvents) -> Ran:
    return Ran(pipeline, events, {"60s": MINUTE})


@pytest.fixture(scope="module")
def compared(pipeline: Pipeline, events: LoggedEvents) -> Ran:
    return Ran(pipeline, events, CADENCES)


def test_the_same_seed_gives_the_same_run_bit_for_bit(pipeline: Pipeline, events: LoggedEvents, plain: Ran) -> None:
    again = Ran(pipeline, events, {"60s": MINUTE})
    assert again.loop.primary.scores.tobytes() == plain.loop.primary.scores.tobytes()
    assert again.summary == plain.summary
    assert again.rows() == plain.rows()
    assert again.files.content == plain.files.content
    assert again.log == plain.log
    other = Ran(pipeline.model_copy(update={"seed": 2}), events, {"60s": MINUTE})
    assert other.rows() != plain.rows()


def test_a_comparison_s_column_is_the_plain_replay(plain: Ran, compared: Ran) -> None:
    assert [served.name for served in compared.loop.replicas] == list(CADENCES)
    assert compared.loop.primary.scores.tobytes() == plain.loop.primary.scores.tobytes()
    assert results_of(compared.loop, compared.loop.primary) == results_of(plain.loop, plain.loop.primary)
    assert compared.summary["metrics"] == plain.summary["metrics"]


@pytest.mark.parametrize("cadence", ["10m", "2h", "never"])
def test_another_cadence_serves_other_scores_of_the_same_examples(
    pipeline: Pipeline, events: LoggedEvents, plain: Ran, compared: Ran, cadence: str
) -> None:
    ran = Ran(pipeline, events, {cadence: CADENCES[cadence]})
    assert ran.trained == plain.trained
    assert ran.rows() == plain.rows(), "what was served does not change what was learned"
    assert ran.loop.trainer.dense_weights() == plain.loop.trainer.dense_weights()
    assert ran.loop.primary.scores.tobytes() != plain.loop.primary.scores.tobytes()
    if cadence != "never":
        assert ran.summary["replica_equals_table"]
    beside = {served.name: served for served in compared.loop.replicas}[cadence]
    begin = compared.loop.scored_from
    assert not np.array_equal(beside.scores[begin:], plain.loop.primary.scores[begin:])


def test_examples_say_how_they_were_served_and_the_trainer_measures_that(events: LoggedEvents, plain: Ran) -> None:
    """Its metrics are those of a replay's own scores, which never went through the log."""
    place = {name: at for at, name in enumerate(names_of(events))}
    examples = plain.loop.joiner.format
    found = np.zeros(events.impressions, np.int64)
    for value in plain.log[EXAMPLES]:
        batch, _ = examples.decode(value)
        at = np.array([place[name] for name in batch.column("example_id").to_pylist()], np.int64)
        served = examples.served(batch)
        assert served.scores.tobytes() == plain.loop.primary.scores[at].tobytes()
        assert (served.positions == at - events.starts[events.request_of_row[at]]).all()
        found[at] = served.sparse_versions
    assert 0 < (found > 0).sum() < events.impressions
    assert (np.diff(found) >= 0).all() and found.max() < plain.loop.deltas.version
    scored, scores = found > 0, plain.loop.primary.scores
    metrics = plain.prequential.served()
    like = class_metrics(scores[scored, 0], plain.loop.truth["like"][scored])
    watched = value_metrics(scores[scored, 1], plain.loop.truth["watched"][scored])
    for measured, expected in ((metrics["like"], like), (metrics["watched"], watched)):
        assert measured == {
            name: None if value is None else pytest.approx(value, rel=1e-5) for name, value in expected.items()
        }
    assert like["auc"] is not None


def test_every_impression_is_an_example_once(events: LoggedEvents, plain: Ran) -> None:
    assert Counter(plain.trained) == Counter(names_of(events))
    assert plain.summary["examples"] == plain.summary["impressions"] == events.impressions
    assert plain.summary["engagements"] == len(events.engagements)
    assert plain.summary["dead_letters"] == 0
    assert plain.log[DEAD_LETTERS] == []


def test_the_log_stamps_records_with_the_end_of_their_step(plain: Ran, pipeline: Pipeline) -> None:
    """So no record is ahead of it, and nothing holds the watermark of a replay back."""
    served = [decode_request(value, NOW).served_at for value in plain.log[IMPRESSIONS]]
    happened = [decode_engagement(value, NOW).happened_at for value in plain.log[ENGAGEMENTS]]
    for topic, times in ((IMPRESSIONS, served), (ENGAGEMENTS, happened)):
        step = pipeline.train.step_every
        assert plain.stamps[topic] == [(at // step + 1) * step for at in times]
        assert len(times) > 100


def test_labels_are_those_of_the_log(events: LoggedEvents, plain: Ran, pipeline: Pipeline) -> None:
    """The windows of this pipeline cut nothing, so what the joiner decided is what the log says."""
    truth = {name: events.truth(label) for name, label in pipeline.labels.items()}
    row_of = {name: row for row, name in enumerate(names_of(events))}
    for payload in plain.log[EXAMPLES]:
        batch, _ = plain.loop.joiner.format.decode(payload)
        rows = [row_of[name] for name in batch.column("example_id").to_pylist()]
        for name in pipeline.labels:
            assert batch.column(f"label.{name}").to_numpy().tolist() == truth[name][rows].tolist()


def test_the_replica_ends_with_the_trainer_s_rows(plain: Ran, compared: Ran) -> None:
    assert plain.summary["replica_equals_table"]
    for served in compared.loop.replicas:
        assert compared.loop.replica_equals_table(served) == (served.every is not None)


def test_what_is_learned_is_servable_within_the_cadence(events: LoggedEvents, plain: Ran, compared: Ran) -> None:
    assert plain.summary["freshness_seconds"]["p99"] <= 61
    for served in compared.loop.replicas:
        latencies = np.concatenate(served.latencies) if served.latencies else np.empty(0)
        assert (latencies > 0).all()
        if served.every is not None:
            assert latencies.max() <= served.every + MINUTE
    decided_after = len(events.impression_ids) - plain.loop.scored_from
    assert sum(map(len, plain.loop.primary.latencies)) >= decided_after, "what was trained after the warm-up"
    assert results_of(compared.loop, compared.loop.replicas[-1])["sync_every"] == "never"


def test_the_model_learns_and_freshness_pays(compared: Ran) -> None:
    aucs = [results_of(compared.loop, served)["metrics"]["like"]["auc"] for served in compared.loop.replicas]
    assert aucs[0] > 0.6
    assert aucs[0] > aucs[1] > aucs[-1]


def manifest(files: Files, version: int) -> manifests.Manifest:
    return manifests.read_manifest(files, version, base=False)


def test_scores_are_of_the_version_that_was_there_when_they_were_served(
    pipeline: Pipeline, events: LoggedEvents, plain: Ran
) -> None:
    requests = [msgspec.msgpack.decode(payload, type=Request) for payload in plain.log[IMPRESSIONS]]
    assert [request.request_id for request in requests] == events.request_ids.to_pylist()
    last = plain.loop.deltas.version
    for at, request in enumerate(requests):
        start, stop = events.starts[at : at + 2]
        scores = np.frombuffer(request.scores, "<f4").reshape(-1, 2)
        assert np.array_equal(scores, plain.loop.primary.scores[start:stop]), "what is logged is what was served"
        if request.sparse_version:
            served = manifest(plain.files, request.sparse_version)
            assert served.published_at <= request.served_at
            assert served.watermark <= request.served_at
            assert served.dense is not None
            assert served.dense.version == request.dense_version
        if request.sparse_version < last:
            following = manifest(plain.files, request.sparse_version + 1)
            assert following.published_at > request.served_at // MINUTE * MINUTE, "the newest that was there"
    for at in np.linspace(0, len(requests) - 1, 8).astype(int):
        start, stop = events.starts[at : at + 2]
        model, plan = make_model(pipeline.model, pipeline.features, pipeline.labels, pipeline.seed)
        tables = {name: pipeline.tables.make(name, model.row_dim, pipeline.seed) for name in plan.tables}
        view = up_to(plain.files, requests[at].sparse_version)
        replica = Replica(view, model, plan, tables, pipeline.labels)
        replica.pull()
        assert replica.sparse_version == requests[at].sparse_version
        again = replica.score(slice_columns(events.features, int(start), int(stop)), int(stop - start))
        np.testing.assert_allclose(again, plain.loop.primary.scores[start:stop], rtol=1e-4, atol=1e-6)


def test_versions_say_what_they_contain(plain: Ran, events: LoggedEvents) -> None:
    offsets = Counter[str]()
    watermark = 0
    for version in range(1, plain.loop.deltas.version + 1):
        now = manifest(plain.files, version)
        assert now.parent == version - 1
        assert now.watermark >= watermark
        assert all(now.offsets[name] >= offsets[name] for name in offsets)
        offsets, watermark = Counter(now.offsets), now.watermark
    ends = {f"{topic}/0": len(plain.log[topic]) for topic in (IMPRESSIONS, ENGAGEMENTS, EXAMPLES)}
    assert offsets == ends
    assert plain.summary["versions"] == plain.loop.deltas.version


def test_rows_that_nobody_touches_go_everywhere(folder: Path, events: LoggedEvents) -> None:
    ran = Ran(make_pipeline(folder, tables={"expire_after": "1h"}), events, {"60s": MINUTE})
    (primary,) = ran.loop.replicas
    assert ran.summary["rows"]["expired"] > 0
    assert ran.summary["replica_equals_table"]
    early = np.unique(events.features["user"][events.served_at[events.request_of_row] < START + HOUR])
    for table in (ran.loop.trainer.tables["user"], primary.replica.tables["user"]):
        assert not table.contains(early).any(), "users of the first hour never come back"
        assert len(table) > 0
    assert ran.summary["rows"]["live"] == sum(map(len, ran.loop.trainer.tables.values()))
    assert sum(epoch.expired for epoch in ran.loop.measures.epochs) >= ran.summary["rows"]["expired"]


def test_of_a_long_run_only_some_epochs_are_measured(plain: Ran) -> None:
    loop, newest = plain.loop, plain.loop.deltas.newest
    assert newest is not None
    assert len(loop.measures.epochs) == newest.version, "all of a short one"
    measures = Measures(loop.trainer, loop.primary.replica, every=2)
    for version in range(1, 6):
        manifest = msgspec.structs.replace(newest, version=version)
        measures.published(START, manifest, measures.before({}, version))
    assert [epoch.version for epoch in measures.epochs] == [2, 4]
    assert measures.epochs[0].dense_change == 0, "to the epoch before it, measured or not"


def test_the_learned_default_row_is_served(folder: Path, events: LoggedEvents) -> None:
    """What the trainer taught the default row, replicas read it as, at every version and in its bits."""
    tables = {"learning_rate": 0.1, "admit_after": 4}
    fixed = Ran(make_pipeline(folder, tables=tables), events, {"60s": MINUTE})
    learned = Ran(make_pipeline(folder, tables={**tables, "default_row": "learned"}), events, {"60s": MINUTE})
    nobody = np.array([-123_456_789])
    for ran, taught in ((fixed, False), (learned, True)):
        assert ran.summary["replica_equals_table"]
        table, replica = (tables["user"] for tables in (ran.loop.trainer.tables, ran.loop.primary.replica.tables))
        assert np.asarray(table.lookup(nobody)).any() == taught
        assert np.asarray(table.lookup(nobody)).tobytes() == np.asarray(replica.lookup(nobody)).tobytes()
    assert fixed.loop.primary.scores.tobytes() != learned.loop.primary.scores.tobytes()
    (served,) = learned.loop.replicas
    served.replica.tables["user"].set_default_row(np.full(table.dim, 0.5, np.float32))
    assert not learned.loop.replica_equals_table(served), "the check covers the default row"


def test_a_short_window_cannot_flatter_the_metrics(folder: Path, pipeline: Pipeline, events: LoggedEvents) -> None:
    short = {"like": {"action": "like", "window": "20s"}}
    ran = Ran(make_pipeline(folder, labels=short), events, {"60s": MINUTE})
    trained = sum(
        ran.loop.joiner.format.decode(payload)[0].column("label.like").to_numpy().sum() for payload in ran.log[EXAMPLES]
    )
    truth = events.truth(pipeline.labels["like"])
    assert 0 < trained < 0.3 * truth.sum(), "most likes come after this window"
    begin = ran.loop.scored_from
    expected = class_metrics(ran.loop.primary.scores[begin:, 0], truth[begin:], events.request_of_row[begin:])
    assert ran.summary["metrics"]["like"] == pytest.approx(expected)
    assert set(ran.summary["dead_letters_by_reason"]) <= {"late", "unmatched"}
    assert ran.summary["dead_letters"] == truth.sum() - trained


def test_windows_and_lateness_delay_examples_and_lose_none(folder: Path, events: LoggedEvents) -> None:
    join = {"emit": "window", "lateness": "90s", "max_rows": 5}
    ran = Ran(make_pipeline(folder, join=join), events, {"60s": MINUTE})
    assert Counter(ran.trained) == Counter(names_of(events))
    assert ran.summary["replica_equals_table"]
    assert ran.summary["freshness_seconds"]["p99"] <= 60 + 90 + 1


@pytest.mark.parametrize("emit", ["decided", "window"])
def test_a_step_of_event_time_reaches_the_trainer_whole_whatever_the_batches(
    folder: Path, events: LoggedEvents, emit: str
) -> None:
    """Here a step has more records than a worker reads at once, and is cut into many transactions."""
    hourly = {"train": {"step_every": "1h"}, "sync": {"sparse_every": "1h"}}
    whole = Ran(make_pipeline(folder, join={"emit": emit}, **hourly), events, {"1h": HOUR})
    pipeline = make_pipeline(folder, join={"emit": emit, "max_rows": 2}, **hourly)
    cut = Ran(pipeline, events, {"1h": HOUR}, joining=three_requests_at_once)
    assert len(cut.log[EXAMPLES]) > 64 * len(whole.log[EXAMPLES])
    assert cut.trained == whole.trained
    assert cut.rows() == whole.rows()
    assert cut.loop.trainer.state() == whole.loop.trainer.state()
    assert cut.loop.primary.scores.tobytes() == whole.loop.primary.scores.tobytes()
    assert {**cut.summary, "config": None} == {**whole.summary, "config": None}


@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_scores_count_after_the_warm_up(pipeline: Pipeline, events: LoggedEvents, warmup: float) -> None:
    ran = Ran(pipeline, events, {"60s": MINUTE, "never": None}, warmup)
    assert ran.loop.scored_from == int(np.ceil(warmup * events.impressions))
    first, never = ran.loop.replicas
    begin = ran.loop.scored_from
    minute = events.served_at[events.request_of_row[begin]] // MINUTE
    same = events.served_at[events.request_of_row] // MINUTE == minute
    rows = np.flatnonzero(same)[np.flatnonzero(same) >= begin]
    np.testing.assert_array_equal(first.scores[rows], never.scores[rows]), "all begin with the same warm-up"
    assert first.scored_to == never.scored_to == events.impressions


def test_a_loop_can_end_early(pipeline: Pipeline, events: LoggedEvents, tmp_path: Path) -> None:
    """As with Ctrl-C: what was learned by then is published whole."""
    clock, files = EventClock(), MemoryFiles()
    log = EmbeddedLog(tmp_path / "log", durable=False, clock=clock)
    loop = EmbeddedLoop(pipeline, events, log, all_at_once(pipeline, log, clock), clock, files, {"60s": MINUTE}, 0.5)
    for _ in range(40):
        assert loop.tick()
    loop.finish()
    found = summarize(loop, 0.5, 1.0, interrupted=True)
    assert 0 < found["examples"] <= found["impressions"] < events.impressions
    assert found["replica_equals_table"]
    assert found["metrics"]["like"]["auc"] is None, "nothing was served after the warm-up"
    assert manifests.versions(files, base=True)[-1] == loop.deltas.version

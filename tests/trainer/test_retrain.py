"""Training from the archive is training online; from there to the live log nothing is left out or trained twice; and a
retrained model takes over while another one is at work, with replicas following."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from basis.problems import GapError, GuardedError
from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import LocalFiles
from paramserver.manifest import TakenOverError
from paramserver.settings import TablesSettings
from serving.replica import Replica
from streaming.archive import table as archives
from streaming.archive.table import Archive
from streaming.archive.worker import ArchiveWorker
from streaming.clock import EventClock
from streaming.embedded_log import EmbeddedLog
from streaming.features.kinds import Feature, SparseFeature
from streaming.log import EXAMPLES
from streaming.records.examples import ExampleColumns, ExampleFormat
from streaming.records.labels import Label
from trainer.cut import cut_of, offsets_of
from trainer.models import make_model
from trainer.online import OnlineTrainer
from trainer.prequential import Prequential
from trainer.recovery import recover_newest
from trainer.retrain import hand_over, take_over, train_archive
from trainer.settings import GuardSettings, ModelSettings, TrainSettings
from trainer.worker import Trainer, TrainWorker

MINUTE, HOUR = 60_000, 3_600_000
START = 474_000 * HOUR
NEVER = 2**62
FEATURES: dict[str, Feature] = {"user": SparseFeature(column="u"), "example": SparseFeature(column="i")}
LABELS = {"like": Label(action="like", window="1m")}
FORMAT = ExampleFormat(FEATURES, LABELS)
SETTINGS = TrainSettings()
Everything = dict[str, tuple[bytes, ...]]


def records(count: int, first: int = 0, every: int = 20_000) -> list[bytes]:
    """One record of three examples every 20 s; the feature ``example`` is the example's number, so its row counts it."""
    payloads = []
    for at in range(first, first + count):
        numbers = np.arange(3 * at, 3 * at + 3)
        times = np.full(3, START + at * every, np.int64)
        labels = (numbers % 2).astype(np.float32)[:, None]
        rest = ExampleColumns([f"e{n}" for n in numbers], labels, times - 10, times, times)
        payloads.append(FORMAT.encode(FORMAT.build({"user": numbers % 7, "example": numbers}, rest), int(times[0]) + 1))
    return payloads


def make_trainer(seed: int = 1, expire_after: str = "30d", settings: TrainSettings = SETTINGS) -> Trainer:
    model, plan = make_model(ModelSettings(dim=2, hidden=[3]), FEATURES, LABELS, seed)
    tables = {name: TablesSettings(expire_after=expire_after).make(name, model.row_dim, seed) for name in plan.tables}
    return Trainer(model, plan, tables, LABELS, FORMAT, settings, Prequential(LABELS))


def make_replica(files: LocalFiles) -> Replica:
    model, plan = make_model(ModelSettings(dim=2, hidden=[3]), FEATURES, LABELS, 1)
    tables = {name: TablesSettings().make_replica(name, model.row_dim, 1) for name in plan.tables}
    return Replica(files, model, plan, tables, LABELS)


def everything(trainer: Trainer) -> Everything:
    rows = {name: table.export() for name, table in trainer.tables.items()}
    columns = ("ids", "embeddings", "state", "last_seen_seconds", "counts")
    found = {name: tuple(getattr(part, column).tobytes() for column in columns) for name, part in rows.items()}
    return {**found, "state": (trainer.state(),)}


def archive_of(log: EmbeddedLog, folder: Path, partitions: int = 1) -> Archive:
    worker = ArchiveWorker(
        log, Archive(str(folder), FORMAT), FORMAT, EventClock(1), NEVER, range(partitions), lambda letters: False
    )
    while worker.step():
        pass
    worker.commit()
    return Archive(str(folder), FORMAT)


def run(worker: TrainWorker) -> None:
    while worker.step():
        pass


def cut_at(trainer: Trainer, workers: list[TrainWorker], now_ms: int) -> Cut:
    return cut_of(trainer, min(worker.watermark for worker in workers), now_ms, offsets_of(workers))


def scores(score: Callable[..., np.ndarray]) -> bytes:
    columns = {"user": np.arange(20) % 7, "example": np.arange(20)}
    return score(columns, 20).tobytes()


@pytest.fixture
def log(tmp_path: Path) -> EmbeddedLog:
    return EmbeddedLog(tmp_path / "log", durable=False)


def test_the_archive_gives_the_very_model_that_training_online_gave(
    log: EmbeddedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append(EXAMPLES, 0, records(700))
    online, batch = make_trainer(expire_after="30m"), make_trainer(expire_after="30m")
    for minute in range(700 // 3 + 1):  # as the embedded loop does it
        end = START + (minute + 1) * MINUTE
        found = [FORMAT.decode(item.value)[0] for item in log.read(EXAMPLES, 0, 3 * minute, 3)]
        if found:
            online.train(pa.concat_batches(found))
        online.expire(end)
    monkeypatch.setattr(archives, "_ROWS_AT_ONCE", 600)
    told: list[int] = []
    train_archive(archive_of(log, tmp_path / "archive"), batch, SETTINGS, 0, NEVER, told.append)
    assert told == [540, 1080, 1620, 2100], "after each event hour"
    assert len(batch.tables["example"]) < 2100, "rows were forgotten"
    assert everything(batch) == everything(online)
    assert batch.prequential is not None
    assert online.prequential is not None
    assert batch.prequential.metrics() == online.prequential.metrics()


def test_since_and_until_are_times_of_decisions(log: EmbeddedLog, tmp_path: Path) -> None:
    log.append(EXAMPLES, 0, records(60))
    trainer = make_trainer()
    train_archive(archive_of(log, tmp_path / "archive"), trainer, SETTINGS, START + 40_000, START + 10 * MINUTE)
    assert trainer.tables["example"].export().ids.tolist() == list(range(6, 90))


def test_live_training_goes_on_exactly_where_the_archive_ends(log: EmbeddedLog, tmp_path: Path) -> None:
    for partition in (0, 1):
        log.append(EXAMPLES, partition, records(100, first=1000 * partition))
    archive = archive_of(log, tmp_path / "archive", partitions=3)
    for partition in (0, 1, 2):
        log.append(EXAMPLES, partition, records(50, first=1000 * partition + 100))
    archive_of(log, tmp_path / "archive", partitions=2)  # it has grown; the one above is as of its commit
    trainer = make_trainer()
    train_archive(archive, trainer, SETTINGS, 0, NEVER)
    assert trainer.examples == 600
    workers = hand_over(archive, log, trainer, FORMAT, range(3))
    assert [(worker.partition, worker.offset) for worker in workers] == [(0, 100), (1, 100), (2, 0)]
    assert workers[0].watermark == START + 99 * 20_000 + 1
    for worker in workers:
        run(worker)
    counts = trainer.tables["example"].export()
    assert counts.counts.tolist() == [1] * 1050
    assert counts.ids.tolist() == [
        3 * at + n
        for p in (0, 1, 2)
        for at in range(1000 * p + (100 if p == 2 else 0), 1000 * p + 150)
        for n in range(3)
    ]


def test_a_log_that_no_longer_reaches_back_to_the_archive_is_an_error(log: EmbeddedLog, tmp_path: Path) -> None:
    log.append(EXAMPLES, 0, records(10))
    archive = archive_of(log, tmp_path / "archive")
    log.append(EXAMPLES, 0, records(10, first=10))
    log.trim(EXAMPLES, 0, 10)
    assert [worker.offset for worker in hand_over(archive, log, make_trainer(), FORMAT, [0])] == [10]
    log.trim(EXAMPLES, 0, 11)
    with pytest.raises(GapError, match="begins at offset 11, records from 10 on"):
        hand_over(archive, log, make_trainer(), FORMAT, [0])


def test_a_recovered_trainer_goes_on_as_if_nothing_had_happened(log: EmbeddedLog, tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "deltas", durable=False)
    log.append(EXAMPLES, 0, records(90))
    trainer = make_trainer()
    worker = TrainWorker(log, trainer, FORMAT)
    deltas = DeltaLog(files, "form", keep_deltas=2)
    for at in range(5):
        trainer.train(FORMAT.decode(log.read(EXAMPLES, 0, worker.offset, 1)[0].value)[0])
        worker.offset += 1
        deltas.publish(trainer.seal(), cut_at(trainer, [worker], at))
    resumed = DeltaLog.resume(files, "form", keep_deltas=2)
    again = make_trainer(seed=1)
    found = recover_newest(files, resumed, again)
    assert found is not None
    assert found.version == resumed.version == 5
    assert everything(again) == everything(trainer)
    for one in (trainer, again):
        following = TrainWorker(log, one, FORMAT)
        following.offset = found.offsets["examples/0"]
        run(following)
    assert everything(again) == everything(trainer)


def test_a_retrained_model_takes_over_while_another_is_at_work(log: EmbeddedLog, tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "deltas", durable=True)
    replica, asleep = make_replica(files), make_replica(files)
    log.append(EXAMPLES, 0, records(100))
    archive = archive_of(log, tmp_path / "archive")
    online, retrained = make_trainer(seed=1), make_trainer(seed=2)
    at_work = TrainWorker(log, online, FORMAT)
    deltas = DeltaLog(files, "form", keep_deltas=4)
    train_archive(archive, retrained, SETTINGS, START + 10 * MINUTE, NEVER)
    workers = hand_over(archive, log, retrained, FORMAT, [0])
    for at in range(3):
        log.append(EXAMPLES, 0, records(5, first=100 + 5 * at))
        run(at_work)
        deltas.publish(online.seal(), cut_at(online, [at_work], at))
        replica.pull()
        if at == 0:
            asleep.pull()
    before = scores(replica.score)
    log.append(EXAMPLES, 0, records(5, first=115))
    run(at_work)

    assert take_over(files, "form", 4, retrained, workers, lambda: 77, "again") is None, "it has not caught up"
    run(workers[0])
    taken = take_over(files, "form", 4, retrained, workers, lambda: 77, "again")
    assert taken is not None
    manifest = taken.newest
    assert manifest is not None
    assert (manifest.version, manifest.parent, manifest.lineage, manifest.published_at) == (4, 0, 4, 77)
    assert manifest.offsets == {"examples/0": 120}
    assert manifest.retrained == ["again"]
    with pytest.raises(TakenOverError):
        deltas.publish(online.seal(), cut_at(online, [at_work], 5))
    assert retrained.tables["example"].export().ids.tolist() == list(range(90, 360))
    assert set(retrained.tables["example"].export().counts.tolist()) == {1}

    assert scores(replica.score) == before, "it serves what it had until it pulls"
    for follower in (replica, asleep, late := make_replica(files)):
        follower.pull()  # long before its next dense weights are due
        assert (follower.sparse_version, follower.dense_version) == (4, 4)
        assert scores(follower.score) == scores(replica.score) != before
        for name, table in retrained.tables.items():
            ours, theirs = table.export(), follower.tables[name].export()
            assert (ours.ids.tobytes(), ours.embeddings.tobytes()) == (
                theirs.ids.tobytes(),
                theirs.embeddings.tobytes(),
            )
    for at in range(6, 16):  # it is the one at work now; old files of both lineages go
        log.append(EXAMPLES, 0, records(1, first=120 + at - 6))
        run(workers[0])
        taken.publish(retrained.seal(), cut_at(retrained, workers, at))
    late = make_replica(files)
    for follower in (replica, late):
        follower.pull()
        assert follower.sparse_version == 14
        assert follower.manifest is not None
        assert follower.manifest.retrained == ["again"], "in bases and deltas that follow as well"
        assert follower.tables["example"].export().ids.tolist() == list(range(90, 390))
    assert not [name for name in files.names() if name.startswith(f"{1:012d}")]


def test_a_retrained_model_that_went_astray_does_not_take_over(log: EmbeddedLog, tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "deltas", durable=False)
    log.append(EXAMPLES, 0, records(10))
    online = make_trainer()
    at_work = TrainWorker(log, online, FORMAT)
    run(at_work)
    DeltaLog(files, "form", keep_deltas=4).publish(online.seal(), cut_at(online, [at_work], 1))
    archive, before = archive_of(log, tmp_path / "archive"), files.names()
    astray = make_trainer(settings=TrainSettings(guards=GuardSettings(prediction={"like": (0.99, 1)}, over=10)))
    train_archive(archive, astray, SETTINGS, 0, NEVER)
    infinite = make_trainer()
    infinite.weights.vector.data.fill_(np.inf)
    for trainer, reason in ((astray, "running mean prediction of like"), (infinite, "dense weights")):
        workers = hand_over(archive, log, trainer, FORMAT, [0])
        with pytest.raises(GuardedError, match=reason):
            take_over(files, "form", 4, trainer, workers, lambda: 77, "again")
        assert files.names() == before


def test_a_trainer_with_nothing_to_publish_notices_as_well(log: EmbeddedLog, tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "deltas", durable=False)
    log.append(EXAMPLES, 0, records(10))
    deltas, clock = DeltaLog(files, "form", keep_deltas=4), EventClock(1)
    online = OnlineTrainer(make_trainer(), log, [0], FORMAT, files, deltas, clock, sparse_every=10, dense_every=NEVER)
    online.step()
    assert online.publish() is not None
    assert online.publish() is None
    retrained = make_trainer(seed=2)
    workers = hand_over(archive_of(log, tmp_path / "archive"), log, retrained, FORMAT, [0])
    assert take_over(files, "form", 4, retrained, workers, clock.now_ms, "again") is not None
    with pytest.raises(TakenOverError, match="version 2: published by another writer"):
        online.publish()


def test_taking_over_waits_until_nothing_is_lost_by_it(log: EmbeddedLog, tmp_path: Path) -> None:
    """The trainer at work is faster twice: once before the retrained one is about to publish, once while it is."""
    files = LocalFiles(tmp_path / "deltas", durable=False)
    log.append(EXAMPLES, 0, records(10))
    online, retrained = make_trainer(), make_trainer(seed=2)
    at_work = TrainWorker(log, online, FORMAT)
    deltas = DeltaLog(files, "form", keep_deltas=4)
    workers = hand_over(archive_of(log, tmp_path / "archive"), log, retrained, FORMAT, [0])
    workers[0].offset = 0
    published: list[int] = []

    def now_ms() -> int:
        """Called when the retrained model is about to be published."""
        if len(published) < 2:
            log.append(EXAMPLES, 0, records(10, first=10 + 10 * len(published)))
            run(at_work)
            published.append(deltas.publish(online.seal(), cut_at(online, [at_work], 1)).version)
        return 9

    for at in range(2):
        assert take_over(files, "form", 4, retrained, workers, now_ms, "again") is None
        assert published == list(range(1, at + 2))
        assert DeltaLog.resume(files, "form", 4).newest == deltas.newest, "nothing has changed"
    run(workers[0])
    taken = take_over(files, "form", 4, retrained, workers, now_ms, "again")
    assert taken is not None
    assert taken.newest is not None
    assert taken.newest.version == 3
    assert taken.newest.offsets == {"examples/0": 30}
    assert retrained.tables["example"].export().counts.tolist() == [1] * 90

"""From the archive to the live log, and from one trainer to another, with services killed at seeded moments: every example is
once in the model that serves at the end, and replicas only ever hold a version as it was published."""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer

from minutely.config import Pipeline
from paramserver import manifest as manifests
from paramserver.delta_log import DeltaLog
from paramserver.files import LocalFiles
from paramserver.history import read_version
from paramserver.manifest import Manifest
from serving.replica import Replica
from stack.kafka import BrokerUnavailable, running
from streaming.archive.table import Archive
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import EXAMPLES
from streaming.records.examples import ExampleFormat
from tests.commands import missing
from tests.kafka.services import Service, archiver, retrainer, said, started, trainer, write_config
from tests.kafka.traffic import check_archive, examples_record, make_pipeline
from trainer.models import make_model

SEEDS = [int(seed) for seed in os.environ.get("FAULT_SEEDS", "1").split(",")]
WAIT_SECONDS = 90
AT_ONCE, EVERY_SECONDS = 10, 0.1
KEEP_DELTAS = 6
CHECKED = 6
"""As many versions the replica must have followed, at least."""


class Feed(threading.Thread):
    """Sends examples to every partition, a transaction at a time, so that offsets have gaps as the joiner's have."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(daemon=True)
        self._pipeline = pipeline
        self._format = ExampleFormat(pipeline.features, pipeline.labels)
        self._ending = threading.Event()
        self.labels: dict[str, float] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        kafka = self._pipeline.kafka
        try:
            producer = Producer(kafka.client() | {"transactional.id": uuid.uuid4().hex, "retry.backoff.ms": 5})
            producer.init_transactions(60)
            while not self._ending.wait(EVERY_SECONDS):
                producer.begin_transaction()
                for partition in range(kafka.partitions):
                    producer.produce(kafka.topic(EXAMPLES), self._record(), partition=partition)
                producer.commit_transaction(60)
        except BaseException as error:
            self.error = error

    def _record(self) -> bytes:
        record, labels = examples_record(self._format, range(len(self.labels), len(self.labels) + AT_ONCE))
        self.labels |= labels
        return record

    def end(self) -> None:
        self._ending.set()
        self.join(60)
        assert self.error is None and not self.is_alive(), self.error


class Watching(threading.Thread):
    """A replica that pulls all the time; after every pull its rows must be those of its version, and its weights of its lineage."""

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        super().__init__(daemon=True)
        self._files = LocalFiles(folder, durable=False)
        model, plan = make_model(pipeline.model, pipeline.features, pipeline.labels, pipeline.seed)
        tables = {name: pipeline.tables.make_replica(name, model.row_dim, pipeline.seed) for name in plan.tables}
        self.replica = Replica(self._files, model, plan, tables, pipeline.labels)
        self._ending = threading.Event()
        self.lineages: list[int] = []
        self.checked = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        ids = np.arange(20)
        try:
            while not self._ending.wait(0.02):
                before = self.replica.sparse_version
                self.replica.pull()
                assert np.isfinite(self.replica.score({"user": ids % 7, "key": ids}, len(ids))).all()
                manifest = self.replica.manifest
                if manifest is not None and manifest.version != before:
                    self._check(manifest)
        except BaseException as error:
            self.error = error

    def _check(self, manifest: Manifest) -> None:
        if manifest.lineage not in self.lineages:
            self.lineages.append(manifest.lineage)
        assert self.replica.dense_version >= manifest.lineage, "rows of one model and weights of another"
        try:
            published = read_version(self._files, manifest)
        except FileNotFoundError:  # folded meanwhile
            return
        for name, table in self.replica.tables.items():
            ours, theirs = table.export(), published[name].rows
            order = np.argsort(theirs.ids)
            assert np.array_equal(np.sort(ours.ids), theirs.ids[order])
            assert ours.embeddings[np.argsort(ours.ids)].tobytes() == theirs.embeddings[order].tobytes()
        self.checked += 1

    def end(self, version: int) -> None:
        until = time.monotonic() + 10
        while self.replica.sparse_version < version and time.monotonic() < until and self.is_alive():
            time.sleep(0.02)
        self._ending.set()
        self.join(30)
        assert self.error is None, self.error
        assert self.replica.sparse_version == version


class Stage:
    """What both tests need: examples that keep coming, an archiver, a trainer and a retrainer, and a replica."""

    def __init__(self, kafka: KafkaSettings, folder: Path) -> None:
        self.pipeline = make_pipeline(
            kafka,
            train={"step_every": "1s"},
            sync={"sparse_every": "1s", "keep_deltas": KEEP_DELTAS},
            archive={"commit_every": "500ms"},
        )
        ensure_topics(kafka)
        config = write_config(self.pipeline, folder)
        self.deltas, self.folder = folder / "deltas", folder
        self.files = LocalFiles(self.deltas, durable=False)
        self.archive, self.trainer = archiver(config, folder), trainer(config, folder)
        self.retrainer = retrainer(config, folder)
        self.services = [self.archive, self.trainer, self.retrainer]
        for service in self.services:
            service.forks = True
        self.feed, self.watching = Feed(self.pipeline), Watching(self.pipeline, self.deltas)

    def newest(self) -> Manifest | None:
        """The newest version; the folder changes meanwhile."""
        found = manifests.versions(self.files, base=False)
        return manifests.read_manifest(self.files, found[-1], base=False) if found else None

    def kill(self, service: Service, pause: float = 0) -> None:
        """Kill it after a while, and start it again."""
        time.sleep(pause)
        service.kill()
        service.start()

    def finish(self, serving: Service) -> Manifest:
        """Let ``serving`` train what is left; every example must be once in its model and in the archive. The last version."""
        until = time.monotonic() + WAIT_SECONDS
        while self.watching.checked < CHECKED:
            assert self.watching.error is None, self.watching.error
            assert time.monotonic() < until, said(self.services, "no versions")
            time.sleep(0.1)
        self.feed.end()
        labels = self.feed.labels
        counts = np.empty(0, np.uint32)
        while counts.sum() < len(labels):
            assert time.monotonic() < until, said(self.services, f"{counts.sum()} of {len(labels)} trained")
            assert serving.runs and self.archive.runs, said(self.services, "ended by itself")
            time.sleep(0.3)
            counts = self._counts(counts)
        self.archive.waits_for("\n")
        for service in (serving, self.archive):
            assert service.end() == 0, said(self.services, f"{service.name} did not end in order")
        newest = DeltaLog.resume(self.files, self.pipeline.form(), KEEP_DELTAS).newest
        assert newest is not None
        counts = read_version(self.files, newest)["key"].rows.counts
        assert len(counts) == len(labels) and (counts == 1).all(), said(self.services, f"{counts} of {len(labels)}")
        check_archive(
            Archive(str(self.folder / "archive"), ExampleFormat(self.pipeline.features, self.pipeline.labels)), labels
        )
        self.watching.end(newest.version)
        return newest

    def _counts(
        self, before: np.ndarray[tuple[int], np.dtype[np.uint32]]
    ) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
        newest = self.newest()
        try:
            return before if newest is None else read_version(self.files, newest)["key"].rows.counts
        except FileNotFoundError:  # folded meanwhile
            return before


@pytest.fixture(scope="module")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        with running(tmp_path_factory.mktemp("kafka") / "cluster") as cluster:
            yield cluster.bootstrap
    except BrokerUnavailable as error:
        missing(str(error))


@pytest.fixture
def stage(bootstrap: str, tmp_path: Path) -> Stage:
    return Stage(KafkaSettings(bootstrap=bootstrap, prefix=f"h{uuid.uuid4().hex[:8]}.", partitions=3), tmp_path)


@pytest.mark.parametrize("seed", SEEDS)
def test_from_the_archive_to_the_live_log(stage: Stage, seed: int) -> None:
    rng = random.Random(seed)
    retrainer = stage.retrainer
    stage.feed.start()
    with started(stage.archive):
        stage.archive.waits_for("commit 2")
        stage.watching.start()
        with started(retrainer):
            retrainer.waits_for("examples trained")
            stage.kill(retrainer)  # it has published nothing, or just its first version
            retrainer.waits_for("took over")
            stage.kill(retrainer, rng.random() * 0.1)
            for service in rng.sample([retrainer, retrainer, stage.archive], 2):
                retrainer.waits_for("continuing live")
                stage.kill(service, rng.random() * 3)
            retrainer.waits_for("continuing live")
            newest = stage.finish(retrainer)
    assert len(newest.retrained) == 1, "it was retrained once"
    assert newest.lineage == 1
    assert stage.watching.lineages == [1]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_retrained_model_takes_over_from_a_trainer_at_work(stage: Stage, seed: int) -> None:
    rng = random.Random(seed)
    trainer, retrainer = stage.trainer, stage.retrainer
    stage.feed.start()
    with started(stage.archive, trainer):
        trainer.waits_for("version 2")
        stage.archive.waits_for("commit 2")
        stage.watching.start()
        with started(retrainer):
            stage.kill(trainer)
            retrainer.waits_for("examples so far")
            stage.kill(retrainer)
            trainer.waits_for("resuming after version")
            stage.kill(stage.archive, rng.random())
            retrainer.waits_for("took over")
            if rng.random() < 0.5:
                stage.kill(retrainer)  # before it serves
            assert trainer.wait() == 0, said(stage.services, "did not end in order")
            assert "took over; exiting" in trainer.said, said(stage.services, "says nothing")
            assert "is by retraining archive-" in trainer.said, said(stage.services, "does not say who took over")
            retrainer.waits_for("resuming after version")
            trainer.start()
            assert trainer.wait() == 1
            assert f"pid {retrainer.pid} on" in trainer.said, trainer.said
            assert "publishes there; allowed: one trainer a folder" in trainer.said, trainer.said
            if rng.random() < 0.5:  # whoever comes first goes on
                stage.kill(retrainer, rng.random() * 2)
                retrainer.waits_for("continuing live")
                newest = stage.finish(retrainer)
            else:
                retrainer.kill()
                trainer.start()
                trainer.waits_for("resuming after version")
                newest = stage.finish(trainer)
    assert len(newest.retrained) == 1, "it was retrained once"
    assert newest.lineage > 1
    assert stage.watching.lineages == [1, newest.lineage]

"""`minutely train`: the trainer's service. Reads `examples`, publishes versions whose manifests say what they contain."""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from kafka.errors import KafkaError

from basis.problems import Problem, Problems
from minutely.config import Pipeline
from minutely.parts import make_trainer
from minutely.service import stop_on_signal
from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import Files, LocalFiles
from streaming.clock import Clock, WallClock
from streaming.examples import ExampleFormat
from streaming.kafka.log import KafkaLog
from streaming.kafka.topics import ensure_topics
from streaming.kafka.waiting import Patience, patiently
from streaming.log import EXAMPLES, check_no_gap
from trainer.retrain import recover
from trainer.worker import TrainWorker

_log = logging.getLogger("minutely.train")
_POLL_MS = 100


def train(pipeline: Pipeline, folder: Path) -> None:
    """Train until SIGINT or SIGTERM, publishing to ``folder``; then publish what is left."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)

    def begin() -> TrainService:
        ensure_topics(pipeline.kafka)
        return TrainService(pipeline, LocalFiles(folder, durable=True), WallClock())

    with _alone(folder), stop_on_signal() as stop:
        service = patiently(_log, stop, begin)
        if service is None:
            return
        try:
            service.run(stop)
        finally:
            service.close()


class TrainService:
    """One trainer over all partitions of `examples`, its table in its own process.

    Begins at the newest version in ``files``, exactly after what its rows contain.
    """

    def __init__(self, pipeline: Pipeline, files: Files, clock: Clock) -> None:
        self._pipeline = pipeline
        self._clock = clock
        self.trainer = make_trainer(pipeline)
        example_format = ExampleFormat(pipeline.features, pipeline.labels)
        self.deltas = DeltaLog.resume(files, pipeline.fingerprint(), pipeline.sync.keep_deltas)
        self._log = KafkaLog(pipeline.kafka, EXAMPLES)
        self.workers = [
            TrainWorker(self._log, self.trainer, example_format, partition)
            for partition in range(pipeline.kafka.partitions)
        ]
        self._brokers = Patience(_log, "brokers")
        self._published: dict[str, int] = {}
        self._published_at = clock.now_ms()
        self._dense_at: int | None = None
        self._recover(files)

    def _recover(self, files: Files) -> None:
        newest = self.deltas.newest
        if newest is None:
            for worker in self.workers:
                worker.offset = self._log.begin(EXAMPLES, worker.partition)
            return
        recover(files, newest, self.trainer)
        self._published = dict(newest.offsets)
        self._dense_at = newest.published_at if newest.dense else None
        for worker in self.workers:
            worker.offset = newest.offsets.get(f"{EXAMPLES}/{worker.partition}", 0)
            worker.watermark = newest.watermark
            check_no_gap(self._log, EXAMPLES, worker.partition, worker.offset)
        _log.info("goes on after version %d", newest.version)

    def run(self, stop: Callable[[], bool]) -> None:
        """Train and publish until ``stop`` says so, then publish what is left."""
        while not stop():
            self.step()
            if self._clock.now_ms() - self._published_at >= self._pipeline.sync.sparse_every:
                self.publish()
        self.publish()

    def step(self) -> None:
        """Read and train once; bounded in time and memory."""
        try:
            self._log.fill(_POLL_MS)
            self._brokers.worked()
        except KafkaError as error:
            self._brokers.failed(error)
            time.sleep(_POLL_MS / 1000)
        for worker in self.workers:
            worker.step()
            worker.take_decided()
        self.trainer.expire(min(worker.watermark for worker in self.workers))

    def publish(self) -> None:
        """Publish a version of what was trained since the last one, if anything."""
        now_ms = self._clock.now_ms()
        self._published_at = now_ms
        offsets = {f"{EXAMPLES}/{worker.partition}": worker.offset for worker in self.workers}
        if offsets == self._published:
            return
        every = self._pipeline.sync.dense_every
        dense = self._dense_at is None or now_ms // every > self._dense_at // every
        cut = Cut(
            watermark=min(worker.watermark for worker in self.workers),
            now_ms=now_ms,
            offsets=offsets,
            dense=self.trainer.dense_weights() if dense else None,
            trainer=self.trainer.state(),
        )
        manifest = self.deltas.publish(self.trainer.seal(), cut)
        self._published = offsets
        if dense:
            self._dense_at = now_ms
        changed = sum(shard.changed for shard in manifest.shards)
        _log.info("version %d: %d rows, %d examples so far", manifest.version, changed, self.trainer.examples)

    def close(self) -> None:
        """Close the connections."""
        self._log.close()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder against a second trainer, which would train the same examples into the same versions."""
    with (folder / "writer.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            allowed = "another trainer publishes there; allowed: one trainer a folder"
            raise Problems([Problem(str(folder), "--deltas", "", allowed)]) from None
        yield

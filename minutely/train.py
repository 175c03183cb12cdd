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
from paramserver.delta_log import DeltaLog
from paramserver.files import Files, LocalFiles
from streaming.clock import Clock, WallClock
from streaming.examples import ExampleFormat
from streaming.kafka.log import KafkaLog
from streaming.kafka.topics import ensure_topics
from streaming.kafka.waiting import Patience, patiently
from streaming.log import EXAMPLES
from trainer.online import OnlineTrainer

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
    """The online trainer on Kafka: reads ahead, waits for brokers that are away, publishes when it is time."""

    def __init__(self, pipeline: Pipeline, files: Files, clock: Clock) -> None:
        self._log = KafkaLog(pipeline.kafka, EXAMPLES)
        self._brokers = Patience(_log, "brokers")
        self.online = OnlineTrainer(
            make_trainer(pipeline),
            self._log,
            range(pipeline.kafka.partitions),
            ExampleFormat(pipeline.features, pipeline.labels),
            files,
            DeltaLog.resume(files, pipeline.form(), pipeline.sync.keep_deltas, precision=pipeline.sync.rows),
            clock,
            sparse_every=pipeline.sync.sparse_every,
            dense_every=pipeline.sync.dense_every,
        )
        if self.online.deltas.version:
            _log.info("goes on after version %d", self.online.deltas.version)

    def run(self, stop: Callable[[], bool]) -> None:
        """Train and publish until ``stop`` says so, then publish what is left."""
        while not stop():
            self._step()
            if self.online.due():
                self._publish()
        self._publish()

    def _step(self) -> None:
        try:
            self._log.fill(_POLL_MS)
            self._brokers.worked()
        except KafkaError as error:
            self._brokers.failed(error)
            time.sleep(_POLL_MS / 1000)
        self.online.step()

    def _publish(self) -> None:
        manifest = self.online.publish()
        if manifest is not None:
            changed = sum(shard.changed for shard in manifest.shards)
            _log.info(
                "version %d: %d rows, %d examples so far", manifest.version, changed, self.online.trainer.examples
            )

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

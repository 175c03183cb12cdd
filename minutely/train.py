"""`minutely train`: the trainer's service. Reads `examples`, publishes versions whose manifests say what they contain."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from kafka.errors import KafkaError

from minutely.batch import Retraining
from minutely.config import Pipeline
from minutely.lock import RETRAINER, WRITER, FileLock
from minutely.metrics import Status, StatusMetrics
from minutely.parts import make_trainer
from minutely.retrain import retrain
from minutely.service import Address, stop_on_signal
from paramserver.files import Files, LocalFiles
from paramserver.manifest import TakenOverError
from streaming.clock import Clock, WallClock
from streaming.examples import ExampleFormat
from streaming.kafka.log import KafkaLog
from streaming.kafka.metrics import serve_metrics
from streaming.kafka.topics import ensure_topics
from streaming.kafka.waiting import Patience, patiently
from streaming.log import EXAMPLES
from trainer.online import OnlineTrainer
from trainer.retrain import look

_log = logging.getLogger("minutely.train")
_POLL_MS = 100
_LEAVING_SECONDS = 60.0
"""How long a trainer whose place was taken may need to end, after it has noticed."""


def train(pipeline: Pipeline, folder: Path, metrics: Address | None, retraining: Retraining | None = None) -> None:
    """Train until SIGINT or SIGTERM, publishing to ``folder``; then publish what is left. With a ``retraining``, first take over
    from whoever publishes there by a model from the archive, unless that was done before."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    files, clock, status = LocalFiles(folder, durable=True), WallClock(), Status()
    with ExitStack() as held, stop_on_signal() as stop:
        writer = held.enter_context(closing(FileLock(folder / WRITER)))
        retrainer = held.enter_context(closing(FileLock(folder / RETRAINER)))
        if retraining is None and not writer.take():
            raise writer.refusal("publishes there", "one trainer a folder, and a retraining beside it")
        if retraining is not None and not retrainer.take():
            raise retrainer.refusal("retrains for it", "one retraining at a time")
        if metrics is not None:
            serve_metrics(StatusMetrics("train", "versions", status, clock), *metrics)
        if retraining is not None:
            seconds = pipeline.sync.sparse_every / 1000 + _LEAVING_SECONDS
            if not retrain(pipeline, retraining, files, clock, stop, status) or not _follow(writer, seconds, stop):
                return
            retrainer.close()
        _run(pipeline, folder, files, clock, stop, status)


def _follow(writer: FileLock, seconds: float, stop: Callable[[], bool]) -> bool:
    """Wait for the end of the trainer whose place was taken; False where ``stop`` came first.

    Who does not have ``writer`` publishes nothing: a version's files have names of their own only where it takes over.
    """
    if writer.take():
        return True
    _log.info("waits for the end of %s, which publishes there", writer.holder)
    if not writer.wait(seconds, stop) and not stop():
        raise writer.refusal("goes on after the retrained version", "to start again when it has ended")
    return not stop()


def _run(
    pipeline: Pipeline, folder: Path, files: Files, clock: Clock, stop: Callable[[], bool], status: Status
) -> None:
    """Train online from the newest version on."""

    def begin() -> TrainService:
        ensure_topics(pipeline.kafka)
        with ExitStack() as on_error:
            log = on_error.enter_context(closing(KafkaLog(pipeline.kafka, EXAMPLES)))
            service = TrainService(pipeline, log, files, clock, status)
            on_error.pop_all()
        return service

    service = patiently(_log, stop, begin)
    if service is None:
        return
    try:
        service.run(stop)
    except TakenOverError:
        by = FileLock(folder / RETRAINER).holder
        _log.info("version %d is by %s, which has taken over; this trainer ends", service.online.deltas.version + 1, by)
    finally:
        service.close()


class TrainService:
    """The online trainer on Kafka: reads ahead, waits for brokers that are away, publishes when it is time."""

    def __init__(self, pipeline: Pipeline, log: KafkaLog, files: Files, clock: Clock, status: Status) -> None:
        self._log = log
        self._brokers = Patience(_log, "brokers")
        self._status = status
        self._trained_before = status.examples
        self.online = OnlineTrainer(
            make_trainer(pipeline),
            self._log,
            range(pipeline.kafka.partitions),
            ExampleFormat(pipeline.features, pipeline.labels),
            files,
            look(files, pipeline.form(), pipeline.sync.keep_deltas, pipeline.sync.rows),
            clock,
            sparse_every=pipeline.sync.sparse_every,
            dense_every=pipeline.sync.dense_every,
        )
        newest = self.online.deltas.newest
        if newest is not None:
            status.committed_at = newest.published_at
            _log.info("goes on after version %d", newest.version)

    def run(self, stop: Callable[[], bool]) -> None:
        """Train and publish until ``stop`` says so, then publish what is left. `TakenOverError` where another one took over."""
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
        self._status.lag = self._log.lag
        self._status.watermarks = {worker.partition: worker.watermark for worker in self.online.workers}
        self._status.examples = self._trained_before + self.online.trainer.examples

    def _publish(self) -> None:
        manifest = self.online.publish()
        if manifest is not None:
            self._status.commits += 1
            self._status.committed_at = manifest.published_at
            changed = sum(shard.changed for shard in manifest.shards)
            _log.info(
                "version %d: %d rows, %d examples so far", manifest.version, changed, self.online.trainer.examples
            )

    def close(self) -> None:
        """Close the connections."""
        self._log.close()

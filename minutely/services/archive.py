"""`minutely archive`: the archiver's service. Every example of the live log into the archive, once."""

from __future__ import annotations

import logging
from collections.abc import Callable

from deltalake.exceptions import DeltaError

from basis.problems import Problem, Problems
from minutely.config import Pipeline
from minutely.ends import stop_on_signal
from minutely.services.batch import unreachable
from minutely.services.examples_readers import RefusedExamples, begin_reading
from minutely.services.metrics import Status, StatusMetrics
from minutely.services.service import Address, serve_metrics
from streaming.archive.table import Archive, ArchiveSettings
from streaming.archive.worker import ArchiveWorker
from streaming.clock import Clock, WallClock
from streaming.kafka.log import KafkaLog
from streaming.records.examples import ExampleFormat
from streaming.retry import Retry
from streaming.waiting import tolerating

_log = logging.getLogger("minutely.archive")
_POLL_MS = 100


def live_archive(pipeline: Pipeline, place: str | None) -> str:
    """Where the archive of the live log is: ``place``, or else ``archive.dir``; `Problems` where neither is given."""
    found = place or (pipeline.archive.dir if pipeline.archive is not None else None)
    if found is None:
        raise Problems(
            [Problem(pipeline.name, "archive.dir", "missing", "allowed: archive.dir in the config, or --archive")]
        )
    return found


def archive(pipeline: Pipeline, place: str, metrics: Address | None) -> None:
    """Archive until SIGINT or SIGTERM; then commit what was read."""
    status, clock = Status(), WallClock()
    if metrics is not None:
        serve_metrics(StatusMetrics("archive", "commits", status, clock), metrics)

    try:
        with stop_on_signal() as stop:
            service = begin_reading(
                pipeline, _log, stop, lambda log: ArchiveService(pipeline, place, log, clock, status, stop)
            )
            if service is not None:
                service.run()
    except DeltaError as error:
        raise unreachable(place, error) from None


class ArchiveService:
    """The archiver on Kafka: all partitions, waiting for brokers that are away."""

    def __init__(
        self, pipeline: Pipeline, place: str, log: KafkaLog, clock: Clock, status: Status, stop: Callable[[], bool]
    ) -> None:
        examples = ExampleFormat(pipeline.features, pipeline.labels)
        archive = Archive(place, examples)
        self._log = log
        self._brokers = Retry(_log, "brokers", clock, pipeline.kafka.asked)
        self._clock = clock
        self._status = status
        self._stop = stop
        refused = RefusedExamples(pipeline, _log, stop, status)
        settings = pipeline.archive or ArchiveSettings()
        partitions = range(pipeline.kafka.partitions)
        self.worker = ArchiveWorker(
            self._log, archive, examples, clock, settings.commit_every, partitions, refused.tell
        )
        for partition, position in self.worker.positions.items():
            if archive.position(partition) is not None:
                _log.info("partition %d: resuming at offset %d", partition, position.offset)

    def run(self) -> None:
        """Archive until told to stop, then commit what was read."""
        try:
            while not self._stop():
                self._round()
            self.worker.commit()
        finally:
            self._log.close()

    def _round(self) -> None:
        before = self.worker.commits
        with tolerating(self._brokers):
            self.worker.step()
            self._log.fill(_POLL_MS)
        status, worker = self._status, self.worker
        if worker.commits > before:
            _log.info("commit %d: %d examples since the start", worker.commits, worker.examples)
            status.committed_at = self._clock.elapsed_ms()
        status.lag, status.lost = self._log.lag, self._log.lost
        status.watermarks = {at: position.watermark for at, position in worker.positions.items()}
        status.examples, status.commits = worker.examples, worker.commits

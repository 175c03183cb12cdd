"""`minutely archive`: the archiver's service. Every example of the live log into the archive, once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

from deltalake.exceptions import DeltaError

from basis.problems import Problem, Problems
from minutely.batch import unreachable
from minutely.config import Pipeline
from minutely.metrics import Status, StatusMetrics
from minutely.service import Address, serve_metrics, stop_on_signal
from streaming.archive.table import Archive, ArchiveSettings
from streaming.archive.worker import ArchiveWorker
from streaming.clock import Clock, WallClock
from streaming.kafka.letters import LetterSender
from streaming.kafka.log import KafkaLog
from streaming.kafka.topics import ensure_topics
from streaming.kafka.waiting import retrying, tolerating
from streaming.log import EXAMPLES
from streaming.records.events import DeadLetter
from streaming.records.examples import ExampleFormat
from streaming.retry import Retry

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

    def begin() -> ArchiveService:
        ensure_topics(pipeline.kafka)
        with ExitStack() as on_error:
            log = on_error.enter_context(closing(KafkaLog(pipeline.kafka, EXAMPLES)))
            service = ArchiveService(pipeline, place, log, clock, status, stop)
            on_error.pop_all()
        return service

    try:
        with stop_on_signal() as stop:
            service = retrying(_log, stop, begin, pipeline.kafka.asked)
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
        self._kafka = pipeline.kafka
        self._sender: LetterSender | None = None
        settings = pipeline.archive or ArchiveSettings()
        partitions = range(pipeline.kafka.partitions)
        self.worker = ArchiveWorker(
            self._log, archive, examples, clock, settings.commit_every, partitions, self._tell_refused
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

    def _tell_refused(self, letters: Sequence[DeadLetter]) -> bool:
        self._sender = self._sender or LetterSender(self._kafka, _log, self._stop)
        self._status.dead_letters.update(letter.reason for letter in letters)
        sent = self._sender.send(letters)
        self._status.lost_letters = self._sender.lost
        return sent

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

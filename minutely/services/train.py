"""`minutely train`: the trainer's service. Reads `examples`, publishes versions whose manifests say what they contain."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import NamedTuple

import torch

from basis.problems import BadFile, GuardedError, Problem, Problems
from minutely.config import Pipeline
from minutely.ends import stop_on_signal
from minutely.parts import make_trainer
from minutely.place import folder_of, open_files, require_writable
from minutely.services.batch import Retraining
from minutely.services.examples_readers import RefusedExamples, begin_reading
from minutely.services.lock import RETRAINER, WRITER, FileLock
from minutely.services.metrics import Status, StatusMetrics
from minutely.services.retrain import retrain
from minutely.services.service import Address, serve_metrics
from paramserver.files import Files, remove_half_written
from paramserver.manifest import Manifest, TakenOverError, read_manifest
from streaming.clock import Clock, WallClock
from streaming.kafka.log import KafkaLog
from streaming.records.examples import ExampleFormat
from streaming.retry import Retry
from streaming.waiting import tolerating
from trainer.online import OnlineTrainer
from trainer.prequential import Prequential
from trainer.retrain import look

_log = logging.getLogger("minutely.train")
_POLL_MS = 100
_MEASURED_EXAMPLES = 65_536
_LEAVING_SECONDS = 60.0
"""How long a trainer whose place was taken may need to end, after it has noticed."""


def train(
    pipeline: Pipeline,
    place: str,
    metrics: Address | None,
    retraining: Retraining | None = None,
    *,
    resume: bool = False,
    pass_over: Mapping[int, Sequence[range]] | None = None,
) -> None:
    """Train until SIGINT or SIGTERM, publishing to ``place``; then publish what is left. With a ``retraining``, first take over
    from the trainer that publishes there by a model from the archive, unless that was done before. ``resume`` continues where
    a guard has held training; offsets to ``pass_over``, by partition, are not trained on.

    Raises:
        Problems: another process publishes there, or a partition to pass over does not exist.
    """
    if odd := [partition for partition in pass_over or {} if partition >= pipeline.kafka.partitions]:
        allowed = f"allowed: partitions 0 to {pipeline.kafka.partitions - 1}"
        raise Problems([Problem(pipeline.name, "--pass-over", str(odd[0]), allowed)])
    torch.set_num_threads(1)
    folder = folder_of(place)
    if folder is not None:
        require_writable(folder, "--deltas")
    files, clock, status = open_files(place, durable=True), WallClock(), Status()
    with ExitStack() as held, stop_on_signal() as stop:
        locks = None if folder is None else _take_locks(held, folder, retrains=retraining is not None)
        if metrics is not None:
            serve_metrics(StatusMetrics("train", "versions", status, clock), metrics)
        if retraining is not None:
            seconds = pipeline.sync.sparse_every / 1000 + _LEAVING_SECONDS
            if not retrain(pipeline, retraining, files, clock, stop, status):
                return
            if locks is not None:
                if not _follow(locks.writer, seconds, stop):
                    return
                locks.retrainer.close()
        if folder is not None:
            remove_half_written(folder)
        _run(pipeline, files, clock, stop, status, resume=resume, pass_over=pass_over)


class _Locks(NamedTuple):
    """A folder's. An object store has none: there a second trainer publishes the next version, and the first one then ends."""

    writer: FileLock
    retrainer: FileLock


def _take_locks(held: ExitStack, folder: Path, *, retrains: bool) -> _Locks:
    """Take the lock that this process needs; `Problems` name its holder."""
    writer = held.enter_context(closing(FileLock(folder / WRITER)))
    retrainer = held.enter_context(closing(FileLock(folder / RETRAINER)))
    if not retrains and not writer.take():
        raise writer.refusal("publishes there", "one trainer a folder, and a retraining beside it")
    if retrains and not retrainer.take():
        raise retrainer.refusal("retrains for it", "one retraining at a time")
    return _Locks(writer, retrainer)


def _follow(writer: FileLock, seconds: float, stop: Callable[[], bool]) -> bool:
    """Wait for the end of the trainer whose place was taken; False where ``stop`` came first.

    Conditional puts decide which trainer publishes the next version; the lock keeps people from starting two that take turns.
    """
    if writer.take():
        return True
    _log.info("waiting for %s, which publishes there, to exit", writer.holder)
    if not writer.wait(seconds, stop) and not stop():
        raise writer.refusal("is still training after the retrained version", "to start again when it has exited")
    return not stop()


def _run(
    pipeline: Pipeline,
    files: Files,
    clock: Clock,
    stop: Callable[[], bool],
    status: Status,
    *,
    resume: bool,
    pass_over: Mapping[int, Sequence[range]] | None,
) -> None:
    """Train online from the newest version on; after a rollback, from what that says."""

    def make(log: KafkaLog) -> TrainService:
        return TrainService(pipeline, log, files, clock, status, stop, resume=resume, pass_over=pass_over)

    while (service := begin_reading(pipeline, _log, stop, make)) is not None:
        with closing(service):
            if service.run():
                return


class TrainService:
    """The online trainer on Kafka: reads ahead, waits for brokers that are away, publishes when it is time."""

    def __init__(
        self,
        pipeline: Pipeline,
        log: KafkaLog,
        files: Files,
        clock: Clock,
        status: Status,
        stop: Callable[[], bool],
        *,
        resume: bool,
        pass_over: Mapping[int, Sequence[range]] | None = None,
    ) -> None:
        self._stop = stop
        self._log = log
        self._files = files
        self._clock = clock
        self._brokers = Retry(_log, "brokers", clock, pipeline.kafka.asked)
        self._place = Retry(_log, "publication", clock)
        self._status = status
        self._trained_before = status.examples
        self._refused = RefusedExamples(pipeline, _log, stop, status)
        self._folder = ThreadPoolExecutor(1, "fold")  # a fold takes longer than a step
        status.prequential = Prequential(pipeline.labels, _MEASURED_EXAMPLES)
        self.online = OnlineTrainer(
            make_trainer(pipeline, status.prequential, secrets.randbits(64)),
            self._log,
            range(pipeline.kafka.partitions),
            ExampleFormat(pipeline.features, pipeline.labels),
            files,
            look(files, pipeline.form(), pipeline.sync.keep_deltas, pipeline.sync.rows, self._folder),
            clock,
            sparse_every=pipeline.sync.sparse_every,
            dense_every=pipeline.sync.dense_every,
            dense_change=pipeline.sync.dense_change,
            resume=resume,
            pass_over=pass_over,
        )
        status.tables = self.online.trainer.tables
        newest = self.online.deltas.newest
        if newest is not None:
            status.committed_at = clock.elapsed_ms() - max(0, clock.now_ms() - newest.published_at)
            _log.info("resuming after version %d", newest.version)

    def run(self) -> bool:
        """Train and publish until told to stop, then publish what is left. Whether that is the end: not after a rollback,
        where a new service is to start from there.

        Raises:
            GuardedError: the weights are not fit to be published, and no trainer continues without --resume.
            OSError: the place refused the last version; what is in it is trained again by the next one.
        """
        try:
            while not self._stop():
                try:
                    self._step()
                except GuardedError:  # who goes on behind these records makes no letters of them any more
                    self._refused.tell(self.online.take_refused())
                    raise
                if self._refused.tell(self.online.take_refused()) and self.online.is_publication_due():
                    self._publish_or_wait()
            if self._refused.is_missing_some:
                return True  # brokers are away: the next trainer trains on it again and sends the letters
            self._publish()
            self.online.deltas.close()
        except TakenOverError:
            return self._taken_over(self.online.deltas.version + 1)
        return True

    def _publish_or_wait(self) -> None:
        """Publish; what a full disk refuses is kept, sealed, and published first at the next time. Rows that change meanwhile
        are in the table, so that memory does not grow by waiting."""
        try:
            self._publish()
            self._place.worked()
        except OSError as error:
            self._status.refused += 1
            self._place.failed(error)

    def _taken_over(self, version: int) -> bool:
        """Say by whom. Whether this trainer ends."""
        by: Manifest | None = None
        with suppress(FileNotFoundError, BadFile):
            by = read_manifest(self._files, version, base=False)
        if by is not None and by.goes_back_to:
            _log.info("version %d goes back to version %d: restarting from there", version, by.goes_back_to)
            return False
        whose = (
            f"retraining {by.retrained[-1]}" if by is not None and not by.parent and by.retrained else "another trainer"
        )
        _log.info("version %d is by %s, which took over; exiting", version, whose)
        return True

    def _step(self) -> None:
        with tolerating(self._brokers):
            self._log.fill(_POLL_MS)
        self.online.step()
        self._status.lag, self._status.lost = self._log.lag, self._log.lost
        self._status.watermarks = {worker.partition: worker.watermark for worker in self.online.workers}
        self._status.examples = self._trained_before + self.online.trainer.examples

    def _publish(self) -> None:
        manifest = self.online.publish()
        if manifest is not None:
            self._status.commits += 1
            self._status.committed_at = self._clock.elapsed_ms()
            changed = sum(shard.changed for shard in manifest.shards)
            _log.info(
                "version %d: %d rows, %d examples since the start",
                manifest.version,
                changed,
                self.online.trainer.examples,
            )

    def close(self) -> None:
        """Close the connections, and wait for the fold that runs beside."""
        self._folder.shutdown()
        self._log.close()

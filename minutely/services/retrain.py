"""`minutely train --from archive --deltas`: a model from the archive, then live, that takes over where versions are published.

Nothing is kept before it takes over: whatever ends it, the next one starts over. What it published says by which retraining, so
the same command, started again, continues live instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import closing

from minutely.config import Pipeline
from minutely.parts import make_trainer
from minutely.services.batch import EVER, Retraining, nothing_in_between, open_archive
from minutely.services.examples_readers import begin_reading
from minutely.services.metrics import Status
from paramserver.files import Files
from streaming.clock import Clock
from streaming.kafka.log import KafkaLog
from streaming.log import EXAMPLES
from streaming.records.examples import ExampleFormat
from streaming.retry import Retry
from streaming.waiting import tolerating
from trainer.retrain import hand_over, look, take_over, train_archive
from trainer.worker import Trainer, TrainWorker

_log = logging.getLogger("minutely.train")
_POLL_MS = 100


class _AskedToEnd(Exception):
    """In the middle of an archive."""


def retrain(
    pipeline: Pipeline, retraining: Retraining, files: Files, clock: Clock, stop: Callable[[], bool], status: Status
) -> bool:
    """Train from the archive, catch up on the live log, and take over in ``files``; at once where this retraining took over there
    before. False where ``stop`` came first, and nothing has changed.

    `Problems` where there is nothing to train from, `GapError` where the log does not reach back to the archive's end.
    """
    name = retraining.name(pipeline)
    newest = look(files, pipeline.form(), pipeline.sync.keep_deltas).newest
    if newest is not None and name in newest.retrained:
        _log.info("%s already took over; continuing live", name)
        return True
    trainer = make_trainer(pipeline)
    examples = ExampleFormat(pipeline.features, pipeline.labels)
    archive = open_archive(retraining.place, examples)

    def progress(count: int) -> None:
        status.examples = count
        _log.info("%s: %d examples so far", name, count)
        if stop():
            raise _AskedToEnd

    try:
        train_archive(archive, trainer, pipeline.train, retraining.since or 0, EVER, progress)
    except _AskedToEnd:
        return False
    if not trainer.examples:
        raise nothing_in_between(archive, retraining.place)

    def catch_up(log: KafkaLog) -> _CatchUp:
        workers = hand_over(archive, log, trainer, examples, range(pipeline.kafka.partitions))
        return _CatchUp(pipeline, name, trainer, workers, log, clock)

    catching_up = begin_reading(pipeline, _log, stop, catch_up)
    if catching_up is None:
        return False
    with closing(catching_up):
        return catching_up.run(files, stop, status)


class _CatchUp:
    """From where the archive ends to where the newest version is."""

    def __init__(
        self,
        pipeline: Pipeline,
        name: str,
        trainer: Trainer,
        workers: list[TrainWorker],
        log: KafkaLog,
        clock: Clock,
    ) -> None:
        self._pipeline = pipeline
        self._name = name
        self._trainer = trainer
        self._workers = workers
        self._log = log
        self._clock = clock
        self._brokers = Retry(_log, "brokers", clock, pipeline.kafka.asked)
        offsets = {worker.partition: worker.offset for worker in workers}
        _log.info("%s: %d examples trained; live from offsets %s", name, trainer.examples, offsets)

    def run(self, files: Files, stop: Callable[[], bool], status: Status) -> bool:
        """Whether it took over; else it was stopped."""
        form, sync, clock = self._pipeline.form(), self._pipeline.sync, self._clock
        wanted: Mapping[str, int] = {}
        while not stop():
            if all(worker.offset >= wanted.get(f"{EXAMPLES}/{worker.partition}", 0) for worker in self._workers):
                taken = take_over(
                    files, form, sync.keep_deltas, self._trainer, self._workers, clock.now_ms, self._name, sync.rows
                )
                if taken is not None and taken.newest is not None:
                    status.commits, status.committed_at = 1, clock.elapsed_ms()
                    _log.info("version %d: %s took over", taken.version, self._name)
                    return True
                newest = look(files, form, sync.keep_deltas).newest
                wanted = newest.offsets if newest is not None else {}
            self._step(status)
            status.examples, status.lag, status.lost = self._trainer.examples, self._log.lag, self._log.lost
            status.watermarks = {worker.partition: worker.watermark for worker in self._workers}
        return False

    def _step(self, status: Status) -> None:
        for worker in self._workers:
            worker.step()
            worker.take_decided()
            for letter in worker.take_refused():  # the trainer at work has sent their dead letters
                status.dead_letters[letter.reason] += 1
                _log.warning("%s/%d, offset %d, %s", letter.topic, letter.partition, letter.offset, letter.detail)
        self._trainer.expire(min(worker.watermark for worker in self._workers))
        with tolerating(self._brokers):
            self._log.fill(_POLL_MS)

    def close(self) -> None:
        """Close the connections."""
        self._log.close()

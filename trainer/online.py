"""Online training: examples from a live log into rows, and versions that say exactly what they contain.

Synchronous and single-threaded: whoever calls `OnlineTrainer.step` reads ahead in the log and waits; time comes from a clock.
"""

from __future__ import annotations

from collections.abc import Sequence

from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import Files
from paramserver.manifest import Manifest
from streaming.clock import Clock
from streaming.examples import ExampleFormat
from streaming.log import EXAMPLES, LogReader, check_no_gap
from trainer.epoch_times import EpochTimes
from trainer.retrain import recover
from trainer.worker import Trainer, TrainWorker


class OnlineTrainer:
    """One trainer over all ``partitions`` of `examples`, its tables in its own process.

    Begins at the newest version in ``files``, exactly after what its rows contain, or else where the log begins. ``deltas`` is
    the log in ``files``. A version is due ``sparse_every`` ms after the last one; the first one of every ``dense_every`` ms of
    the clock brings new dense weights to replicas. `GapError` where the log no longer reaches back to the version's offsets.
    """

    def __init__(
        self,
        trainer: Trainer,
        log: LogReader,
        partitions: Sequence[int],
        example_format: ExampleFormat,
        files: Files,
        deltas: DeltaLog,
        clock: Clock,
        *,
        sparse_every: int,
        dense_every: int,
    ) -> None:
        self.trainer = trainer
        self.deltas = deltas
        self.workers = [TrainWorker(log, trainer, example_format, partition) for partition in partitions]
        self._clock = clock
        self._sparse_every = sparse_every
        self._dense_every = dense_every
        self._published: dict[str, int] = {}
        self._published_at = clock.now_ms()
        self._dense_at: int | None = None
        self._times = EpochTimes()
        self._recover(files, log)

    def _recover(self, files: Files, log: LogReader) -> None:
        newest = self.deltas.newest
        if newest is None:
            for worker in self.workers:
                worker.offset = log.begin(EXAMPLES, worker.partition)
            return
        recover(files, newest, self.trainer)
        self._published = dict(newest.offsets)
        self._times.newest_at = newest.learned.newest_at if newest.learned else 0
        self._dense_at = newest.published_at if newest.dense else None
        for worker in self.workers:
            worker.offset = newest.offsets.get(f"{EXAMPLES}/{worker.partition}", 0)
            worker.watermark = newest.watermark
            check_no_gap(log, EXAMPLES, worker.partition, worker.offset)

    def step(self) -> None:
        """Train on what can be read, bounded in time and memory, and forget rows whose time is over."""
        for worker in self.workers:
            read_at = self._clock.now_ms()
            worker.step()
            self._times.add(*worker.take_times(), read_at, self._clock.now_ms())
        self.trainer.expire(min(worker.watermark for worker in self.workers))

    def due(self) -> bool:
        """Whether it is time for the next version."""
        return self._clock.now_ms() - self._published_at >= self._sparse_every

    def publish(self) -> Manifest | None:
        """Publish a version of what was trained since the last one; None where that is nothing.

        `TakenOverError` where another trainer has published in its place.
        """
        now_ms = self._clock.now_ms()
        self._published_at = now_ms
        offsets = {f"{EXAMPLES}/{worker.partition}": worker.offset for worker in self.workers}
        if offsets == self._published:
            return None
        dense = self._dense_at is None or now_ms // self._dense_every > self._dense_at // self._dense_every
        cut = Cut(
            watermark=min(worker.watermark for worker in self.workers),
            now_ms=now_ms,
            offsets=offsets,
            dense=self.trainer.dense_weights() if dense else None,
            trainer=self.trainer.state(),
            learned=self._times.take(now_ms),
        )
        manifest = self.deltas.publish(self.trainer.seal(), cut)
        self._published = offsets
        if dense:
            self._dense_at = now_ms
        return manifest

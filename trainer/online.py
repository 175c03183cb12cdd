"""Online training: examples from a live log into rows, and versions that say exactly what they contain.

Synchronous and single-threaded: the caller of `OnlineTrainer.step` reads ahead in the log and waits; time comes from a clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from basis.problems import GuardedError, NotFiniteError, UnreadableError
from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import Files
from paramserver.manifest import Manifest
from paramserver.marks import Hold, read_hold, write_hold
from paramserver.table import Rows
from streaming.clock import Clock
from streaming.log import EXAMPLES, LogReader, check_no_gap
from streaming.records.events import DeadLetter
from streaming.records.examples import ExampleFormat
from trainer.cut import cut_of, offsets_of
from trainer.dense_cadence import DenseCadence
from trainer.epoch_times import EpochTimes
from trainer.recovery import read_dense, recover_newest
from trainer.retrain import check_at_work
from trainer.worker import Trainer, TrainWorker


class _Waiting(NamedTuple):
    """A version that is sealed and not published: its rows, its cut, and whether it replaces all that replicas have."""

    rows: Mapping[str, Rows]
    cut: Cut
    whole: bool


class OnlineTrainer:
    """One trainer over all ``partitions`` of `examples`, its tables in its own process.

    Begins at the newest version in ``files``, exactly after what its rows contain, or else where the log begins. ``deltas`` is
    the log in ``files``. A version is due ``sparse_every`` ms after the last one, that of the trainer before included, and brings
    dense weights where `DenseCadence` says so, by the watermark of the partition that is furthest. `GapError` where the log no
    longer reaches back to the version's offsets.
    `GuardedError` where a guard has held training, unless ``resume`` says to go on from the last version that was published.
    ``pass_over`` are offsets, by partition, that are not trained on.
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
        dense_change: float | None = None,
        resume: bool = False,
        pass_over: Mapping[int, Sequence[range]] | None = None,
    ) -> None:
        self.trainer = trainer
        self.deltas = deltas
        self.workers = [TrainWorker(log, trainer, example_format, partition) for partition in partitions]
        self._clock = clock
        self._sparse_every = sparse_every
        self._dense = DenseCadence(trainer, dense_every, dense_change)
        self._published: dict[str, int] = {}
        self._published_at = clock.elapsed_ms()
        self._files = files
        self._waiting: _Waiting | None = None
        self._must_be_whole = False
        self._times = EpochTimes()
        self._recover(log, resume=resume)
        for worker in self.workers:
            for offsets in (pass_over or {}).get(worker.partition, ()):
                worker.pass_over(offsets)

    def _recover(self, log: LogReader, *, resume: bool) -> None:
        hold = read_hold(self._files)
        if hold is not None and hold.after == self.deltas.version and not resume:
            raise GuardedError(
                f"training is held after version {hold.after}: {hold.reason}; "
                "`minutely train --resume` continues, and --pass-over skips offsets"
            )
        found = recover_newest(self._files, self.deltas, self.trainer)
        write_hold(self._files, None)
        if found is None:
            for worker in self.workers:
                worker.offset = log.begin(EXAMPLES, worker.partition)
            return
        # Replicas have something else than what training continues from, lack weights, or read versions of this config alone: the
        # next version replaces all they have.
        is_grown = found.fingerprint != self.deltas.fingerprint
        dense = None if is_grown else read_dense(self._files, found, self.trainer.model)
        self._must_be_whole = (
            is_grown
            or found.version != self.deltas.version
            or self.deltas.is_of_another_precision
            or (found.dense is not None and dense is None)
        )
        self._published = dict(found.offsets)
        self._times.newest_at = found.learned.newest_at if found.learned else 0
        self._published_at -= min(max(0, self._clock.now_ms() - found.published_at), self._sparse_every)
        if found.dense is not None and dense is not None:
            self._dense.restore(found.dense.watermark, dense)
        for worker in self.workers:
            worker.offset = found.offsets.get(f"{EXAMPLES}/{worker.partition}", 0)
            worker.watermark = found.watermark
            check_no_gap(log, EXAMPLES, worker.partition, worker.offset)

    def step(self) -> None:
        """Train on what can be read, bounded in time and memory, and forget rows whose time is over.

        `GuardedError` where nothing can be read any more: no trainer goes on unless told.
        """
        for worker in self.workers:
            read_at, begun_at = self._clock.now_ms(), self._clock.elapsed_ms()
            try:
                worker.step()
            except UnreadableError as error:
                raise self._held(error) from None
            self._times.add(*worker.take_times(), read_at, begun_at, self._clock.elapsed_ms())
        self.trainer.expire(min(worker.watermark for worker in self.workers))

    def take_refused(self) -> list[DeadLetter]:
        """Dead letters of what could not be read or trained on since the last call."""
        return [letter for worker in self.workers for letter in worker.take_refused()]

    def is_publication_due(self) -> bool:
        """Whether it is time for the next version."""
        return self._clock.elapsed_ms() - self._published_at >= self._sparse_every

    def publish(self) -> Manifest | None:
        """Publish a version of what was trained since the last one; None where that is nothing.

        Raises:
            OSError: the place refused it, as a full disk does. The version waits, and the next call publishes it first.
            GuardedError: the weights are not fit to be published. The last version stays, and training is held.
            TakenOverError: another trainer has published in its place.
        """
        now_ms = self._clock.now_ms()
        self._published_at = self._clock.elapsed_ms()
        manifest = None
        try:
            if self._waiting is not None:
                manifest = self._publish_waiting(self._waiting)
            return self._publish_new(now_ms) or manifest
        except (GuardedError, NotFiniteError) as error:
            raise self._held(error) from None

    def _held(self, error: Exception) -> GuardedError:
        """What to raise once no trainer may go on, for this reason, until people say so."""
        since = f"read since: {self._since()}"
        write_hold(self._files, Hold(f"{error}; {since}", self.deltas.version, self._clock.now_ms()))
        return GuardedError(f"{error}; version {self.deltas.version} stays; {since}")

    def _since(self) -> str:
        """The offsets that were read after the last version, as --pass-over takes them."""
        begins = [self._published.get(f"{EXAMPLES}/{worker.partition}", 0) for worker in self.workers]
        parts = zip(self.workers, begins, strict=True)
        return ", ".join(f"{w.partition}:{begin}-{w.offset - 1}" for w, begin in parts if begin < w.offset) or "nothing"

    def _publish_new(self, now_ms: int) -> Manifest | None:
        offsets = offsets_of(self.workers)
        if offsets == self._published and not self._must_be_whole:
            check_at_work(self._files, self.deltas.version)
            return None
        # One idle partition must not hold back the dense weights of the others.
        reached = max(worker.watermark for worker in self.workers)
        dense = self._must_be_whole or self._dense.is_due(reached)
        watermark = min(worker.watermark for worker in self.workers)
        learned = self._times.take(now_ms, self._clock.elapsed_ms())
        cut = cut_of(self.trainer, watermark, now_ms, offsets, dense=dense, learned=learned)
        if dense:
            self._dense.sent(reached)
        rows = self.trainer.seal()
        if self._must_be_whole:
            rows = {name: table.export() for name, table in self.trainer.tables.items()}
        self._waiting = _Waiting(rows, cut, self._must_be_whole)
        return self._publish_waiting(self._waiting)

    def _publish_waiting(self, waiting: _Waiting) -> Manifest:
        rows, cut, whole = waiting
        manifest = self.deltas.take_over(rows, cut) if whole else self.deltas.publish(rows, cut)
        self._waiting = None
        self._must_be_whole = False
        self._published = dict(cut.offsets)
        return manifest

"""The embedded loop: every part of the platform in one process, with event time as the clock.

Synchronous and seeded: `EmbeddedLoop.tick` takes one stretch of event time through the whole loop, and between two ticks
everything is whole. All requests between two pulls of a replica are scored in one batch, which is exact, since its version
cannot change between them.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minutely.config import Pipeline
from minutely.parts import make_replica, make_trainer
from minutely.replays.measure import Measures
from minutely.replays.run_letters import keep_letters
from paramserver.delta_log import DeltaLog
from paramserver.files import Files
from paramserver.precision import rounded
from serving.replica import Replica
from streaming.archive.table import Archive
from streaming.archive.worker import ArchiveWorker
from streaming.clock import EventClock
from streaming.embedded_log import EmbeddedLog
from streaming.features.columns import slice_columns
from streaming.join.core import Joiner
from streaming.join.embedded import catch_up, embedded_service
from streaming.join.partition import JoinPartition
from streaming.join.service import GARBAGE_AFTER, JoinService
from streaming.join.state import JoinState
from streaming.join.store import RocksStore
from streaming.join.timers import NEVER
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS
from streaming.records.events import DeadLetter, encode
from streaming.records.examples import ExampleFormat
from streaming.source.logged_events import LoggedEvents
from streaming.source.to_records import RequestRecords
from trainer.cut import cut_of, offsets_of
from trainer.dense_cadence import DenseCadence
from trainer.worker import NOT_FINITE, TrainWorker

_SCORED_AT_ONCE = 1 << 20
"""Impressions, since a replica that never pulls scores all of a log at once."""
_TRIM_EVERY = 256
_MEASURED = 1000
"""About how many epochs are measured for the report."""
_PARTITION = 0


@dataclass
class Served:
    """A replica in the loop and what it served: ``scores`` float32 [impressions, labels], filled up to ``scored_to``.

    ``scored_by`` says from which impression on scores are of which versions of rows and of dense weights, 0 before the first.
    ``every`` is its cadence in ms, None for never. ``waiting`` holds decision times (ms) of what was published and not pulled,
    ``latencies`` how long after its decision each example was servable, by pull at ``pulled_at`` (ms).
    """

    name: str
    every: int | None
    replica: Replica
    scores: npt.NDArray[np.float32]
    active: bool
    scored_to: int = 0
    scored_by: list[tuple[int, int, int]] = field(default_factory=list)
    unpulled_since: int | None = None
    waiting: list[npt.NDArray[np.int64]] = field(default_factory=list)
    latencies: list[npt.NDArray[np.int64]] = field(default_factory=list)
    pulled_at: list[int] = field(default_factory=list)

    def pull_at(self) -> int:
        """When it will pull what is published by now (event ms)."""
        return NEVER if self.unpulled_since is None else _next_point(self.unpulled_since, self.every)


class EmbeddedLoop:
    """Takes a log through the loop. ``cadences`` name the replicas; the first one serves, the others watch from the warm-up on.

    ``joining`` is the joiners' service over ``log``, by ``clock``, and not started. ``files`` takes the published versions. The
    warm-up is the first ``warmup`` share of the impressions; when it ends, every replica pulls everything.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        events: LoggedEvents,
        log: EmbeddedLog,
        joining: JoinService,
        clock: EventClock,
        files: Files,
        cadences: Mapping[str, int | None],
        warmup: float,
        archiver: ArchiveWorker | None = None,
    ) -> None:
        self.pipeline = pipeline
        self._archiver = archiver
        self.events = events
        self.clock = clock
        self._files = files
        self._step_ms = pipeline.train.step_every
        self._producer = RequestRecords(events, pipeline.features)
        self._log = log
        self._joining = joining
        joining.start()
        catch_up(joining)
        self.trainer = make_trainer(pipeline)
        self._train = TrainWorker(self._log, self.trainer, self.joiner.format, _PARTITION)
        self.deltas = DeltaLog(files, pipeline.form(), pipeline.sync.keep_deltas, precision=pipeline.sync.rows)
        rates = [every for every in cadences.values() if every is not None]
        self._seal_every = min(rates) if rates else None
        self.replicas = [
            self._make_replica(name, every, active=index == 0) for index, (name, every) in enumerate(cadences.items())
        ]
        epochs = len(np.unique(events.served_at // (self._seal_every or self._step_ms)))
        self.measures = Measures(self.trainer, self.replicas[0].replica, every=1 + epochs // _MEASURED)
        self.scored_from = min(int(np.ceil(warmup * events.impressions)), events.impressions)
        self._warm_at = self._warm_up_ends()
        self._request, self._engagement = 0, 0
        self._unsealed_since: int | None = None
        self._dense = DenseCadence(self.trainer, pipeline.sync.dense_every, pipeline.sync.dense_change)
        self._dense_unsent_since: int | None = None
        self._log.append(DEAD_LETTERS, _PARTITION, self._producer.rejects())
        self.truth = {name: events.truth(label) for name, label in pipeline.labels.items()}

    @property
    def joiner(self) -> Joiner:
        """The joiner's core."""
        return self._join.joiner

    @property
    def _join(self) -> JoinPartition:
        return self._joining.members[_PARTITION].work

    @property
    def impressions(self) -> int:
        """Impressions served so far."""
        return int(self.events.starts[self._request])

    @property
    def primary(self) -> Served:
        """The replica whose scores go to the log."""
        return self.replicas[0]

    def tick(self) -> bool:
        """Take the next stretch of event time that has anything in it through the loop. Whether there was one."""
        at = min(
            self._next_request_at(), self._next_engagement_at(), self.joiner.next_due() + self.pipeline.join.lateness
        )
        if at >= NEVER:
            return False
        start = at // self._step_ms * self._step_ms
        end = start + self._step_ms
        self._settle(start)
        self.clock.move_to(end)
        self._serve(start, end)
        self._act(end)
        catch_up(self._joining)
        before = self.trainer.examples
        self._train.step(self._log.end(EXAMPLES, _PARTITION) - self._train.offset)
        self._log.append(DEAD_LETTERS, _PARTITION, [encode(letter) for letter in self._train.take_refused()])
        while self._archiver is not None and self._archiver.step():
            pass
        expired = self.trainer.expire(end)
        has_learned = self.trainer.examples > before
        if (has_learned or expired) and self._unsealed_since is None:
            self._unsealed_since = end
        if has_learned and self._dense_unsent_since is None:
            self._dense_unsent_since = end
        return True

    def finish(self) -> None:
        """Publish what is left, with the trainer's state, let every replica that pulls at all pull it, and close."""
        if self._warm_at > self.clock.now_ms():  # interrupted before its end
            self._warm_at = NEVER
        self._settle(NEVER - 1)
        newest = self.deltas.newest
        now = max(self.clock.now_ms(), newest.published_at if newest else 0)
        self._publish(now, dense=True, state=True)
        for served in self.replicas:
            if served.every is not None:
                served.replica.pull()
        self.deltas.fold()
        if self._archiver is not None:
            self._archiver.commit()

    @property
    def dead_letters(self) -> int:
        """Records and rows refused so far."""
        return self._log.end(DEAD_LETTERS, _PARTITION) + self.events.more_rejects.total()

    def keep_dead_letters(self, path: Path) -> None:
        """Write them to a file that stays when the log goes."""
        keep_letters(self._log, _PARTITION, path)

    def dead_letters_by_reason(self) -> dict[str, int]:
        """How many were refused for which reason."""
        found = self.events.more_rejects + Counter(reject.reason for reject in self.events.rejects)
        found.update({NOT_FINITE: self.trainer.left_out} if self.trainer.left_out else {})
        found.update(self.joiner.counts.refused)
        return dict(sorted(found.items()))

    def replica_equals_table(self, served: Served) -> bool:
        """Whether a replica has exactly the trainer's rows and default rows, byte for byte, as ``sync.rows`` keeps them."""
        for name, table in self.trainer.tables.items():
            ours, theirs = table.export(), served.replica.tables[name].export()
            embeddings = rounded(ours.embeddings, self.pipeline.sync.rows)
            wanted = [part.tobytes() for part in (ours.ids, embeddings, ours.default_embedding)]
            if wanted != [part.tobytes() for part in (theirs.ids, theirs.embeddings, theirs.default_embedding)]:
                return False
        return True

    def _make_replica(self, name: str, every: int | None, *, active: bool) -> Served:
        pipeline = self.pipeline
        replica = make_replica(pipeline, self._files)
        scores = np.zeros((self.events.impressions, len(pipeline.labels)), np.float32)
        return Served(name, every, replica, scores, active)

    def _warm_up_ends(self) -> int:
        """The start of the step in which the first impression that counts was served."""
        if self.scored_from >= self.events.impressions:
            return NEVER
        served_at = self.events.served_at[self.events.request_of_row[self.scored_from]]
        return int(served_at) // self._step_ms * self._step_ms

    def _next_request_at(self) -> int:
        return int(self.events.served_at[self._request]) if self._request < self.events.requests else NEVER

    def _next_engagement_at(self) -> int:
        happened_at = self.events.engagements.happened_at
        return int(happened_at[self._engagement]) if self._engagement < len(happened_at) else NEVER

    def _settle(self, now: int) -> None:
        """Publish and pull what falls due up to ``now``, in the order of event time, a publication before a pull."""
        while True:
            seal_at = NEVER if self._unsealed_since is None else _next_point(self._unsealed_since, self._seal_every)
            warm_at = self._warm_at
            dense_at = self._dense_due_at()
            puller = min(self.replicas, key=Served.pull_at)
            first = min(seal_at, dense_at, warm_at, puller.pull_at())
            if first > now:
                return
            if first == warm_at:
                self._end_warm_up(warm_at)
            elif first in (seal_at, dense_at):
                self._publish(first)
            else:
                self._pull(puller, first)

    def _dense_due_at(self) -> int:
        """When dense weights that were trained since the last ones are to be published, even where no row changed: at the first
        seal from when they are due on, and never before what they were trained on."""
        if self._dense_unsent_since is None:
            return NEVER
        return _next_point(max(self._dense.due_at(), self._dense_unsent_since), self._seal_every)

    def _end_warm_up(self, now: int) -> None:
        self._warm_at = NEVER
        self._publish(now, dense=True)
        for served in self.replicas:
            if not served.active:
                served.active, served.scored_to = True, self.primary.scored_to
            self._pull(served, now)
            served.latencies.clear()
            served.pulled_at.clear()

    def _publish(self, now: int, *, dense: bool = False, state: bool = False) -> None:
        """Seal and publish a version at event time ``now``."""
        dense = dense or self._dense.is_due(now)
        offsets = offsets_of([self._train])
        offsets |= {f"{topic}/{_PARTITION}": offset for topic, offset in self._join.offsets.items()}
        cut = cut_of(self.trainer, min(self._train.watermark, now), now, offsets, dense=dense, state=state)
        epoch = self.trainer.seal()
        measuring = self.measures.before(epoch, self.deltas.version + 1)
        manifest = self.deltas.publish(epoch, cut)
        self.measures.published(now, manifest, measuring)
        if dense:
            self._dense.sent(now)
            self._dense_unsent_since = None
        self._unsealed_since = None
        decided = self._train.take_decided()
        for served in self.replicas:
            if served.active:
                served.waiting.append(decided)
                served.unpulled_since = served.unpulled_since or now
        if manifest.version % _TRIM_EVERY == 0:
            self._log.trim(EXAMPLES, _PARTITION, self._train.offset)
            for topic, offset in self._join.offsets.items():
                self._log.trim(topic, _PARTITION, offset)
            self.events.release()

    def _pull(self, served: Served, now: int) -> None:
        served.replica.pull()
        served.unpulled_since = None
        if any(map(len, served.waiting)):
            served.latencies.append(now - np.concatenate(served.waiting))
            served.pulled_at.append(now)
        served.waiting.clear()

    def _serve(self, start: int, end: int) -> None:
        """Score the impressions of ``start`` to ``end`` where that was not done ahead, and log them as served."""
        last = int(np.searchsorted(self.events.served_at, end))
        row_end = int(self.events.starts[last])
        for served in self.replicas:
            if served.active and served.scored_to < row_end:
                self._score_ahead(served, start)
                assert served.scored_to >= row_end, "a pull between two steps would serve the rest by a later version"
        if last > self._request:
            replica = self.primary.replica
            records = self._producer.requests(
                self._request, last, self.primary.scores, replica.sparse_version, replica.dense_version
            )
            self._log.append(IMPRESSIONS, _PARTITION, records)
            self._request = last

    def _score_ahead(self, served: Served, start: int) -> None:
        """Score everything up to the replica's next pull, at most to the end of the warm-up."""
        until = min(_end_of_cell(start, served.every), self._warm_at)
        stop = int(self.events.starts[np.searchsorted(self.events.served_at, until)])
        begin, replica = served.scored_to, served.replica
        for first in range(begin, stop, _SCORED_AT_ONCE):
            last = min(first + _SCORED_AT_ONCE, stop)
            served.scores[first:last] = replica.score(slice_columns(self.events.features, first, last), last - first)
            if last < stop:
                self.events.release()
        served.scored_by.append((begin, replica.sparse_version, replica.dense_version))
        served.scored_to = stop

    def _act(self, end: int) -> None:
        """Log the engagements that happened before ``end``."""
        last = int(np.searchsorted(self.events.engagements.happened_at, end))
        if last > self._engagement:
            self._log.append(ENGAGEMENTS, _PARTITION, self._producer.engagements(self._engagement, last))
            self._engagement = last


def open_state(pipeline: Pipeline, folder: Path) -> JoinState:
    """A joiner's state that uses ``folder`` for what does not fit in memory. The log is trimmed: damage there ends the run."""
    return JoinState(folder, pipeline.join.memory_bytes, partial(RocksStore, can_rebuild=False))


def _next_point(at: int, every: int | None) -> int:
    """The first multiple of ``every`` that is not before ``at``, `NEVER` without one; all in ms."""
    return NEVER if every is None else -(-at // every) * every


def _end_of_cell(at: int, every: int | None) -> int:
    """The first multiple of ``every`` after ``at``."""
    return NEVER if every is None else (at // every + 1) * every


@contextmanager
def open_loop(
    pipeline: Pipeline,
    events: LoggedEvents,
    folder: Path,
    files: Files,
    cadences: Mapping[str, int | None],
    warmup: float,
) -> Iterator[EmbeddedLoop]:
    """A loop whose log, and joiner state beyond its memory, are in ``folder``; closed at the end. Until then Python looks for
    garbage as rarely as in a joiner's service."""
    clock, archiver = EventClock(), None
    with closing(EmbeddedLog(folder / "log", durable=False, clock=clock)) as log:
        if pipeline.archive is not None:
            examples = ExampleFormat(pipeline.features, pipeline.labels)
            archive = Archive(str(folder / "archive"), examples)

            def tell(letters: Sequence[DeadLetter]) -> bool:
                log.append(DEAD_LETTERS, _PARTITION, [encode(letter) for letter in letters])
                return True

            archiver = ArchiveWorker(log, archive, examples, clock, NEVER, [_PARTITION], tell)
        open_pending = partial(open_state, pipeline, folder / "pending")
        joining = embedded_service(log, pipeline.join_spec(), open_pending, clock, _PARTITION)
        garbage_after = gc.get_threshold()
        gc.set_threshold(GARBAGE_AFTER)
        try:
            yield EmbeddedLoop(pipeline, events, log, joining, clock, files, cadences, warmup, archiver)
        finally:
            gc.set_threshold(*garbage_after)
            joining.leave()

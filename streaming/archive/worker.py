"""The archiver's loop: it reads `examples`, commits them to the archive, and keeps the archive's files large."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streaming.archive.table import Archive, Archived, Position
from streaming.clock import Clock
from streaming.log import EXAMPLES, LogReader, Record, check_no_gap
from streaming.records.events import BadRecord, DeadLetter
from streaming.records.examples import ExampleFormat
from streaming.records.unreadable_records import UnreadableRecords

_RECORDS_AT_ONCE = 64
_ROWS_A_COMMIT = 1 << 18
_BYTES_A_COMMIT = 64 << 20
_IDLE = 10  # times commit_every
_IDLE_MS = 600_000
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000


class ArchiveWorker:
    """Synchronous: every `step` reads a bounded number of records and commits when it is time.

    Records read since the last commit are in memory: at most 64 MiB and those of one step. A commit covers all partitions.
    """

    def __init__(
        self,
        log: LogReader,
        archive: Archive,
        example_format: ExampleFormat,
        clock: Clock,
        commit_every_ms: int,
        partitions: Sequence[int],
        tell: Callable[[Sequence[DeadLetter]], bool],
    ) -> None:
        """Start where the archive ends; `GapError` if the log no longer goes back that far.

        ``tell`` sends dead letters of unreadable records, and returns whether it could.
        """
        self._log = log
        self._archive = archive
        self._format = example_format
        self._clock = clock
        self._commit_every_ms = commit_every_ms
        self._partitions = list(partitions)
        self._tell = tell
        self._tidied_at = 0
        self._vacuumed_at: int | None = None
        self.examples = 0
        """How many this worker archived."""
        self.commits = 0
        self._started = False
        self._start()

    def step(self) -> bool:
        """Read once; commit if an example waited long enough or there are enough of them. Return whether there is more to read.

        An unreadable record's dead letter is sent before a commit passes it; `UnreadableError` after too many in a row.
        Records without examples (an idle stream has one whenever its watermark moves) wait ten times as long, but at most ten
        minutes, or ``commit_every_ms`` if that is longer. They must be committed too: retention deletes them, and an archive that
        ends before the first record left cannot be continued.
        """
        if not self._started:
            self._start()
        more = False
        for partition in self._partitions:
            records = self._log.read(EXAMPLES, partition, self.positions[partition].offset, _RECORDS_AT_ONCE)
            for record in records:
                self._take(partition, record)
            more |= len(records) == _RECORDS_AT_ONCE
        letters = [letter for each in self._unreadable.values() for letter in each.take()]
        if letters:
            self._started = False  # until brokers have the letters, no commit may pass their records
            if not self._tell(letters):
                self._start()
                return False
            self._started = True
        elapsed_ms, pause_ms = self._clock.elapsed_ms(), self._commit_every_ms
        waited = bool(self._rows) and elapsed_ms - self._waiting_since >= pause_ms
        idle = max(pause_ms, min(_IDLE * pause_ms, _IDLE_MS))
        moved = bool(self._moved) and elapsed_ms - self._moving_since >= idle
        if waited or moved or self._rows >= _ROWS_A_COMMIT or self._bytes >= _BYTES_A_COMMIT:
            self.commit()
        return more

    def commit(self) -> None:
        """Commit what was read; if another archiver committed meanwhile, resume after it instead."""
        if not self._started or not self._moved:
            return
        moved = {partition: self.positions[partition] for partition in self._moved}
        # A commit also loads what others committed, and Delta then no longer reports those as conflicts: check first.
        alone = all(self._archive.position(partition) == self._archived[partition] for partition in moved)
        if not alone or not self._archive.append(self._waiting, moved):
            self._start()
            return
        self._archived |= moved
        self.commits += 1
        self.examples += self._rows
        self._forget_waiting()
        self._tidy()

    def _start(self) -> None:
        self._started = False  # the next step tries again where the log does not answer
        self._forget_waiting()
        self._unreadable = {at: UnreadableRecords("not archived", at) for at in self._partitions}
        self._archived: dict[int, Position | None] = {at: self._archive.position(at) for at in self._partitions}
        positions = {}
        for partition, archived in self._archived.items():
            position = archived or Position(self._log.begin(EXAMPLES, partition), 0)
            check_no_gap(self._log, EXAMPLES, partition, position.offset)
            positions[partition] = position
        self.positions = positions
        """The next position to read, by partition."""
        self._started = True

    def _forget_waiting(self) -> None:
        self._waiting: list[Archived] = []
        self._moved: set[int] = set()
        self._rows = self._bytes = 0
        self._waiting_since = self._moving_since = 0

    def _take(self, partition: int, record: Record) -> None:
        if not self._moved:
            self._moving_since = self._clock.elapsed_ms()
        self._moved.add(partition)
        reached = self.positions[partition].watermark
        self.positions[partition] = Position(record.offset + 1, reached)
        try:
            batch, watermark = self._format.decode(record.value)
        except BadRecord as bad:
            self._unreadable[partition].add(record, bad)
            return
        self._unreadable[partition].was_read()
        self.positions[partition] = Position(record.offset + 1, max(watermark, reached))
        if batch.num_rows:
            if not self._waiting:
                self._waiting_since = self._clock.elapsed_ms()
            self._waiting.append(Archived(partition, record.offset, batch))
            self._rows += batch.num_rows
            self._bytes += len(record.value)

    def _tidy(self) -> None:
        """Compact when event time enters another hour; once a day, delete files that are no longer used."""
        watermark = min(position.watermark for position in self.positions.values())
        if watermark // _HOUR_MS > self._tidied_at // _HOUR_MS:
            self._archive.compact(watermark)
            self._tidied_at = watermark
        elapsed_ms = self._clock.elapsed_ms()
        if self._vacuumed_at is None or elapsed_ms - self._vacuumed_at >= _DAY_MS:
            self._archive.vacuum()
            self._vacuumed_at = elapsed_ms

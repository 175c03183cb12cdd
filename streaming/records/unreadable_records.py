"""Records of `examples` that cannot be read: each becomes a dead letter, and after too many in a row, reading ends."""

from __future__ import annotations

from basis.problems import UnreadableError
from streaming.log import EXAMPLES, Record
from streaming.records.events import BadRecord, DeadLetter

IN_A_ROW = 100
"""One unreadable record may be anybody's mistake; this many in a row mean that the reader has another config."""


class UnreadableRecords:
    """Collects dead letters of one partition's records, until `take`. ``reader`` begins their details."""

    def __init__(self, reader: str, partition: int) -> None:
        self._reader = reader
        self._partition = partition
        self._in_a_row = 0
        self._letters: list[DeadLetter] = []

    def was_read(self) -> None:
        """Note that a record could be read."""
        self._in_a_row = 0

    def add(self, record: Record, bad: BadRecord) -> None:
        """Add an unreadable record; `UnreadableError` after more than 100 in a row."""
        self._in_a_row += 1
        if self._in_a_row > IN_A_ROW:
            raise UnreadableError(
                f"{EXAMPLES}/{self._partition}, offset {record.offset}: {bad}; the {IN_A_ROW} records before it cannot be read "
                "either. Is this the config of the joiners that write there?"
            )
        self._letters.append(
            DeadLetter(
                topic=EXAMPLES,
                partition=self._partition,
                offset=record.offset,
                reason=bad.reason,
                detail=f"{self._reader}: {bad}",
                payload=record.value,
            )
        )

    def take(self) -> list[DeadLetter]:
        """Return the dead letters since the last call."""
        taken, self._letters = self._letters, []
        return taken

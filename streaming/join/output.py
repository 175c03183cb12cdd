"""What a joiner has to send: decided impressions and dead letters, with their approximate size."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

from streaming.features.columns import packed_bytes
from streaming.join.decided import Decided, batches
from streaming.join.spec import JoinSpec
from streaming.records.events import DeadLetter, Request
from streaming.records.examples import ExampleFormat

_ROW_BYTES = 96
"""The bytes of a row besides ids and features."""
_LETTER_BYTES = 512
"""The bytes of a dead letter besides its payload."""
_UNEVEN_BYTES = 64 << 10
"""If the impressions of a request have more bytes than this, a single one may have nearly all of them."""


class JoinOutput(NamedTuple):
    """The output since the last `Output.drain`. Examples are in the order of their decision."""

    examples: list[pa.RecordBatch]
    dead_letters: list[DeadLetter]


class RowSizes(NamedTuple):
    """The bytes of a request that each of its rows has, and those that are divided among its ``rows``."""

    each: int
    divided: int
    rows: int

    @classmethod
    def of(cls, request: Request) -> RowSizes:
        """Measure a request."""
        ids = request.impression_ids
        shared = packed_bytes(request.shared) + len(request.request_id)
        return cls(shared + _ROW_BYTES, packed_bytes(request.features) + len("".join(ids)), len(ids))

    @property
    def row(self) -> int:
        """The bytes of a row, on average."""
        return self.each + self.divided // self.rows


class Output:
    """Collects output until `drain`."""

    def __init__(self, spec: JoinSpec) -> None:
        self.format = ExampleFormat(spec.features, spec.labels)
        self._sampling_rate = spec.negatives.keep
        self._max_rows = spec.settings.max_rows
        self._batch_bytes = spec.limits.batch_bytes
        self._ready: list[Decided] = []
        self._dead: list[DeadLetter] = []
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether it fills a transaction."""
        return self._bytes >= self._batch_bytes

    def room(self, sizes: RowSizes) -> int:
        """Return how many rows of a request fit; at least one."""
        return max(1, (self._batch_bytes - self._bytes) // sizes.row)

    def add(self, decided: Decided) -> None:
        """Add impressions. `grow` says what they take."""
        self._ready.append(decided)

    def grow(self, sizes: RowSizes, rows: int) -> None:
        """Note that a request takes the bytes of so many rows."""
        self._bytes += sizes.row * rows

    def correct(self, decided: Decided, sizes: RowSizes) -> None:
        """Add a single impression, on its own."""
        self._ready.append(decided)
        self._bytes += sizes.each + sizes.divided if sizes.divided > _UNEVEN_BYTES else sizes.row

    def refuse(self, letter: DeadLetter) -> None:
        """Add a dead letter."""
        self._dead.append(letter)
        self._bytes += len(letter.payload) + _LETTER_BYTES

    def drain(self) -> JoinOutput:
        """Return the output so far, and forget it."""
        ready, self._ready = self._ready, []
        dead, self._dead = self._dead, []
        self._bytes = 0
        return JoinOutput(batches(ready, self.format, self._sampling_rate, self._max_rows) if ready else [], dead)

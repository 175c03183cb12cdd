"""What a joiner has to send: decided impressions and dead letters, with their approximate size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from streaming.features.columns import Ids, packed_width
from streaming.join.decided import Decided, batches
from streaming.join.interactions import LiveEvents
from streaming.join.spec import JoinSpec
from streaming.records.events import MAX_RECORD_BYTES, DeadLetter, Request
from streaming.records.examples import ExampleFormat

_ROW_BYTES = 96
"""The bytes of a row besides ids and features."""
_LETTER_BYTES = 512
"""The bytes of a dead letter besides its payload."""
_UNEVEN_BYTES = 64 << 10
"""If the impressions of a request have more bytes than this, it matters that a single list may have nearly all of them."""
_LIST_VALUE_BYTES = 8


class JoinOutput(NamedTuple):
    """The output since the last `Output.drain`. Examples are in the order of their decision."""

    examples: list[pa.RecordBatch]
    dead_letters: list[DeadLetter]
    interactions: list[tuple[int, bytes]]
    """Records, each with its partition."""


class RowSizes(NamedTuple):
    """The bytes of a request's rows: those that each has, on average, and those of lists, int64 by row, where they are many."""

    each: int
    lists: Ids | None

    @classmethod
    def of(cls, request: Request, fixed: int, lists: Sequence[tuple[str, bool]]) -> RowSizes:
        """Measure a request whose columns were checked: all else that it holds may be anything. ``fixed`` are the bytes of every
        row; ``lists`` names the lists of ids, and says which of them the request's impressions share."""
        ids = request.impression_ids
        each, divided = fixed + len(request.request_id), len("".join(ids))
        ragged: list[tuple[bytes, bytes]] = []
        for name, shared in lists:
            packed = (request.shared if shared else request.features).get(name)
            if packed is None or isinstance(packed, bytes):
                continue
            if shared:
                each += len(packed[0]) + len(packed[1])
            else:
                divided += len(packed[0]) + len(packed[1])
                ragged.append(packed)
        of_row: Ids | None = None
        if ragged and divided > _UNEVEN_BYTES:
            counts = [np.frombuffer(lengths, "<i4") for lengths, _ in ragged]
            of_row = np.asarray(_LIST_VALUE_BYTES * np.sum(counts, axis=0, dtype=np.int64))
            divided -= sum(len(values) for _, values in ragged)
        return cls(each + divided // len(ids), of_row)

    def bytes_of(self, indices: Sequence[int]) -> int:
        """Return the bytes of the rows with these indices."""
        size = self.each * len(indices)
        return size if self.lists is None else size + int(self.lists[list(indices)].sum())

    def first(self, indices: Sequence[int], room: int) -> Sequence[int]:
        """Return the first indices whose rows have ``room`` bytes at most; one at least."""
        if self.lists is None:
            return indices[: max(1, room // self.each)]
        sizes = np.cumsum(self.each + self.lists[list(indices)])
        return indices[: max(1, int(np.searchsorted(sizes, room, side="right")))]


class Output:
    """Collects output until `drain`."""

    def __init__(self, spec: JoinSpec, partition: int) -> None:
        self._live = None if spec.live is None else LiveEvents(spec.live, spec.features, partition)
        self.format = ExampleFormat(spec.features, spec.labels)
        self._sampling_rate = spec.negatives.keep
        self._max_rows = spec.settings.max_rows
        self._batch_bytes = spec.limits.batch_bytes
        widths = {name: packed_width(feature) for name, feature in spec.features.items()}
        self._row_bytes = _ROW_BYTES + sum(width for width in widths.values() if width > 0)
        self._lists = [(name, spec.features[name].scope == "request") for name, width in widths.items() if width < 0]
        self._ready: list[Decided] = []
        self._dead: list[DeadLetter] = []
        self._bytes = 0

    def sizes(self, request: Request) -> RowSizes:
        """Return what the rows of a request that is ours take."""
        return RowSizes.of(request, self._row_bytes, self._lists)

    @property
    def is_full(self) -> bool:
        """Whether it fills a transaction."""
        return self._bytes >= self._batch_bytes

    @property
    def room(self) -> int:
        """The bytes that are left until it is full."""
        return self._batch_bytes - self._bytes

    def add(self, decided: Decided, size: int) -> None:
        """Add impressions, whose rows have ``size`` bytes."""
        self._ready.append(decided)
        self._bytes += size

    def served(self, request: Request) -> None:
        """Add what live features count of a new request."""
        if self._live is not None:
            self._bytes += self._live.served(request)

    def acted(self, request: Request, index: int, action: str, at: int) -> None:
        """Add the first ``action`` on an impression."""
        if self._live is not None:
            self._bytes += self._live.acted(request, index, action, at)

    def refuse(self, letter: DeadLetter) -> None:
        """Add a dead letter."""
        self._dead.append(letter)
        self._bytes += len(letter.payload) + _LETTER_BYTES

    def drain(self) -> JoinOutput:
        """Return the output so far, and forget it."""
        ready, self._ready = self._ready, []
        dead, self._dead = self._dead, []
        self._bytes = 0
        examples = batches(ready, self.format, self._sampling_rate, self._max_rows) if ready else []
        return JoinOutput(examples, dead, [] if self._live is None else self._live.drain())


def examples_records(
    example_format: ExampleFormat, batches: Sequence[pa.RecordBatch], published: int, watermark: int, announce: bool
) -> list[bytes]:
    """Return the records of batches, in order; without batches, one with only the watermark and the schema, if the watermark is
    past ``published`` or the schema is to be announced.

    Only the last record may say that everything before the new watermark is out.
    """
    if not batches and (watermark > published or announce):
        return [example_format.encode(example_format.empty(), watermark)]
    last = len(batches) - 1
    return [
        record
        for at, batch in enumerate(batches)
        for record in _halved(example_format, batch, published, watermark if at == last else published)
    ]


def _halved(example_format: ExampleFormat, batch: pa.RecordBatch, published: int, watermark: int) -> Iterator[bytes]:
    """Yield a batch as one record, or as several if one is too large for a log."""
    record = example_format.encode(batch, watermark)
    if len(record) <= MAX_RECORD_BYTES or batch.num_rows == 1:
        yield record
        return
    middle = batch.num_rows // 2
    yield from _halved(example_format, batch.slice(0, middle), published, published)
    yield from _halved(example_format, batch.slice(middle), published, watermark)

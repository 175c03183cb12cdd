"""A joiner's watermark: how far its inputs allow it to move, and the records of `examples` that carry it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from streaming.records.events import MAX_RECORD_BYTES
from streaming.records.examples import ExampleFormat


def watermark_of(reached: Mapping[str, int], ended: Mapping[str, bool], as_of_ms: int, lateness_ms: int) -> int:
    """Return the smaller time (ms) that the inputs ``reached``, less ``lateness_ms``.

    An input that was read to its end as of a time counts with that time: its missing events happen later.
    """
    return min(as_of_ms if ended[topic] else reached[topic] for topic in reached) - lateness_ms


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

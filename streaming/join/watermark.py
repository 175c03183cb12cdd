"""One partition's joiner at work on a log: reads both inputs, moves the watermark, writes examples and dead letters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from streaming.clock import Clock
from streaming.join.core import Joiner
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, Log
from streaming.records.events import MAX_RECORD_BYTES, encode
from streaming.records.examples import ExampleFormat

_RECORDS_AT_ONCE = 4096


def watermark_of(newest: Mapping[str, int], ended: Mapping[str, bool], as_of_ms: int, lateness_ms: int) -> int:
    """The smaller event time (ms) of the inputs, less ``lateness_ms``.

    An input that was read to its end as of a time has that time: what is missing from it has not happened by then.
    """
    return min(as_of_ms if ended[topic] else newest[topic] for topic in newest) - lateness_ms


def examples_records(
    example_format: ExampleFormat, batches: Sequence[pa.RecordBatch], told: int, watermark: int
) -> list[bytes]:
    """The records of batches, in order; without any, one that only carries the watermark, where it is past ``told``.

    Only the last record may say that everything before the new watermark is out.
    """
    if not batches and watermark > told:
        return [example_format.encode(example_format.empty(), watermark)]
    last = len(batches) - 1
    return [
        record
        for at, batch in enumerate(batches)
        for record in _halved(example_format, batch, told, watermark if at == last else told)
    ]


def _halved(example_format: ExampleFormat, batch: pa.RecordBatch, told: int, watermark: int) -> Iterator[bytes]:
    """A batch as one record, or as several where that is too large for a log."""
    record = example_format.encode(batch, watermark)
    if len(record) <= MAX_RECORD_BYTES or batch.num_rows == 1:
        yield record
        return
    middle = batch.num_rows // 2
    yield from _halved(example_format, batch.slice(0, middle), told, told)
    yield from _halved(example_format, batch.slice(middle), told, watermark)


class JoinWorker:
    """Synchronous: every `step` reads a bounded number of records and writes what they decided."""

    def __init__(self, log: Log, joiner: Joiner, clock: Clock, lateness_ms: int, partition: int = 0) -> None:
        self._log = log
        self._joiner = joiner
        self._clock = clock
        self._lateness_ms = lateness_ms
        self._partition = partition
        self._told_watermark = -1
        self.offsets = {IMPRESSIONS: 0, ENGAGEMENTS: 0}
        """The next offset to read of each input."""

    def step(self) -> bool:
        """Read and join once. Whether an input had more to read."""
        ended = {}
        for topic in (IMPRESSIONS, ENGAGEMENTS):
            records = self._log.read(topic, self._partition, self.offsets[topic], _RECORDS_AT_ONCE)
            self._joiner.take(topic, records)
            if records:
                self.offsets[topic] = records[-1].offset + 1
            ended[topic] = len(records) < _RECORDS_AT_ONCE
        now_ms = self._clock.now_ms()
        self._joiner.advance(watermark_of(self._joiner.newest, ended, now_ms, self._lateness_ms))
        self._write()
        return not all(ended.values())

    def _write(self) -> None:
        output = self._joiner.drain()
        watermark = self._joiner.watermark
        examples = examples_records(self._joiner.format, output.examples, self._told_watermark, watermark)
        self._told_watermark = watermark
        self._log.append(EXAMPLES, self._partition, examples)
        self._log.append(DEAD_LETTERS, self._partition, [encode(letter) for letter in output.dead_letters])

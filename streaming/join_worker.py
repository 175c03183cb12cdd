"""One partition's joiner at work on a log: reads both inputs, moves the watermark, writes examples and dead letters."""

from __future__ import annotations

from streaming.clock import Clock
from streaming.events import encode
from streaming.joiner import Joiner
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, Log

_RECORDS_AT_ONCE = 4096


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
        more = False
        at_end = []
        for topic, take in ((IMPRESSIONS, self._joiner.add_request), (ENGAGEMENTS, self._joiner.add_engagement)):
            records = self._log.read(topic, self._partition, self.offsets[topic], _RECORDS_AT_ONCE)
            for record in records:
                take(record.offset, record.value)
            if records:
                self.offsets[topic] = records[-1].offset + 1
            at_end.append(len(records) < _RECORDS_AT_ONCE)
            more |= not at_end[-1]
        self._joiner.advance(self._watermark(at_end))
        self._write()
        return more

    def _watermark(self, at_end: list[bool]) -> int:
        """The smaller event time of the inputs still being read; at the end of both, the clock closes windows."""
        if all(at_end):
            return self._clock.now_ms() - self._lateness_ms
        newest = [time for time, ended in zip(self._joiner.newest.values(), at_end, strict=True) if not ended]
        return min(newest) - self._lateness_ms

    def _write(self) -> None:
        output = self._joiner.drain()
        watermark = self._joiner.watermark
        batches = output.examples
        if not batches and watermark > self._told_watermark:
            batches = [self._joiner.format.empty()]
        # Only the last record may say that everything before the new watermark is out.
        marks = [self._told_watermark] * (len(batches) - 1) + [watermark]
        self._told_watermark = watermark
        examples = [self._joiner.format.encode(batch, mark) for batch, mark in zip(batches, marks, strict=False)]
        self._log.append(EXAMPLES, self._partition, examples)
        self._log.append(DEAD_LETTERS, self._partition, [encode(letter) for letter in output.dead_letters])

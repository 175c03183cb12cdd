"""`minutely dead-letters`: what was refused and why, on Kafka or by a replay."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from minutely.config import Pipeline
from minutely.ends import stop_on_signal
from minutely.replays.run_letters import kept_letters
from minutely.services.service import wait_for_topics
from minutely.terminal import literal
from streaming.clock import WallClock
from streaming.kafka.history import KafkaHistory
from streaming.log import DEAD_LETTERS, LostRange, Record
from streaming.records.events import BadRecord, DeadLetter, decode_letter
from streaming.retry import Retry
from streaming.waiting import tolerating

_log = logging.getLogger("minutely.dead-letters")
_SHOWN_BYTES = 40


def dead_letters(pipeline: Pipeline, stop: Callable[[], bool]) -> Iterator[DeadLetter]:
    """Those kept by now, partition by partition. While brokers are away it waits, until ``stop``; at the start for a minute at
    most, then it raises `NoAnswerError`."""
    wait_for_topics(pipeline, _log, stop)
    for partition in range(pipeline.kafka.partitions):
        history = KafkaHistory(pipeline.kafka, partition)
        brokers = Retry(_log, "brokers", WallClock(), pipeline.kafka.asked)
        end, position, is_read = None, 0, False
        while not is_read and not stop():
            with tolerating(brokers):
                end = history.end(DEAD_LETTERS) if end is None else end
                for record, letter in letters_of(history, partition, position, end, stop):
                    position = record.offset + 1  # once each, though reading may have to begin again
                    yield letter
                is_read = True


def letters_of(
    history: KafkaHistory, partition: int, start: int, end: int, stop: Callable[[], bool]
) -> Iterator[tuple[Record, DeadLetter]]:
    """The letters of a partition from ``start`` to before ``end`` that are still kept, with their records, until ``stop``.

    Raises:
        BrokerError: brokers are away, or records were deleted meanwhile.
    """
    for records in history.read(DEAD_LETTERS, max(start, history.beginning(DEAD_LETTERS)), end):
        if isinstance(records, LostRange):
            _log.error("%s", records.told(partition))
            continue
        for record in records:
            try:
                letter = decode_letter(record.value)
            except BadRecord as bad:
                _log.warning("partition %d: skipped a record that is not a dead letter: %s", partition, bad)
                continue
            yield record, letter
        if stop():
            return


class _Shown:
    """A table of the first letters, and how many there are."""

    def __init__(self, reason: str | None, limit: int) -> None:
        self._reason = reason
        self._limit = limit
        self._table = Table("topic", "partition", "offset", "reason", "detail", "bytes")
        self._reasons = Counter[str]()
        self.count = 0

    def add(self, letter: DeadLetter) -> None:
        self._reasons[letter.reason] += 1
        if self._reason not in (None, letter.reason):
            return
        self.count += 1
        if self.count <= self._limit:
            begin, cut = _begin(letter.payload), f", cut from {letter.cut_from}" * bool(letter.cut_from)
            shown = f"{len(letter.payload)}{cut}: {begin}"
            place = letter.topic, str(letter.partition), str(letter.offset)
            self._table.add_row(*map(literal, (*place, letter.reason, letter.detail, shown)))

    def print(self, console: Console) -> None:
        if self._table.row_count:
            console.print(self._table)
        shown = f", the first {self._limit} shown" if self.count > self._limit else ""
        console.print(f"{self.count} dead letters{shown}")
        if self._reasons and not self.count:
            others = ", ".join(f"{reason} {count}" for reason, count in sorted(self._reasons.items()))
            console.print(literal(f"none of reason {self._reason}; there are: {others}"))


def _begin(payload: bytes) -> str:
    """How a record begins: as it is where it is a text, such as JSON or a value of a file, else as bytes."""
    try:
        return payload.decode()[:_SHOWN_BYTES]
    except UnicodeDecodeError:
        return repr(payload[:_SHOWN_BYTES])


def show(console: Console, pipeline: Pipeline, reason: str | None, limit: int) -> None:
    """Print where each was, why it was refused and how it begins; after ``limit``, only how many there are."""
    shown = _Shown(reason, limit)
    with stop_on_signal() as stop:
        for letter in dead_letters(pipeline, stop):
            shown.add(letter)
        if stop():
            raise KeyboardInterrupt
    shown.print(console)


def show_kept(console: Console, path: Path, reason: str | None, limit: int) -> None:
    """The same of those that a replay kept in a file; `BadFile` where it is another."""
    shown, count, all_letters = _Shown(reason, limit), 0, 0
    for kept in kept_letters(path):
        if kept.letter is not None:
            count += 1
            shown.add(kept.letter)
        all_letters = kept.count or all_letters
    shown.print(console)
    if all_letters > count:
        console.print(f"of the first {count} of {all_letters}: the run kept no more")

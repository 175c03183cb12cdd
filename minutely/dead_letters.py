"""`minutely dead-letters`: what was refused and why, and sending it again after a fix."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from minutely.config import Pipeline
from minutely.service import stop_on_signal
from streaming.clock import WallClock
from streaming.kafka import waiting
from streaming.kafka.history import KafkaHistory
from streaming.kafka.sending import PatientSender
from streaming.kafka.topics import ensure_topics
from streaming.kafka.waiting import enduring, patiently
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, IMPRESSIONS
from streaming.patience import Patience
from streaming.records.events import BadRecord, DeadLetter, decode_letter

_log = logging.getLogger("minutely.dead-letters")
_SHOWN_BYTES = 40


def dead_letters(pipeline: Pipeline, reason: str | None, stop: Callable[[], bool]) -> Iterator[DeadLetter]:
    """Those kept by now, partition by partition; of one ``reason`` where given. While brokers are away it waits,
    until ``stop``; at the start for a minute at most, then it raises `NoAnswerError`."""
    patiently(_log, stop, partial(ensure_topics, pipeline.kafka), pipeline.kafka.asked, waiting.PERSON_SECONDS)
    for partition in range(pipeline.kafka.partitions):
        for value in _kept(KafkaHistory(pipeline.kafka, partition), pipeline.kafka.asked, stop):
            try:
                letter = decode_letter(value)
            except BadRecord as bad:
                _log.warning("partition %d: skipped a record that is not a dead letter: %s", partition, bad)
                continue
            if reason in (None, letter.reason):
                yield letter


def _kept(history: KafkaHistory, asked: str, stop: Callable[[], bool]) -> Iterator[bytes]:
    """Each record of a partition once, though reading may have to begin again."""
    brokers = Patience(_log, "brokers", WallClock(), asked)
    end, position = None, 0
    while not stop():
        with enduring(brokers):
            end = history.end(DEAD_LETTERS) if end is None else end
            position = max(position, history.beginning(DEAD_LETTERS))
            for records in history.read(DEAD_LETTERS, position, end):
                for record in records:
                    position = record.offset + 1
                    yield record.value
                if stop():
                    return
            return


def show(console: Console, pipeline: Pipeline, reason: str | None, limit: int) -> None:
    """Print where each was, why it was refused and how it begins; after ``limit``, only how many there are."""
    table = Table("topic", "partition", "offset", "reason", "detail", "bytes")
    count = 0
    with stop_on_signal() as stop:
        for letter in dead_letters(pipeline, reason, stop):
            count += 1
            if count <= limit:
                begin = letter.payload[:_SHOWN_BYTES]
                table.add_row(
                    letter.topic,
                    str(letter.partition),
                    str(letter.offset),
                    letter.reason,
                    escape(letter.detail),
                    escape(f"{len(letter.payload)}: {begin!r}"),
                )
        if stop():
            raise KeyboardInterrupt
    console.print(table)
    console.print(f"{count} dead letters" + (f", the first {limit} shown" if count > limit else ""))


def send_again(pipeline: Pipeline, reason: str | None) -> int:
    """Send the original bytes to where they came from; how many. The joiner passes over what it knows already."""
    with stop_on_signal() as stop:
        sender = PatientSender(pipeline.kafka, _log, stop)
        for letter in dead_letters(pipeline, reason, stop):
            if letter.topic not in (IMPRESSIONS, ENGAGEMENTS):
                continue
            if not sender.send(pipeline.kafka.topic(letter.topic), letter.payload, partition=letter.partition):
                break
        sender.wait()
        return sender.taken.total()

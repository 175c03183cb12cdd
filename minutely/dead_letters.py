"""`minutely dead-letters`: what was refused and why, and sending it again after a fix."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from minutely.config import Pipeline
from streaming.events import DeadLetter
from streaming.kafka.partition_io import KafkaHistory
from streaming.kafka.sending import Sender
from streaming.kafka.topics import ensure_topics
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, IMPRESSIONS

_DELIVERY_MS = 60_000
_SHOWN_BYTES = 40

_decoder = msgspec.msgpack.Decoder(DeadLetter)


def dead_letters(pipeline: Pipeline, reason: str | None) -> Iterator[DeadLetter]:
    """Those kept by now, partition by partition; of one ``reason`` where given."""
    for partition in range(pipeline.kafka.partitions):
        history = KafkaHistory(pipeline.kafka, partition)
        for records in history.read(DEAD_LETTERS, history.beginning(DEAD_LETTERS), history.end(DEAD_LETTERS)):
            for record in records:
                letter = _decoder.decode(record.value)
                if reason in (None, letter.reason):
                    yield letter


def show(console: Console, pipeline: Pipeline, reason: str | None, limit: int) -> None:
    """Print where each was, why it was refused and how it begins; after ``limit``, only how many there are."""
    ensure_topics(pipeline.kafka)
    table = Table("topic", "partition", "offset", "reason", "detail", "bytes")
    count = 0
    for letter in dead_letters(pipeline, reason):
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
    console.print(table)
    console.print(f"{count} dead letters" + (f", the first {limit} shown" if count > limit else ""))


def send_again(pipeline: Pipeline, reason: str | None) -> int:
    """Send the original bytes to where they came from; how many. The joiner passes over what it knows already."""
    ensure_topics(pipeline.kafka)
    count = 0
    with Sender(pipeline.kafka, _DELIVERY_MS) as sender:
        for letter in dead_letters(pipeline, reason):
            if letter.topic in (IMPRESSIONS, ENGAGEMENTS):
                sender.send(pipeline.kafka.topic(letter.topic), letter.payload, partition=letter.partition)
                count += 1
    return count

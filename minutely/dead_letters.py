"""`minutely dead-letters`: what was refused and why, and sending it again after a fix."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from kafka import KafkaProducer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from minutely.config import Pipeline
from streaming.events import DeadLetter
from streaming.kafka.partition_io import KafkaHistory
from streaming.kafka.settings import MAX_OUTPUT_BYTES
from streaming.kafka.topics import ensure_topics
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, IMPRESSIONS

_FLUSH_SECONDS = 60
_SHOWN_BYTES = 40
_IN_FLIGHT = 1000

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
    producer = KafkaProducer(
        **pipeline.kafka.python_client(), acks="all", linger_ms=5, max_request_size=MAX_OUTPUT_BYTES
    )
    count = 0
    try:
        for letter in dead_letters(pipeline, reason):
            if letter.topic in (IMPRESSIONS, ENGAGEMENTS):
                producer.send(pipeline.kafka.topic(letter.topic), letter.payload, partition=letter.partition)
                count += 1
                if count % _IN_FLIGHT == 0:
                    producer.flush(_FLUSH_SECONDS)
        producer.flush(_FLUSH_SECONDS)
    finally:
        producer.close(timeout=_FLUSH_SECONDS)
    return count

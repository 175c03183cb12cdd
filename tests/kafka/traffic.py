"""Made-up traffic for tests on Kafka, in order of arrival, and the labels that it must lead to."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from confluent_kafka import Consumer, Message, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from minutely.config import Pipeline
from streaming.archive.table import Archive
from streaming.kafka.client import begins_of, ends_of, position_after, reader_of
from streaming.kafka.sending import RetryingSender
from streaming.kafka.settings import KafkaSettings
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS
from streaming.records.events import FORMAT_VERSION, DeadLetter, Engagement, Request, encode
from streaming.records.examples import ExampleColumns, ExampleFormat

_log = logging.getLogger("minutely.traffic")


class Event(NamedTuple):
    """One record on its way; ``at`` is when it arrives, in ms of event time."""

    at: float
    topic: str
    request_id: str
    value: bytes


class Traffic(NamedTuple):
    """What arrives, in order, and what the click label of every example must be."""

    events: list[Event]
    labels: dict[str, float]


def make_pipeline(kafka: KafkaSettings, **changes: Any) -> Pipeline:
    """A pipeline whose table ``key`` has one row an impression, so that its counts say how often each was trained on."""
    fields: dict[str, Any] = {
        "name": "traffic",
        "source": {"dir": ".", "impressions": {"file": "none.csv", "time": {"column": "t"}}, "actions": {"click": {}}},
        "features": {"user": {"column": "user", "scope": "request"}, "key": {"column": "key"}},
        "labels": {"click": {"action": "click", "window": "10s"}},
        "join": {"lateness": "5s"},
        "kafka": kafka.model_dump(mode="json"),
        "model": {"dim": 2, "hidden": [4]},
        "sync": {"sparse_every": "60s"},
        "train": {"step_every": "60s"},
    }
    return Pipeline.model_validate(fields | changes)


def make_traffic(
    seed: int,
    requests: int,
    impressions: int,
    start_ms: int,
    every_ms: float,
    window_ms: int = 10_000,
    lateness_ms: int = 5_000,
    first: int = 0,
    also: Callable[[npt.NDArray[np.int64]], dict[str, bytes]] = lambda keys: {},
) -> Traffic:
    """Requests ``every_ms`` apart, 5 % of impressions clicked within the window, arriving in any order within the lateness,
    2 % of the records twice. ``also`` gives packed columns of more features, of impressions with these keys."""
    rng = random.Random(seed)
    events: list[Event] = []
    labels: dict[str, float] = {}

    def arrive(topic: str, happened_at: int, request_id: str, value: bytes) -> None:
        for _ in range(1 + (rng.random() < 0.02)):
            events.append(Event(happened_at + rng.random() * lateness_ms * 0.9, topic, request_id, value))

    for number in range(first, first + requests):
        served_at = int(start_ms + (number - first) * every_ms)
        name = f"r{number}"
        ids = [f"{name}.{at}" for at in range(impressions)]
        keys = number * impressions + np.arange(impressions)
        request = Request(
            version=FORMAT_VERSION,
            request_id=name,
            served_at=served_at,
            impression_ids=ids,
            shared={"user": np.int64(number % 100).tobytes()},
            features={"key": keys.astype("<i8").tobytes(), **also(keys)},
        )
        arrive(IMPRESSIONS, served_at, name, encode(request))
        for impression_id in ids:
            example = f"{name}/{impression_id}"
            labels[example] = 0.0
            if rng.random() < 0.05:
                labels[example] = 1.0
                happened_at = served_at + rng.randrange(window_ms)
                click = Engagement(
                    version=FORMAT_VERSION,
                    request_id=name,
                    impression_id=impression_id,
                    action="click",
                    happened_at=happened_at,
                )
                arrive(ENGAGEMENTS, happened_at, name, encode(click))
    events.sort()
    return Traffic(events, labels)


def examples_record(example_format: ExampleFormat, numbers: range) -> tuple[bytes, dict[str, float]]:
    """A record of `examples` decided now, of a pipeline that `make_pipeline` made, and the labels in it by example."""
    count = len(numbers)
    keys = np.array(numbers)
    now = np.full(count, time.time_ns() // 1_000_000, np.int64)
    labels = (keys % 3 == 0).astype(np.float32)
    ids = [f"e{number}" for number in numbers]
    rest = ExampleColumns(ids, labels[:, None], now - 1000, now, now)
    batch = example_format.build({"user": keys % 7, "key": keys}, rest)
    return example_format.encode(batch, int(now[0])), dict(zip(ids, labels.tolist(), strict=True))


@contextmanager
def producer_of(kafka: KafkaSettings) -> Iterator[RetryingSender]:
    """A producer, of whose records brokers have all in the end."""
    until = time.monotonic() + 300
    producer = RetryingSender(kafka, _log, lambda: time.monotonic() > until)
    yield producer
    assert not producer.wait()


def alter(kafka: KafkaSettings, topic: str, name: str, value: str) -> None:
    """Change one setting of a topic."""
    changed = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[changed])
    with AdminClient(kafka.client()) as admin:
        admin.incremental_alter_configs([resource])[resource].result()


def delete_before(kafka: KafkaSettings, topic: str, partition: int, offset: int) -> None:
    """As retention does."""
    with AdminClient(kafka.client()) as admin:
        for done in admin.delete_records([TopicPartition(kafka.topic(topic), partition, offset)]).values():
            done.result()


def send(producer: RetryingSender, kafka: KafkaSettings, events: Iterable[Event]) -> None:
    for event in events:
        producer.send(kafka.topic(event.topic), event.value, key=event.request_id.encode())


class LiveTraffic(threading.Thread):
    """Sends traffic as it happens: every record at the time at which it arrives."""

    def __init__(self, kafka: KafkaSettings, traffic: Traffic) -> None:
        super().__init__(daemon=True)
        self._kafka = kafka
        self._traffic = traffic
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with producer_of(self._kafka) as producer:
                for event in self._traffic.events:
                    early = event.at / 1000 - time.time()
                    if early > 0.02:
                        time.sleep(early)
                    producer.send(self._kafka.topic(event.topic), event.value, key=event.request_id.encode())
        except BaseException as error:
            self.error = error


class Emitted(NamedTuple):
    """All of `examples`, read committed."""

    times: Counter[str]
    """How often each example is in it."""
    labels: dict[str, float]
    watermarks: dict[int, list[int]]
    """Of each partition, in order."""
    batches: list[pa.RecordBatch]


def read_messages(kafka: KafkaSettings, topic: str) -> dict[int, list[Message]]:
    """Everything committed in a topic, by partition; marks of transactions come a little after their calls, and are awaited."""
    name = kafka.topic(topic)
    ats = [TopicPartition(name, partition) for partition in range(kafka.partitions)]
    found: dict[int, list[Message]] = {at.partition: [] for at in ats}
    every = Consumer(kafka.client() | {"group.id": name, "isolation.level": "read_uncommitted"})
    with closing(every), closing(reader_of(kafka, name_ends=True)) as consumer:
        begins, ends = begins_of(consumer, ats, 20), ends_of(every, ats, 20)
        reached = {partition: offset for (_, partition), offset in begins.items()}
        consumer.assign([TopicPartition(name, partition, offset) for partition, offset in reached.items()])
        while any(offset < ends[name, partition] for partition, offset in reached.items()):
            for message in consumer.consume(1000, 0.2):
                reached[message.partition() or 0] = position_after(message)
                if message.error() is None:
                    found[message.partition() or 0].append(message)
    return found


def read_topic(kafka: KafkaSettings, topic: str) -> dict[int, list[tuple[int, bytes]]]:
    """Everything committed in a topic: partition to (offset, value)."""
    return {
        partition: [(position_after(message) - 1, message.value() or b"") for message in messages]
        for partition, messages in read_messages(kafka, topic).items()
    }


def read_examples(kafka: KafkaSettings, example_format: ExampleFormat) -> Emitted:
    times: Counter[str] = Counter()
    labels: dict[str, float] = {}
    watermarks: dict[int, list[int]] = {}
    batches = []
    for partition, records in read_topic(kafka, EXAMPLES).items():
        watermarks[partition] = []
        for _, value in records:
            batch, watermark = example_format.decode(value)
            watermarks[partition].append(watermark)
            ids = batch.column("example_id").to_pylist()
            times.update(ids)
            labels.update(zip(ids, batch.column("label.click").to_pylist(), strict=True))
            batches.append(batch)
    return Emitted(times, labels, watermarks, batches)


def read_dead_letters(kafka: KafkaSettings) -> list[DeadLetter]:
    decoder = msgspec.msgpack.Decoder(DeadLetter)
    return [decoder.decode(value) for records in read_topic(kafka, DEAD_LETTERS).values() for _, value in records]


def check_archive(archive: Archive, labels: dict[str, float]) -> None:
    """Every example exactly once, with its label."""
    batches = list(archive.batches(0, 2**62))
    names = [name for batch in batches for name in batch.column("example_id").to_pylist()]
    values = [value for batch in batches for value in batch.column("label.click").to_pylist()]
    assert len(names) == len(labels), f"{len(names) - len(set(names))} more than once"
    assert dict(zip(names, values, strict=True)) == labels


def check_examples(emitted: Emitted, labels: dict[str, float]) -> None:
    """Every example exactly once, with its label, and watermarks that never go back."""
    assert not [name for name, count in emitted.times.items() if count != 1][:10]
    assert not (labels.keys() - emitted.labels.keys()), "some are missing"
    assert emitted.labels == labels
    for told in emitted.watermarks.values():
        assert told == sorted(told)

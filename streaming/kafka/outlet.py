"""The outlet of one partition's joiner: transactions of a producer of its own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from streaming.join.brokers import OutputRecord
from streaming.join.commit import Committed, UnknownPlaceError, decode_commit, encode_commit
from streaming.kafka.client import (
    BLOCK_SECONDS,
    POLL_SECONDS,
    as_broker_error,
    bounded,
    broker_error,
    offer,
    reader_of,
    timed_out,
    whole,
)
from streaming.kafka.settings import MAX_OUTPUT_BYTES, RETRY_BACKOFF_MS, KafkaSettings
from streaming.log import IMPRESSIONS, INPUTS

_REQUEST_MS = 15_000
_TRANSACTION_MS = 60_000
_SEND_BYTES = 32 << 20
_GROUP = "minutely-joined"
_COORDINATOR_BEGINS = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)


class Transactions:
    """A transactional producer for one partition of ``topics``. Only its transactions commit the offsets of it in ``group``."""

    def __init__(self, settings: KafkaSettings, group: str, partition: int, topics: Sequence[str]) -> None:
        self._settings = settings
        self._partition = partition
        self._topics = [settings.topic(name) for name in topics]
        self._producer: Producer | None = None
        self._membership: object = None
        self.group = settings.topic(group)

    @as_broker_error
    def open(self) -> list[tuple[int, str]]:
        """Fence the previous owner and settle its transaction; return each topic's committed offset (< 0: none) and metadata."""
        self.close()
        self._producer = Producer(
            self._settings.client()
            | {
                "transactional.id": f"{self.group}-{self._partition}",
                "transaction.timeout.ms": _TRANSACTION_MS,
                "socket.timeout.ms": _REQUEST_MS,  # the calls' own timeouts do not end a request that was sent
                "linger.ms": 0,
                "compression.type": "lz4",  # each record of examples has its whole schema, and one is sent each second at least
                "retry.backoff.ms": RETRY_BACKOFF_MS,
                "message.max.bytes": MAX_OUTPUT_BYTES,
                "queue.buffering.max.kbytes": _SEND_BYTES >> 10,
            }
        )
        bounded(self._producer.init_transactions, BLOCK_SECONDS, BLOCK_SECONDS)
        with closing(reader_of(self._settings, self.group)) as consumer:
            self._membership = consumer.consumer_group_metadata()
            found = _committed(consumer, [TopicPartition(name, self._partition) for name in self._topics])
        return [(at.offset, at.metadata or "") for at in found]

    @as_broker_error
    def send(self, outbox: Iterable[OutputRecord], offsets: Sequence[int], metadata: str) -> dict[str, int]:
        """Send one transaction with records and the offsets of all topics. Return the offset after the last record in our
        partition, by topic.

        Raises:
            BrokerError: it was aborted, or its outcome is unknown until `open` finds out.
        """
        producer = self._producer
        assert producer is not None
        ends: dict[str, int] = {}
        failed: dict[str, KafkaError] = {}

        def delivered(topic: str, error: KafkaError | None, message: Message) -> None:
            if error is not None:
                failed.setdefault(topic, error)
            elif message.partition() == self._partition:
                ends[topic] = max(ends.get(topic, 0), (message.offset() or 0) + 1)

        producer.begin_transaction()
        until = time.monotonic() + _TRANSACTION_MS / 1000
        for topic, value, to, key in outbox:
            on_delivery = partial(delivered, topic)
            partition = self._partition if to is None else to
            while not offer(producer, self._settings.topic(topic), value, key, partition, on_delivery):
                if time.monotonic() > until:
                    raise timed_out("brokers accept no more records of a transaction")
        ats = [
            TopicPartition(name, self._partition, offset, metadata)
            for name, offset in zip(self._topics, offsets, strict=True)
        ]
        bounded(producer.send_offsets_to_transaction, BLOCK_SECONDS, ats, self._membership, BLOCK_SECONDS)
        try:
            bounded(producer.commit_transaction, _TRANSACTION_MS / 1000, _TRANSACTION_MS / 1000)
        except KafkaException as error:
            raise self._with_deliveries(error.args[0], failed) from None
        return ends

    def _with_deliveries(self, error: KafkaError, failed: Mapping[str, KafkaError]) -> KafkaException:
        """Return an error of a commit, which only counts the records that were not delivered, with what became of them."""
        whys = [f"{self._settings.topic(topic)}: {broker_error(why)}" for topic, why in failed.items()]
        return KafkaException(KafkaError(error.code(), "; ".join([error.str(), *whys])))

    def close(self) -> None:
        """Drop the producer without waiting; a transaction that is under way ends by timeout or by the next owner."""
        self._producer = None  # its own `close` would wait for brokers, to abort


class KafkaOutlet:
    """`Outlet` on Kafka."""

    def __init__(self, settings: KafkaSettings, partition: int) -> None:
        self._partition = partition
        self._transactions = Transactions(settings, _GROUP, partition, INPUTS)

    def open(self) -> Committed | None:
        """Fence the previous owner, settle its transaction, and return what was committed last; None if nothing was.

        Raises:
            UnknownPlaceError: somebody else moved the offset of an input. A joiner commits both at once, with the same metadata.
        """
        found = dict(zip(INPUTS, self._transactions.open(), strict=True))
        if all(offset < 0 for offset, _ in found.values()):
            return None
        commits = {
            name: decode_commit(said, partial(self._moved, name, offset)) for name, (offset, said) in found.items()
        }
        committed = commits[IMPRESSIONS]
        offsets = {name: offset for name, (offset, _) in found.items()}
        for name, offset in offsets.items():
            joined = committed.offsets.get(name)
            if offset != joined or commits[name] != committed:
                raise self._moved(name, offset, f"joiners committed {joined}")
        committed.offsets = offsets
        return committed

    def _moved(self, name: str, offset: int, why: str) -> UnknownPlaceError:
        at = f"offset {offset}" if offset >= 0 else "no offset"
        return UnknownPlaceError(
            f"group {self._transactions.group}: {name}/{self._partition} is at {at}, which is not a joiner's commit: {why}; "
            "allowed: offsets that only joiners commit. To start over, empty examples and delete the group, or choose another "
            "kafka.prefix"
        )

    def send(self, outbox: Sequence[OutputRecord], commit: Committed) -> dict[str, int]:
        """Send one transaction with the outbox and the offsets. Return the offset after the last record in our partition, by topic.

        Raises:
            BrokerError: it was aborted, or its outcome is unknown until `open` finds out.
        """
        offsets = [commit.offsets[name] for name in INPUTS]
        return self._transactions.send(outbox, offsets, encode_commit(commit))

    def close(self) -> None:
        """Drop the producer without waiting; a transaction that is under way ends by timeout or by the next owner."""
        self._transactions.close()


def _committed(consumer: Consumer, ats: list[TopicPartition]) -> list[TopicPartition]:
    """Return the group's offsets and metadata; retry while the coordinator starts, which the client itself does not."""
    until = time.monotonic() + BLOCK_SECONDS
    while True:
        try:
            return whole(consumer.committed(ats, BLOCK_SECONDS))
        except KafkaException as error:
            if error.args[0].code() not in _COORDINATOR_BEGINS or time.monotonic() > until:
                raise
            time.sleep(POLL_SECONDS)

"""Where one partition's joiner writes: transactions of a producer of its own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from streaming.join.brokers import Outgoing
from streaming.join.commit import Committed, ForgottenError, decode_commit, encode_commit
from streaming.kafka.client import bounded, reader_of, telling, timed_out, whole
from streaming.kafka.settings import MAX_OUTPUT_BYTES, RETRY_BACKOFF_MS, KafkaSettings
from streaming.log import ENGAGEMENTS, IMPRESSIONS

if TYPE_CHECKING:
    from confluent_kafka.cimpl import DeliveryCallback

_BLOCK_SECONDS = 20
_REQUEST_MS = 15_000
_TRANSACTION_MS = 60_000
_SEND_BYTES = 32 << 20
_POLL_SECONDS = 0.2
_GROUP = "minutely-joined"
_INPUTS = (IMPRESSIONS, ENGAGEMENTS)
_COORDINATOR_BEGINS = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)


class Transactions:
    """A transactional producer for one partition of ``topics``, whose offsets in ``group`` only its transactions commit."""

    def __init__(self, settings: KafkaSettings, group: str, partition: int, topics: Sequence[str]) -> None:
        self._settings = settings
        self._partition = partition
        self._topics = [settings.topic(name) for name in topics]
        self._producer: Producer | None = None
        self._membership: object = None
        self.group = settings.topic(group)

    @telling
    def open(self) -> list[tuple[int, str]]:
        """Fence and settle a predecessor; offset (below 0: none) and metadata that were committed for each topic."""
        self.close()
        self._producer = Producer(
            self._settings.client()
            | {
                "transactional.id": f"{self.group}-{self._partition}",
                "transaction.timeout.ms": _TRANSACTION_MS,
                "socket.timeout.ms": _REQUEST_MS,  # the calls' own timeouts do not end a request that was sent
                "linger.ms": 0,
                "retry.backoff.ms": RETRY_BACKOFF_MS,
                "message.max.bytes": MAX_OUTPUT_BYTES,
                "queue.buffering.max.kbytes": _SEND_BYTES >> 10,
            }
        )
        bounded(self._producer.init_transactions, _BLOCK_SECONDS, _BLOCK_SECONDS)
        with closing(reader_of(self._settings, self.group)) as consumer:
            self._membership = consumer.consumer_group_metadata()
            found = _committed(consumer, [TopicPartition(name, self._partition) for name in self._topics])
        return [(at.offset, at.metadata or "") for at in found]

    @telling
    def send(self, outbox: Iterable[tuple[str, int, bytes]], offsets: Sequence[int], metadata: str) -> dict[str, int]:
        """One transaction with records, as topic, partition and value, and the offsets of all topics. The largest offset after its
        last record in each topic that it wrote to.

        Raises:
            BrokerError: it was aborted, or it is not known how it ended, which `open` finds out.
        """
        producer = self._producer
        assert producer is not None
        ends: dict[str, int] = {}

        def delivered(topic: str, error: KafkaError | None, message: Message) -> None:
            if error is None:
                ends[topic] = max(ends.get(topic, 0), (message.offset() or 0) + 1)

        producer.begin_transaction()
        until = time.monotonic() + _TRANSACTION_MS / 1000
        for topic, partition, value in outbox:
            told = partial(delivered, topic)
            while not _fits(producer, self._settings.topic(topic), partition, value, told):
                if time.monotonic() > until:
                    raise timed_out("brokers take no more of a transaction")
        ats = [
            TopicPartition(name, self._partition, offset, metadata)
            for name, offset in zip(self._topics, offsets, strict=True)
        ]
        bounded(producer.send_offsets_to_transaction, _BLOCK_SECONDS, ats, self._membership, _BLOCK_SECONDS)
        bounded(producer.commit_transaction, _TRANSACTION_MS / 1000, _TRANSACTION_MS / 1000)
        return ends

    def close(self) -> None:
        """Let go of the producer at once; a transaction that is under way ends with its timeout or its successor."""
        self._producer = None  # its own `close` would wait for brokers, to abort


class KafkaOutlet:
    """`Outlet` by transactions of the partition's own."""

    def __init__(self, settings: KafkaSettings, partition: int) -> None:
        self._partition = partition
        self._transactions = Transactions(settings, _GROUP, partition, _INPUTS)

    def open(self) -> Committed | None:
        """Fence and settle a predecessor, then read what it committed."""
        found = dict(zip(_INPUTS, self._transactions.open(), strict=True))
        if any(offset < 0 for offset, _ in found.values()):
            return None
        committed = decode_commit(found[IMPRESSIONS][1], self._forgotten)
        return committed._replace(offsets={name: offset for name, (offset, _) in found.items()})

    def _forgotten(self, why: str) -> ForgottenError:
        return ForgottenError(
            f"group {self._transactions.group}: what is committed for partition {self._partition} is not a joiner's: {why}; "
            "allowed: offsets that only joiners commit, or another kafka.prefix"
        )

    def send(self, outbox: Sequence[Outgoing], commit: Committed) -> dict[str, int]:
        """One transaction with the outbox and the offsets. The offset after its last record in each topic that it wrote to.

        Raises:
            BrokerError: it was aborted, or it is not known how it ended, which `open` finds out.
        """
        records = ((item.topic, self._partition, item.value) for item in outbox)
        offsets = [commit.offsets[name] for name in _INPUTS]
        return self._transactions.send(records, offsets, encode_commit(commit))

    def close(self) -> None:
        """Let go of the producer at once; a transaction that is under way ends with its timeout or its successor."""
        self._transactions.close()


def _fits(producer: Producer, topic: str, partition: int, value: bytes, told: DeliveryCallback) -> bool:
    """Hand a record over; False where what is on its way fills the client's memory, after waiting a little."""
    try:
        producer.produce(topic, value, partition=partition, on_delivery=told)
    except BufferError:
        producer.poll(_POLL_SECONDS)
        return False
    return True


def _committed(consumer: Consumer, ats: list[TopicPartition]) -> list[TopicPartition]:
    """The group's offsets and metadata. The client does not itself wait for a coordinator that has only begun."""
    until = time.monotonic() + _BLOCK_SECONDS
    while True:
        try:
            return whole(consumer.committed(ats, _BLOCK_SECONDS))
        except KafkaException as error:
            if error.args[0].code() not in _COORDINATOR_BEGINS or time.monotonic() > until:
                raise
            time.sleep(_POLL_SECONDS)

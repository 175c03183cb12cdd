"""Kafka as services of the loop use it: group membership, the inputs' records and offsets, outlets and histories."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from streaming.kafka.client import (
    as_broker_error,
    begins_of,
    broker_error,
    check_leaders,
    ends_of,
    reader_of,
    record_of,
)
from streaming.kafka.history import KafkaHistory
from streaming.kafka.membership import Membership
from streaming.kafka.outlet import KafkaLiveOutlet, KafkaOutlet
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.unreadable_batches import is_unreadable, lost_in
from streaming.log import FEATURES, INPUTS, INTERACTIONS, OUTPUTS, BrokerError, LostRange, Record
from streaming.loop.brokers import Fetched, InputPartition, Outlet

T = TypeVar("T")

_log = logging.getLogger("minutely.kafka")

_RECORDS_AT_ONCE = 4000
_READ_SECONDS = 0.05
_ANSWER_SECONDS = 5


class Role(NamedTuple):
    """What services of one kind share: their ``group``, the ``inputs`` that they read, the ``outputs`` that they write, and how a
    partition's outlet is made."""

    group: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    outlet: Callable[[KafkaSettings, int], Outlet[Any]]


JOINERS = Role("minutely-joiner", INPUTS, OUTPUTS, KafkaOutlet)
LIVE_JOINERS = JOINERS._replace(outputs=(*OUTPUTS, INTERACTIONS))
"""Joiners whose config has live features."""
KEEPERS = Role("minutely-features", [INTERACTIONS], [FEATURES], KafkaLiveOutlet)
"""Those who keep live features."""


class KafkaBrokers:
    """`Brokers` on Kafka. The group only assigns partitions. A consumer outside the group reads the inputs, from the offsets that
    each partition's owner knows."""

    def __init__(self, settings: KafkaSettings, role: Role = JOINERS) -> None:
        self._settings = settings
        self._role = role
        self.inputs = role.inputs
        self._names = {settings.topic(topic): topic for topic in role.inputs}
        self._reader = reader_of(settings, name_ends=True)
        # The reader's connection is busy while it waits for records. What is in a transaction that is open will be read: until
        # then, and for the records behind it, the end is not reached.
        self._asker = reader_of(settings, uncommitted=True)
        self._group = Membership(settings, role.group, role.inputs[0])
        self._beyond: frozenset[int] = frozenset()
        """Partitions that the group assigned to us and the config does not know."""
        self._lost: dict[tuple[str, int], tuple[int | None, LostRange]] = {}
        """The last batch of each place that cannot be read, by where it began: until it is skipped, reading finds it again."""

    def join(self) -> None:
        """Become a member of the group."""
        self._group.start()

    def assigned(self) -> frozenset[int]:
        """Follow the group without waiting, and return the partitions that are ours now."""
        self._group.poll()
        ours = self._group.partitions
        beyond = frozenset(at for at in ours if at >= self._settings.partitions)
        if beyond - self._beyond:
            _log.error(
                "%s has more partitions than kafka.partitions (%d) since services began: %s not joined, since nobody would read "
                "what comes of them, and keys have moved to other partitions. Stop all services, and start them with another "
                "kafka.prefix",
                self._settings.topic(self.inputs[0]),
                self._settings.partitions,
                ", ".join(map(str, sorted(beyond))),
            )
        self._beyond = beyond
        return ours - beyond

    @as_broker_error
    def leave(self) -> None:
        """Leave the group, so that others take over at once, and close every connection."""
        with ExitStack() as leaving:
            for last_first in (self._asker.close, self._reader.close, self._group.leave):
                leaving.callback(last_first)

    def outlet(self, partition: int) -> Outlet[Any]:
        """Return the outlet of a partition, with its own producer."""
        return self._role.outlet(self._settings, partition)

    def history(self, partition: int) -> KafkaHistory:
        """Return the history of a partition, with its own consumers."""
        return KafkaHistory(self._settings, partition)

    def check_leaders(self, partitions: Collection[int]) -> None:
        """Raise `NoLeaderError` if one of them has no leader in a topic that is read or written: neither its offsets nor a
        transaction with it could be had."""
        check_leaders(self._asker, self._ats([*self.inputs, *self._role.outputs], partitions), _ANSWER_SECONDS)

    def begins(self, partitions: Collection[int]) -> dict[InputPartition, int]:
        """Return the first offsets that are kept, of the inputs."""
        return self._ours(begins_of(self._asker, self._ats(self.inputs, partitions), _ANSWER_SECONDS))

    def ends(self, partitions: Collection[int]) -> dict[InputPartition, int]:
        """Return the current offsets after the last records of the inputs, also those in open transactions: they will be read."""
        try:
            return self._ours(ends_of(self._asker, self._ats(self.inputs, partitions), _ANSWER_SECONDS))
        except BrokerError:
            self._asker.poll(0)  # runs the client's callback, which logs why brokers refuse us
            raise

    @as_broker_error
    def read_on(self, positions: Mapping[InputPartition, int]) -> None:
        """Read these places and no others from now on, each from its offset."""
        self._reader.assign(
            [
                TopicPartition(self._settings.topic(topic), partition, offset)
                for (topic, partition), offset in positions.items()
            ]
        )

    @as_broker_error
    def read(self) -> Fetched:
        """Return what comes next; wait up to 50 ms if nothing is there."""
        found = defaultdict[tuple[str, int], list[Record]](list)
        read_to: dict[tuple[str, int], int] = {}
        failed: dict[tuple[str, int], BrokerError] = {}
        lost: dict[tuple[str, int], LostRange] = {}
        messages: list[Any] = self._reader.consume(_RECORDS_AT_ONCE, _READ_SECONDS)
        for message in messages:
            place = (message.topic(), message.partition())
            error = message.error()
            if place in lost:  # only the same error again
                continue
            if error is None:
                found[place].append(record_of(message))
            elif error.code() == KafkaError._PARTITION_EOF:
                read_to[place] = message.offset()
            elif is_unreadable(message):
                try:
                    lost[place] = self._lost_at(place, message)
                except BrokerError as away:
                    failed[place] = away
            elif message.topic() in self._names and message.partition() >= 0:
                failed[place] = broker_error(error)
            else:  # not of one partition
                raise KafkaException(error)
        return Fetched(self._ours(found), self._ours(read_to), self._ours(failed), self._ours(lost))

    def _lost_at(self, place: tuple[str, int], message: Message) -> LostRange:
        base, known = self._lost.get(place, (None, None))
        if known is None or base != message.offset():
            known = lost_in(self._settings, self._names[place[0]], message)
            self._lost[place] = message.offset(), known
        return known

    def _ats(self, topics: Sequence[str], partitions: Collection[int]) -> list[TopicPartition]:
        names = [self._settings.topic(topic) for topic in topics]
        return [TopicPartition(name, partition) for partition in partitions for name in names]

    def _ours(self, by_name: Mapping[tuple[str, int], T]) -> dict[InputPartition, T]:
        """Translate the brokers' topic names to the pipeline's own."""
        return {(self._names[name], partition): each for (name, partition), each in by_name.items()}

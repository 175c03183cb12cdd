"""Membership of a consumer group that only assigns partitions and reads nothing."""

from __future__ import annotations

import logging

from confluent_kafka import Consumer, KafkaException, TopicPartition

from streaming.clock import WallClock
from streaming.kafka.client import as_broker_error, broker_error
from streaming.kafka.settings import KafkaSettings
from streaming.retry import Retry

_log = logging.getLogger("minutely.group")
_SESSION_MS = 10_000
_HUNG_MS = 300_000


class Membership:
    """``partitions`` of a topic are ours. Rebalancing is cooperative, so joining continues on those that stay with us.

    The client's own thread sends heartbeats while the process lives. Only `poll` shows that the service works: after 5 minutes
    without it, the partitions go to other members.
    """

    def __init__(self, settings: KafkaSettings, group: str, topic: str) -> None:
        self._topic = settings.topic(topic)
        self._retry = Retry(_log, "group", WallClock(), settings.asked)
        self._consumer = Consumer(
            settings.client()
            | {
                "group.id": settings.topic(group),
                "enable.auto.commit": False,
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": _SESSION_MS,
                "heartbeat.interval.ms": _SESSION_MS // 5,
                "max.poll.interval.ms": _HUNG_MS,
            }
        )
        self.partitions: frozenset[int] = frozenset()

    @as_broker_error
    def start(self) -> None:
        """Join the group."""
        self._consumer.subscribe([self._topic], on_assign=self._gained, on_revoke=self._lost, on_lost=self._lost)

    def poll(self) -> None:
        """Follow rebalances; never waits."""
        try:
            message = self._consumer.poll(0)
            error = message and message.error()
            if error:
                raise KafkaException(error)
        except KafkaException as error:
            self._retry.failed(broker_error(error))

    @as_broker_error
    def leave(self) -> None:
        """Leave the group, so that others take over at once."""
        self._consumer.close()

    def _gained(self, consumer: Consumer, ats: list[TopicPartition]) -> None:
        for at in ats:
            at.offset = 0  # any will do: without one, the client would ask the group
        consumer.incremental_assign(ats)
        consumer.pause(ats)
        self._retry.worked()
        self.partitions |= {at.partition for at in ats}

    def _lost(self, consumer: Consumer, ats: list[TopicPartition]) -> None:
        self.partitions -= {at.partition for at in ats}
        consumer.incremental_unassign(ats)

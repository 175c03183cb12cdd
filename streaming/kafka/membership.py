"""Membership of a consumer group, by a thread of its own: it is told which partitions are ours, and reads nothing.

The client only completes a rebalance while it is being polled, and begins it anew where that happens between two polls;
so it is polled all the time, whatever the service is busy with.
"""

from __future__ import annotations

import logging
import threading
import time

from kafka import KafkaConsumer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError

from streaming.kafka.settings import KafkaSettings
from streaming.kafka.waiting import Patience

_log = logging.getLogger("minutely.group")
_POLL_MS = 500
_SESSION_MS = 10_000
_HUNG_SECONDS = 300


class Membership(threading.Thread):
    """``partitions`` of a topic are ours; cooperative, so that those that stay with us go on."""

    def __init__(self, settings: KafkaSettings, group: str, topic: str) -> None:
        super().__init__(name="membership", daemon=True)
        self._topic = settings.topic(topic)
        self._consumer = KafkaConsumer(
            **settings.client(),
            group_id=settings.topic(group),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            partition_assignment_strategy=[CooperativeStickyAssignor],
            session_timeout_ms=_SESSION_MS,
            heartbeat_interval_ms=_SESSION_MS // 5,
        )
        self._leave = threading.Event()
        self._alive_at = time.monotonic()
        self.partitions: frozenset[int] = frozenset()

    def alive(self) -> None:
        """The service still works; partitions go to others where it has not said so for long."""
        self._alive_at = time.monotonic()

    def leave(self) -> None:
        """Leave the group, so that others take over at once."""
        self._leave.set()
        self.join()

    def run(self) -> None:
        """Be a member until told to leave."""
        patience = Patience(_log, "group")
        subscribed = False
        while not self._leave.is_set() and time.monotonic() - self._alive_at < _HUNG_SECONDS:
            try:
                if not subscribed:
                    # A leader of the group that does not know the topic yet gives nobody anything.
                    self._consumer.partitions_for_topic(self._topic)
                    self._consumer.subscribe([self._topic])
                    subscribed = True
                self._consumer.poll(timeout_ms=_POLL_MS)
                assigned = self._consumer.assignment()
                self._consumer.pause(*assigned)
                self.partitions = frozenset(at.partition for at in assigned)
                patience.worked()
            except KafkaError as error:
                patience.failed(error)
                self._leave.wait(_POLL_MS / 1000)
        self.partitions = frozenset()
        self._consumer.close()
